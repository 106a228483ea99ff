"""What a prepared folder holds, for a person at a terminal, a page or a tool."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from configs.data import PrepareConfig
from data.atomic_files import atomic_write
from data.object_store import is_remote
from data.prepare.text.corpus import SPLITS
from data.remote_folders import fetch_folder
from data.token_statistics import SplitStatistics, count_split
from data.token_store import TokenStore, manifest_entries, open_store
from launch.printable import first_lines, visible
from launch.reading.excluded import left_out

_BAR_CHARACTERS = 32
_NUM_SPECIAL = 8


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """All that is shown of a prepared folder."""

    folder: str
    """As it was given."""
    store: TokenStore
    sequence_len: int
    splits: dict[str, SplitStatistics]
    """Those that are not empty."""
    num_files: int
    """Files that were checked against the manifest."""
    num_bytes: int
    every_byte: bool
    """Whether all their bytes were, or only their sizes."""

    def check_words(self) -> str:
        """Returns in a line what was checked."""
        what = (
            "every byte is as the manifest says"
            if self.every_byte
            else "their sizes are as the manifest says; --verify reads every byte"
        )
        return f"checked {self.num_files:,} files of {self.num_bytes:,} bytes: {what}"

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON can hold it."""
        manifest = self.store.manifest
        return {
            "folder": self.folder,
            "digest": self.store.digest,
            "source": manifest["source"],
            "checked": {
                "files": self.num_files,
                "bytes": self.num_bytes,
                "every_byte": self.every_byte,
            },
            "tokenizer": manifest["tokenizer"],
            "sequence_len": self.sequence_len,
            "splits": {name: dataclasses.asdict(split) for name, split in self.splits.items()},
            "report": self.store.report,
            "made_with": manifest["made_with"],
        }


def inspect_data(
    folder: str,
    cache_dir: Path,
    *,
    sequence_len: int,
    every_byte: bool,
    page: Path | None,
    as_json: bool,
) -> None:
    """Shows what a prepared folder holds, and writes the page if there is to be one.

    Raises:
        SettingsError: an object store cannot be read.
        IntegrityError: the folder is not as its manifest says.
    """
    report = read_data(folder, cache_dir, sequence_len=sequence_len, every_byte=every_byte)
    if page is not None:
        from launch.pages.data_page import data_page

        with atomic_write(page) as temporary:
            temporary.write_text(data_page(report), encoding="utf-8")
    if as_json:
        print(json.dumps(report.to_json()))
        return
    console = Console(highlight=False, markup=False, emoji=False)
    _show(console, report)
    if page is not None:
        console.print(f"\nwrote {visible(str(page))}", soft_wrap=True)


def read_data(folder: str, cache_dir: Path, *, sequence_len: int, every_byte: bool) -> DataReport:
    """Returns all that is shown of a prepared folder, local or in an object store."""
    path = fetch_folder(folder, cache_dir) if is_remote(folder) else Path(folder).expanduser()
    store = open_store(path, "digests" if every_byte else "sizes")
    entries = manifest_entries(store.manifest)
    return DataReport(
        folder=folder,
        store=store,
        sequence_len=sequence_len,
        splits={
            name: count_split(store, name, sequence_len)
            for name in SPLITS
            if store.split(name).num_documents
        },
        num_files=len(entries),
        num_bytes=sum(entry["size"] for entry in entries),
        every_byte=every_byte,
    )


class Setting(NamedTuple):
    """A setting of the preparation."""

    name: str
    shown: str
    is_usual: bool
    """Whether it is what it is where none is given."""


def made_with(report: DataReport) -> list[Setting]:
    """Returns the settings that the folder was made with."""
    usual = json.loads(json.dumps(dataclasses.asdict(PrepareConfig())))
    return [
        Setting(
            f"data.{name}",
            " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value),
            name in usual and value == usual[name],
        )
        for name, value in report.store.manifest["made_with"].items()
    ]


def token_words(text: str) -> str:
    """Returns the text of a token with its spaces made visible."""
    return visible(text).replace(" ", "·")


def bin_words(first: int, last: int) -> str:
    """Returns how a bin of lengths is called."""
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def _show(console: Console, report: DataReport) -> None:
    manifest = report.store.manifest
    tokenizer = manifest["tokenizer"]
    settings = " ".join(f"{s.name}={s.shown}" for s in made_with(report) if not s.is_usual)
    special = list(tokenizer["special"])
    more = f" and {len(special) - _NUM_SPECIAL} more" if len(special) > _NUM_SPECIAL else ""
    console.print(f"{visible(report.folder)}: {visible(manifest['source'])}", style="bold")
    for line in (
        report.check_words(),
        f"tokenizer: {tokenizer['kind']}, {tokenizer['vocab_size']:,} entries, separator "
        f"{tokenizer['separator']}, special tokens: "
        f"{', '.join(special[:_NUM_SPECIAL]) or 'none'}{more}",
        f"made with: {settings}",
    ):
        console.print(visible(line), soft_wrap=True)
    names = ("tokens", "documents", "characters", "bytes", "bytes_per_token", "shards")
    columns = ("split", *(name.replace("_", " ") for name in names))
    rows = [
        [name, *(dataclasses.asdict(split)[column] for column in names)]
        for name, split in report.splits.items()
    ]
    _show_table(console, "what is here", columns, rows)
    for name, split in report.splits.items():
        _show_split(console, name, split, report.sequence_len)
    sections = left_out(report.store.report)
    for section in sections:
        _show_table(console, section.title, section.columns, section.rows)
        if section.num_more:
            console.print(f"  and {section.num_more:,} more")
    if not sections:
        console.print("\nnothing was left out or changed", style="bold")


def _show_split(console: Console, name: str, split: SplitStatistics, sequence_len: int) -> None:
    others = [split.other_files] if split.other_files else []
    rows = [[file.name, file.documents, file.tokens] for file in (*split.files, *others)]
    _show_table(console, f"{name}: files", ("file", "documents", "tokens"), rows)
    most = max(bin.documents for bin in split.lengths)
    rows = [
        [
            bin_words(bin.first, bin.last),
            bin.documents,
            "█" * -(-bin.documents * _BAR_CHARACTERS // most),
        ]
        for bin in split.lengths
    ]
    _show_table(console, f"{name}: lengths of documents", ("tokens", "documents", ""), rows)
    rows = [[p.packing, p.rows, p.padding, f"{p.padding_share:.2%}"] for p in split.packings]
    columns = ("packing", "rows", "padding", "share")
    _show_table(console, f"{name}: an epoch in rows of {sequence_len:,} tokens", columns, rows)
    console.print(f"\n{name}: the most frequent tokens", style="bold")
    console.print(f"  {frequency_words(split)}")
    frequent = [Text(f"{token_words(t.text)} {t.count:,}") for t in split.frequencies.frequent]
    console.print(_indented(Columns(frequent, padding=(0, 3)), 2))
    console.print(f"\n{name}: how some documents begin", style="bold")
    for sample in split.samples:
        head = f"{visible(sample.name)}  document {sample.document:,}, {sample.num_tokens:,} tokens"
        console.print(f"  {head}", style="green")
        text = first_lines(sample.text + "…" * sample.is_cut, console.width - 4)
        console.print(_indented(Text(text, "dim"), 4))


def frequency_words(split: SplitStatistics) -> str:
    """Returns in a line what frequencies were counted from, and what was not there."""
    found = split.frequencies
    whole = "all" if found.is_whole else "evenly spread parts,"
    return (
        f"counted in {whole} {found.counted_tokens:,} of {split.tokens:,} tokens; {found.unseen:,} "
        "entries of the vocabulary do not occur there"
    )


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
