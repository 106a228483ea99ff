"""The page of a prepared folder: what `./tessera inspect DATASET --html FILE` writes."""

from data.token_statistics import FileCount, SplitStatistics
from launch.pages.charts import Bar, bar_chart, column_chart, log_log_plot
from launch.pages.page import Html, card, cards, join, number, page, table, tag, tiles
from launch.reading.dataset_report import (
    DataReport,
    bin_label,
    frequency_note,
    made_with,
    token_label,
)
from launch.reading.exclusion_tables import Section, excluded_sections


def data_page(report: DataReport) -> Html:
    """Returns the page of a prepared folder."""
    manifest = report.store.manifest
    name = report.folder.rstrip("/").rsplit("/", 1)[-1]
    sections = excluded_sections(report.store.report)
    return page(
        f"{name}: prepared data",
        tag("h1", name),
        tag("p", manifest["source"], class_="soft wide"),
        tag("p", report.check_message(), class_="soft wide"),
        *(_split(name, split, report.sequence_len) for name, split in report.splits.items()),
        tag("h2", "Excluded and changed"),
        cards(*map(_section, sections)),
        *([] if sections else [tag("p", "Nothing was excluded or changed.", class_="soft")]),
        tag("h2", "Preparation"),
        cards(_tokenizer(report), _settings(report)),
    )


def _split(name: str, split: SplitStatistics, sequence_len: int) -> Html:
    lengths = [
        Bar(
            _short_bin(bin.first),
            bin.documents,
            f"{bin_label(bin.first, bin.last)} tokens: {bin.documents:,} documents",
        )
        for bin in split.lengths
    ]
    longest = split.lengths[-1].last
    note = (
        f"each bar covers the lengths from its label up to the next; the last ends at {longest:,}"
    )
    return join(
        (
            tag("h2", f"Split: {name}"),
            tiles(
                {
                    "tokens": split.tokens,
                    "documents": split.documents,
                    "characters": split.characters,
                    "bytes": split.bytes,
                    "bytes per token": f"{split.bytes_per_token:.2f}",
                    "shards": split.shards,
                }
            ),
            cards(
                card(
                    "Document lengths",
                    column_chart(lengths, x_title="tokens in the document", y_title="documents"),
                    tag("p", note, class_="soft"),
                ),
                card(
                    "Token frequencies",
                    log_log_plot(
                        split.frequencies.ranks, x_title="token rank", y_title="occurrences"
                    ),
                    tag("p", frequency_note(split), class_="soft"),
                ),
            ),
            card("Most frequent tokens", _frequent(split)),
            card("Files", _files(split)),
            card(
                f"One epoch in sequences of {sequence_len:,} tokens",
                table(
                    ("packing", "sequences", "padding tokens", "padding share"),
                    [
                        (p.packing, p.rows, p.padding, f"{p.padding_share:.2%}")
                        for p in split.packings
                    ],
                ),
            ),
            card("Beginnings of some documents", *_samples(split)),
        )
    )


def _short_bin(first: int) -> str:
    return f"{first // 1024}k" if first >= 1024 else str(first)


def _frequent(split: SplitStatistics) -> Html:
    chips = (
        tag(
            "div",
            tag("code", token_label(token.text), title=f"id {token.token}"),
            tag("span", f"{token.count:,}"),
            class_="chip",
        )
        for token in split.frequencies.frequent
    )
    return tag("div", *chips, class_="chips")


def _files(split: SplitStatistics) -> Html:
    total = max(split.tokens - 1, 1)  # the separator that ends the split is in no file

    def bar(file: FileCount) -> Bar:
        return Bar(file.name, file.tokens, f"{file.tokens:,} ({file.tokens / total:.1%})")

    others = [split.other_files] if split.other_files else []
    words = [f"and {other.name} with {bar(other).shown} tokens" for other in others]
    return join(
        (
            bar_chart([bar(file) for file in split.files], title="tokens per file"),
            *(tag("p", word, class_="soft") for word in words),
            tag(
                "details",
                tag("summary", "as a table, with document counts"),
                table(
                    ("file", "documents", "tokens"),
                    [(f.name, f.documents, f.tokens) for f in (*split.files, *others)],
                ),
            ),
        )
    )


def _samples(split: SplitStatistics) -> list[Html]:
    parts = []
    for sample in split.samples:
        words = f" document {number(sample.document)}, {number(sample.num_tokens)} tokens"
        parts += [
            tag("p", tag("b", sample.name), tag("span", words, class_="soft"), class_="wide"),
            tag("pre", sample.text, "…" if sample.is_cut else ""),
        ]
    return parts


def _section(section: Section) -> Html:
    more = f"and {section.num_more:,} more"
    return card(
        section.title,
        table(section.columns, section.rows),
        *([tag("p", more, class_="soft")] if section.num_more else []),
    )


def _tokenizer(report: DataReport) -> Html:
    tokenizer = report.store.manifest["tokenizer"]
    rows = [
        ("kind", tokenizer["kind"]),
        ("vocabulary", number(tokenizer["vocab_size"])),
        ("separator", f"id {tokenizer['separator']}"),
        *((name, f"id {i}") for name, i in tokenizer["special"].items()),
        *([] if tokenizer["special"] else [("special tokens", "none")]),
        ("sha256", _digest(tokenizer["sha256"])),
        ("sha256 of all data", _digest(report.store.digest)),
    ]
    return card("Tokenizer", table(("", ""), rows))


def _digest(sha256: str) -> Html:
    return tag("code", sha256[:16], title=sha256)


def _settings(report: DataReport) -> Html:
    rows = [
        (s.name, tag("span", s.shown, class_="soft") if s.is_default else tag("b", s.shown))
        for s in made_with(report)
    ]
    return card("Settings", table(("", ""), rows))
