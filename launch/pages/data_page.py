"""The page of a prepared folder: what `./tessera inspect DATASET --html FILE` writes."""

from data.token_statistics import SplitStatistics
from launch.pages.curves import Curve, line_chart
from launch.pages.page import Html, bar, card, cards, chips, join, note, page, table, tag, tiles
from launch.reading.dataset_report import (
    DataReport,
    bin_label,
    frequency_note,
    made_with,
    token_label,
)
from launch.reading.exclusion_tables import Section, excluded_sections


def data_page(report: DataReport) -> Html:
    manifest = report.store.manifest
    name = report.folder.rstrip("/").rsplit("/", 1)[-1]
    sections = excluded_sections(report.store.report)
    return page(
        f"{name}: prepared data",
        tag("h1", name),
        note(manifest["source"]),
        note(report.check_message()),
        *(_split(name, split, report.sequence_len) for name, split in report.splits.items()),
        tag("h2", "Excluded and changed"),
        cards(*map(_section, sections)),
        None if sections else note("Nothing was excluded or changed."),
        tag("h2", "Preparation"),
        cards(_tokenizer(report), _settings(report)),
    )


def _split(name: str, split: SplitStatistics, sequence_len: int) -> Html:
    numbers = {
        "tokens": split.tokens,
        "documents": split.documents,
        "characters": split.characters,
        "bytes": split.bytes,
        "bytes per token": f"{split.bytes_per_token:.2f}",
        "shards": split.shards,
    }
    most = max(bin.documents for bin in split.lengths)
    lengths = [
        (bin_label(bin.first, bin.last), bin.documents, bar(bin.documents / most))
        for bin in split.lengths
    ]
    ranks = line_chart(
        [Curve("occurrences", split.frequencies.ranks)],
        x_title="token rank, log scale",
        y_title="occurrences",
        log_x=True,
        log_y=True,
    )
    frequent = (
        (token_label(token.text), f"{token.count:,}", f"id {token.token}")
        for token in split.frequencies.frequent
    )
    packings = [(p.packing, p.rows, p.padding, f"{p.padding_share:.2%}") for p in split.packings]
    names = ("packing", "sequences", "padding tokens", "padding share")
    parts = (
        tag("h2", f"Split: {name}"),
        tiles(numbers),
        cards(
            card("Document lengths", table(("tokens", "documents", ""), lengths)),
            card("Token frequencies", ranks, note(frequency_note(split))),
        ),
        card("Most frequent tokens", chips(frequent)),
        card("Files", _files(split)),
        card(f"One epoch in sequences of {sequence_len:,} tokens", table(names, packings)),
        card("Beginnings of some documents", *_samples(split)),
    )
    return join(parts)


def _files(split: SplitStatistics) -> Html:
    total = max(split.tokens - 1, 1)  # the separator that ends the split is in no file
    others = [split.other_files] if split.other_files else []
    rows = []
    for file in (*split.files, *others):
        share = file.tokens / total
        rows.append((file.name, file.documents, file.tokens, f"{share:.1%}", bar(share)))
    return table(("file", "documents", "tokens", "share", ""), rows)


def _samples(split: SplitStatistics) -> list[Html]:
    parts = []
    for sample in split.samples:
        where = f" document {sample.document:,}, {sample.num_tokens:,} tokens"
        parts += [
            tag("p", tag("b", sample.name), tag("span", where, class_="soft"), class_="wide"),
            tag("pre", sample.text, "…" if sample.is_cut else ""),
        ]
    return parts


def _section(section: Section) -> Html:
    more = note(f"and {section.num_more:,} more") if section.num_more else None
    return card(section.title, table(section.columns, section.rows), more)


def _tokenizer(report: DataReport) -> Html:
    tokenizer = report.store.manifest["tokenizer"]
    rows = [
        ("kind", tokenizer["kind"]),
        ("vocabulary", f"{tokenizer['vocab_size']:,}"),
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
