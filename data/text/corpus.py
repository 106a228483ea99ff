"""Where text comes from: one's own files, or the standard library that every Python brings."""

import hashlib
import os
import platform
import sysconfig
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from configs.check import require
from configs.data import STDLIB, PrepareConfig
from data.files import digest_file
from data.text.readers import topic_names
from data.text.sources import (
    Part,
    SourceFile,
    find_files,
    plan_parts,
    plan_tasks,
    record_name,
    source_file,
)

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")

_STDLIB_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
_STDLIB_VALIDATION = 20  # one document in so many validates, by the digest of its name
_TOPICS = "pydoc_data/topics.py"


@dataclass(frozen=True)
class Corpus:
    """Files of text, and the tasks that they are read in."""

    description: str
    files: tuple[SourceFile, ...]
    tasks: tuple[tuple[Part, ...], ...]
    is_stdlib: bool
    not_read: dict[str, int]
    """Files beside them of kinds that are not read, by suffix."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.num_bytes for file in self.files)

    @property
    def has_tokens(self) -> bool:
        """Whether the files hold tokens, not text."""
        return self.files[0].kind == "tokens"

    def digest(self) -> str:
        """Returns the SHA-256 of the names and bytes of all files, which reads all of them."""
        total = hashlib.sha256()
        for file in self.files:
            total.update(os.fsencode(f"{file.name}\0{digest_file(Path(file.path))}\n"))
        return total.hexdigest()

    def document_name(self, file: int, number: int) -> str:
        """Returns the name of a document: its file, and its line or row from 1 where it has one."""
        name, kind = self.files[file].name, self.files[file].kind
        return topic_names()[number] if kind == "topics" else record_name(name, kind, number)

    def split_of(self, file: int, number: int) -> Split | None:
        """Returns which split a document belongs to, None where the split cuts across files.

        The standard library is split by document. One's own text is cut at one place: of all
        characters the last data.validation_fraction validate; a document at the cut becomes two.
        """
        if not self.is_stdlib:
            return None
        name = self.document_name(file, number)
        digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        return "validation" if digest % _STDLIB_VALIDATION == 0 else "train"

    def changed_files(self) -> list[str]:
        """Returns the names of files that are no longer as they were found."""
        return [file.name for file in self.files if not _is_as_found(file)]

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` makes the same corpus from."""
        return asdict(self)

    @staticmethod
    def from_json(content: dict[str, Any]) -> "Corpus":
        """Returns the corpus that `to_json` wrote."""
        files = tuple(SourceFile(**file) for file in content["files"])
        tasks = tuple(tuple(Part(**part) for part in task) for task in content["tasks"])
        return Corpus(
            content["description"], files, tasks, content["is_stdlib"], content["not_read"]
        )


def open_corpus(config: PrepareConfig) -> Corpus:
    """Returns the corpus that data.path names.

    Raises:
        SettingsError: there is none, or nothing in it can be read.
    """
    if config.path is None:
        require(
            False,
            "data.path=None must name a text: --data.path FILE_OR_DIR (.txt, .jsonl, .parquet, a "
            f"folder of them, ...), or {STDLIB} for the text that comes with Python",
        )
    if config.path == STDLIB:
        (root, files), not_read = _stdlib_files(), {}
        description = f"the standard library of Python {platform.python_version()}"
    else:
        root, files, not_read = find_files(config)
        description = str(root)
    tasks = tuple(map(tuple, plan_tasks(files, plan_parts(files))))
    return Corpus(description, tuple(files), tasks, config.path == STDLIB, not_read)


def _stdlib_files() -> tuple[Path, list[SourceFile]]:
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(
        path
        for path in root.rglob("*.py")
        if not _STDLIB_LEFT_OUT.intersection(path.relative_to(root).parts)
    )
    require(
        bool(paths), f"data.path={STDLIB}: no Python sources in {root}; give a text of your own"
    )
    names = [path.relative_to(root).as_posix() for path in paths]
    return root, [
        source_file(path, name, "topics" if name == _TOPICS else "python")
        for path, name in zip(paths, names, strict=True)
    ]


def _is_as_found(file: SourceFile) -> bool:
    path = Path(file.path)
    return path.is_file() and source_file(path, file.name, file.kind) == file
