"""The corpus that data.path names: files of text or tokens, or Python's standard library."""

import hashlib
import os
import platform
import sysconfig
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from configs.data import STDLIB, PrepareConfig
from configs.require import require
from data.atomic_files import digest_file
from data.prepare.text.parquet_arrow import has_token_rows
from data.prepare.text.readers import topic_names
from data.prepare.text.source_files import (
    ByteRange,
    SourceFile,
    Split,
    find_files,
    plan_ranges,
    plan_tasks,
    record_name,
    source_file,
)
from data.prepare.text.split_names import assign_splits
from data.prepare.text.token_files import choose_dtype

SPLITS: tuple[Split, ...] = ("train", "validation")

_STDLIB_EXCLUDED = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
_STDLIB_VALIDATION = 20  # one document in 20 validates, by the digest of its name
_TOPICS = "pydoc_data/topics.py"


@dataclass(frozen=True)
class Corpus:
    """Files of text or tokens, and their byte ranges in tasks; plan.json has the same fields."""

    description: str
    files: tuple[SourceFile, ...]
    tasks: tuple[tuple[ByteRange, ...], ...]
    is_stdlib: bool
    not_read: dict[str, int]
    """Number of other files that are ignored, by suffix."""
    notes: tuple[str, ...] = ()
    """How the files are read, for the log and the report."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.num_bytes for file in self.files)

    @property
    def has_tokens(self) -> bool:
        """Whether the files hold tokens rather than text."""
        return self.files[0].has_tokens

    def digest(self) -> str:
        """Returns the SHA-256 of the names and bytes of all files; reads every byte."""
        total = hashlib.sha256()
        for file in self.files:
            digest = f"{digest_file(Path(file.path))}{file.dtype or ''}"
            total.update(os.fsencode(f"{file.name}\0{digest}\n"))
        return total.hexdigest()

    def document_name(self, file: int, number: int) -> str:
        """Returns the name of a document: its file, with its line or row from 1 if it has one."""
        name, kind = self.files[file].name, self.files[file].kind
        return topic_names()[number] if kind == "topics" else record_name(name, kind, number)

    def split_of(self, file: int, number: int) -> Split | None:
        """Returns the split of a document by the name of its file or its own name.

        None leaves it to data.validation_fraction: by its digest, or by position in a single text.
        """
        if not self.is_stdlib:
            return self.files[file].split
        name = self.document_name(file, number)
        digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        return "validation" if digest % _STDLIB_VALIDATION == 0 else "train"

    def changed_files(self) -> list[str]:
        """Returns the names of files that changed since the corpus was opened."""
        return [file.name for file in self.files if not _is_as_found(file)]

    def to_json(self) -> dict[str, Any]:
        """Returns the corpus as JSON holds it."""
        return asdict(self)

    @staticmethod
    def from_json(content: dict[str, Any]) -> "Corpus":
        """Returns the corpus that `to_json` wrote."""
        files = tuple(SourceFile(**file) for file in content["files"])
        tasks = tuple(
            tuple(ByteRange(**byte_range) for byte_range in task) for task in content["tasks"]
        )
        return Corpus(**{**content, "files": files, "tasks": tasks, "notes": (*content["notes"],)})


def open_corpus(config: PrepareConfig, vocab_size: int | None = None) -> Corpus:
    """Returns the corpus that data.path names.

    Args:
        vocab_size: of the given tokenizer, if any; it may decide the width of token ids.

    Raises:
        SettingsError: there is none, or nothing in it can be read.
    """
    notes: list[str] = []
    if config.path is None:
        require(
            False,
            "data.path=None must name a text: --data.path FILE_OR_DIR (.txt, .jsonl, .parquet, a "
            f"folder of them, ...), or {STDLIB} for Python's standard library",
        )
    if config.path == STDLIB:
        (root, files), not_read = _stdlib_files(), {}
        description = f"the standard library of Python {platform.python_version()}"
    else:
        root, files, not_read = find_files(config)
        description = str(root)
        files, notes = assign_splits(files, config)
        files = _with_tokens(files, config, vocab_size, notes)
        prose = Counter(Path(file.name).suffix for file in files if file.is_prose)
        if prose:
            kinds = ", ".join(f"{number:,} {suffix}" for suffix, number in sorted(prose.items()))
            notes.append(f"each of these files is one document: {kinds}")
    tasks = tuple(map(tuple, plan_tasks(files, plan_ranges(files))))
    return Corpus(
        description, tuple(files), tasks, config.path == STDLIB, not_read, notes=tuple(notes)
    )


def open_overlap(config: PrepareConfig, path: str) -> tuple[PrepareConfig, Corpus]:
    """Returns an evaluation text of data.decontaminate_from, all its files whatever their names."""
    own = replace(config, path=path, clean=(), decontaminate_from=(), split_files="ignore")
    return own, open_corpus(own)


def _with_tokens(
    files: Sequence[SourceFile], config: PrepareConfig, vocab_size: int | None, notes: list[str]
) -> list[SourceFile]:
    """Returns files with the dtype of their token ids; raises SettingsError if some hold text."""
    tables = [file for file in files if file.kind in ("parquet", "arrow")]
    if tables and has_token_rows(tables[0], config):
        files = [replace(file, kind="token_rows") if file in tables else file for file in files]
        notes.append(f"each row of {config.text_field} is a document of token ids")
    texts = [file.name for file in files if not file.has_tokens]
    arrays = [file.name for file in files if file.has_tokens]
    require(
        not (texts and arrays),
        f"data.path={config.path} must not mix text with arrays of tokens: "
        f"{', '.join([*texts[:1], *arrays[:1]])}; name one kind with a glob, such as "
        "'FOLDER/**/*.txt'",
    )
    found = []
    chosen: Counter[tuple[str, str]] = Counter()
    for file in files:
        dtype = None
        if file.kind == "tokens":
            dtype, by = choose_dtype(Path(file.path), config, vocab_size)
            chosen.update([(dtype, by)] if dtype else [])
        found.append(replace(file, dtype=dtype))
    notes += [
        f"token ids are read as {dtype} in {n:,} .bin (by: {by})"
        for (dtype, by), n in chosen.items()
    ]
    return found


def _stdlib_files() -> tuple[Path, list[SourceFile]]:
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(
        path
        for path in root.rglob("*.py")
        if not _STDLIB_EXCLUDED.intersection(path.relative_to(root).parts)
    )
    require(
        bool(paths), f"data.path={STDLIB}: no .py files in {root}; set data.path to another text"
    )
    names = [path.relative_to(root).as_posix() for path in paths]
    return root, [
        source_file(path, name, "topics" if name == _TOPICS else "python")
        for path, name in zip(paths, names, strict=True)
    ]


def _is_as_found(file: SourceFile) -> bool:
    path = Path(file.path)
    if not path.is_file():
        return False
    now = source_file(path, file.name, file.kind)
    return (now.num_bytes, now.mtime_ns) == (file.num_bytes, file.mtime_ns)
