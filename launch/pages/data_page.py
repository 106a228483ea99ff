"""The page of a prepared folder: what `./tessera inspect DATASET --html FILE` writes."""

from data.token_statistics import FileCount, SplitStatistics
from launch.pages.charts import Bar, bar_chart, column_chart, log_log_plot
from launch.pages.page import Html, card, cards, join, number, page, table, tag, tiles
from launch.reading.dataset_report import (
    DataReport,
    bin_words,
    frequency_words,
    made_with,
    token_words,
)
from launch.reading.excluded import Section, left_out


def data_page(report: DataReport) -> Html:
    """Returns the page of a prepared folder."""
    manifest = report.store.manifest
    name = report.folder.rstrip("/").rsplit("/", 1)[-1]
    sections = left_out(report.store.report)
    return page(
        f"{name}: prepared data",
        tag("h1", name),
        tag("p", manifest["source"], class_="soft wide"),
        tag("p", report.check_words(), class_="soft wide"),
        *(_split(name, split, report.sequence_len) for name, split in report.splits.items()),
        tag("h2", "Left out and changed"),
        cards(*map(_section, sections)),
        *([] if sections else [tag("p", "Nothing was left out or changed.", class_="soft")]),
        tag("h2", "How it was made"),
        cards(_tokenizer(report), _settings(report)),
    )


def _split(name: str, split: SplitStatistics, sequence_len: int) -> Html:
    lengths = [
        Bar(
            _short_bin(bin.first),
            bin.documents,
            f"{bin_words(bin.first, bin.last)} tokens: {bin.documents:,} documents",
        )
        for bin in split.lengths
    ]
    longest = split.lengths[-1].last
    words = f"a bar begins at its number and ends where the next begins, the last at {longest:,}"
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
                    "Lengths of documents",
                    column_chart(lengths, x_title="tokens in the document", y_title="documents"),
                    tag("p", words, class_="soft"),
                ),
                card(
                    "Token frequencies",
                    log_log_plot(
                        split.frequencies.ranks, x_title="rank of the token", y_title="occurrences"
                    ),
                    tag("p", frequency_words(split), class_="soft"),
                ),
            ),
            card("Most frequent tokens", _frequent(split)),
            card("Files", _files(split)),
            card(
                f"An epoch in rows of {sequence_len:,} tokens",
                table(
                    ("packing", "rows", "padding", "share of padding"),
                    [
                        (p.packing, p.rows, p.padding, f"{p.padding_share:.2%}")
                        for p in split.packings
                    ],
                ),
            ),
            card("How some documents begin", *_samples(split)),
        )
    )


def _short_bin(first: int) -> str:
    return f"{first // 1024}k" if first >= 1024 else str(first)


def _frequent(split: SplitStatistics) -> Html:
    chips = (
        tag(
            "div",
            tag("code", token_words(token.text), title=f"id {token.token}"),
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
            bar_chart([bar(file) for file in split.files], title="tokens of each file"),
            *(tag("p", word, class_="soft") for word in words),
            tag(
                "details",
                tag("summary", "as a table, with documents"),
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
    said = report.store.manifest["tokenizer"]
    rows = [
        ("kind", said["kind"]),
        ("vocabulary", number(said["vocab_size"])),
        ("separator", f"id {said['separator']}"),
        *((name, f"id {i}") for name, i in said["special"].items()),
        *([] if said["special"] else [("special tokens", "none")]),
        ("sha256", _digest(said["sha256"])),
        ("sha256 of all data", _digest(report.store.digest)),
    ]
    return card("Tokenizer", table(("", ""), rows))


def _digest(sha256: str) -> Html:
    return tag("code", sha256[:16], title=sha256)


def _settings(report: DataReport) -> Html:
    rows = [
        (s.name, tag("span" if s.is_usual else "b", s.shown, class_="soft" if s.is_usual else None))
        for s in made_with(report)
    ]
    return card("Settings", table(("", ""), rows))
