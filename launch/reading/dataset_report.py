"""A prepared folder read into one object: what was checked, counts per split, settings."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from configs.data import PrepareConfig
from data.object_store import is_remote
from data.prepare.text.corpus import SPLITS
from data.remote_folders import fetch_folder
from data.token_statistics import SplitStatistics, count_split
from data.token_store import TokenStore, manifest_entries, open_store
from launch.printable import visible


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """A prepared folder."""

    folder: str
    """As it was given."""
    store: TokenStore
    sequence_len: int
    splits: dict[str, SplitStatistics]
    """Those that are not empty."""
    num_files: int
    """Files that were checked against the manifest."""
    num_bytes: int
    has_checksums: bool
    """Whether their checksums were compared, or only their sizes."""

    def check_message(self) -> str:
        passed = (
            "checksums match"
            if self.has_checksums
            else "size check passed; --verify compares checksums"
        )
        return f"{self.num_files:,} files, {self.num_bytes:,} bytes: {passed}"

    def to_json(self) -> dict[str, Any]:
        manifest = self.store.manifest
        return {
            "folder": self.folder,
            "digest": self.store.digest,
            "source": manifest["source"],
            "checked": {
                "files": self.num_files,
                "bytes": self.num_bytes,
                "every_byte": self.has_checksums,
            },
            "tokenizer": manifest["tokenizer"],
            "sequence_len": self.sequence_len,
            "splits": {name: dataclasses.asdict(split) for name, split in self.splits.items()},
            "report": self.store.report,
            "made_with": manifest["made_with"],
        }


def read_data(folder: str, cache_dir: Path, *, sequence_len: int, checksums: bool) -> DataReport:
    """Returns what a prepared folder holds, local or in an object store.

    Raises:
        SettingsError: an object store cannot be read.
        IntegrityError: the folder is not as its manifest says.
    """
    path = fetch_folder(folder, cache_dir) if is_remote(folder) else Path(folder).expanduser()
    store = open_store(path, "digests" if checksums else "sizes")
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
        has_checksums=checksums,
    )


class PreparedSetting(NamedTuple):
    """A setting of the preparation."""

    name: str
    shown: str
    is_default: bool


def made_with(report: DataReport) -> list[PreparedSetting]:
    defaults = json.loads(json.dumps(dataclasses.asdict(PrepareConfig())))
    return [
        PreparedSetting(
            f"data.{name}",
            " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value),
            name in defaults and value == defaults[name],
        )
        for name, value in report.store.manifest["made_with"].items()
    ]


def token_label(text: str) -> str:
    """Returns the text of a token with its spaces made visible."""
    return visible(text).replace(" ", "·")


def bin_label(first: int, last: int) -> str:
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def frequency_note(split: SplitStatistics) -> str:
    """Returns in a line which tokens were counted, and how many of the vocabulary do not occur."""
    found = split.frequencies
    counted = "all" if found.is_whole else f"an even sample of {found.counted_tokens:,} of"
    return (
        f"counted over {counted} {split.tokens:,} tokens; {found.unseen:,} entries of the "
        "vocabulary do not occur"
    )
