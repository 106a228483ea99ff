"""Shows at a terminal what a prepared folder holds."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from data.token_statistics import SplitStatistics
from launch.printable import first_lines, visible
from launch.reading.dataset_report import (
    DataReport,
    bin_label,
    frequency_note,
    made_with,
    token_label,
)
from launch.reading.exclusion_tables import excluded_sections

_BAR_CHARACTERS = 32
_NUM_SPECIAL = 8


def show_dataset(report: DataReport) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    manifest = report.store.manifest
    tokenizer = manifest["tokenizer"]
    settings = " ".join(f"{s.name}={s.shown}" for s in made_with(report) if not s.is_default)
    special = list(tokenizer["special"])
    more = f" and {len(special) - _NUM_SPECIAL} more" if len(special) > _NUM_SPECIAL else ""
    console.print(f"{visible(report.folder)}: {visible(manifest['source'])}", style="bold")
    for line in (
        report.check_message(),
        f"tokenizer: {tokenizer['kind']}, {tokenizer['vocab_size']:,} entries, separator "
        f"{tokenizer['separator']}, special tokens: "
        f"{', '.join(special[:_NUM_SPECIAL]) or 'none'}{more}",
        f"prepared with: {settings}",
    ):
        console.print(visible(line), soft_wrap=True)
    names = ("tokens", "documents", "characters", "bytes", "bytes_per_token", "shards")
    columns = ("split", *(name.replace("_", " ") for name in names))
    rows = [
        [name, *(dataclasses.asdict(split)[column] for column in names)]
        for name, split in report.splits.items()
    ]
    _show_table(console, "contents", columns, rows)
    for name, split in report.splits.items():
        _show_split(console, name, split, report.sequence_len)
    sections = excluded_sections(report.store.report)
    for section in sections:
        _show_table(console, section.title, section.columns, section.rows)
        if section.num_more:
            console.print(f"  and {section.num_more:,} more")
    if not sections:
        console.print("\nnothing was excluded or changed", style="bold")


def _show_split(console: Console, name: str, split: SplitStatistics, sequence_len: int) -> None:
    others = [split.other_files] if split.other_files else []
    rows = [[file.name, file.documents, file.tokens] for file in (*split.files, *others)]
    _show_table(console, f"{name}: files", ("file", "documents", "tokens"), rows)
    most = max(bin.documents for bin in split.lengths)
    rows = [
        [
            bin_label(bin.first, bin.last),
            bin.documents,
            "█" * -(-bin.documents * _BAR_CHARACTERS // most),
        ]
        for bin in split.lengths
    ]
    _show_table(console, f"{name}: document lengths", ("tokens", "documents", ""), rows)
    rows = [[p.packing, p.rows, p.padding, f"{p.padding_share:.2%}"] for p in split.packings]
    columns = ("packing", "sequences", "padding tokens", "padding share")
    _show_table(
        console, f"{name}: one epoch in sequences of {sequence_len:,} tokens", columns, rows
    )
    console.print(f"\n{name}: most frequent tokens", style="bold")
    console.print(f"  {frequency_note(split)}")
    frequent = [Text(f"{token_label(t.text)} {t.count:,}") for t in split.frequencies.frequent]
    console.print(_indented(Columns(frequent, padding=(0, 3)), 2))
    console.print(f"\n{name}: beginnings of some documents", style="bold")
    for sample in split.samples:
        head = f"{visible(sample.name)}  document {sample.document:,}, {sample.num_tokens:,} tokens"
        console.print(f"  {head}", style="green")
        text = first_lines(sample.text + "…" * sample.is_cut, console.width - 4)
        console.print(_indented(Text(text, "dim"), 4))


def _show_table(
    console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
    console.print(f"\n{visible(title)}", style="bold")
    table = Table(box=None, show_header=any(columns), header_style="dim", padding=(0, 1))
    for i, column in enumerate(columns):
        is_number = all(isinstance(row[i], int | float) for row in rows)
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console.print(_indented(table, 1))


def _indented(content: RenderableType, num_columns: int) -> Padding:
    return Padding(content, (0, 0, 0, num_columns), expand=False)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}"
    return f"{value:,}" if isinstance(value, int) else visible(value)
