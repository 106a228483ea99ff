"""The corpus that data.path names: files of text or tokens, or Python's standard library."""

import hashlib
import os
import platform
import re
import sysconfig
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
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
from data.prepare.text.token_files import choose_dtype

SPLITS: tuple[Split, ...] = ("train", "validation")

_STDLIB_EXCLUDED = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
_STDLIB_VALIDATION = 20  # one document in 20 validates, by the digest of its name
_TOPICS = "pydoc_data/topics.py"
_SPLIT_WORDS: dict[str, Split | None] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": None,
}
_WORD = re.compile(rf"(?<![a-z0-9])({'|'.join(_SPLIT_WORDS)})(?![a-z])")


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
        return sum(file.num_bytes for file in self.files)

    @property
    def has_tokens(self) -> bool:
        return self.files[0].has_tokens

    def digest(self) -> str:
        """Returns the SHA-256 of the names and bytes of all files; reads every byte."""
        total = hashlib.sha256()
        for file in self.files:
            digest = f"{digest_file(Path(file.path))}{file.dtype or ''}"
            total.update(os.fsencode(f"{file.name}\0{digest}\n"))
        return total.hexdigest()

    def document_name(self, file: int, number: int) -> str:
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
        return [file.name for file in self.files if not _is_as_found(file)]

    @staticmethod
    def from_json(content: dict[str, Any]) -> "Corpus":
        files = tuple(SourceFile(**file) for file in content["files"])
        tasks = tuple(tuple(ByteRange(**part) for part in task) for task in content["tasks"])
        return Corpus(**{**content, "files": files, "tasks": tasks, "notes": (*content["notes"],)})


def open_corpus(config: PrepareConfig, vocab_size: int | None = None) -> Corpus:
    """Returns the corpus that data.path names; vocab_size may decide the width of token ids."""
    require_path(config.path)
    notes: list[str] = []
    if config.path == STDLIB:
        (root, files), not_read = _stdlib_files(), {}
        description = f"the standard library of Python {platform.python_version()}"
    else:
        root, files, not_read = find_files(config)
        description = str(root)
        files, notes = _assign_splits(files, config)
        files = _with_tokens(files, config, vocab_size, notes)
        prose = Counter(Path(file.name).suffix for file in files if file.is_prose)
        if prose:
            kinds = ", ".join(f"{number:,} {suffix}" for suffix, number in sorted(prose.items()))
            notes.append(f"each of these files is one document: {kinds}")
    tasks = tuple(map(tuple, plan_tasks(files, plan_ranges(files))))
    return Corpus(
        description, tuple(files), tasks, config.path == STDLIB, not_read, notes=tuple(notes)
    )


def require_path(path: str | None) -> None:
    require(
        path is not None,
        "data.path=None must name a text: --data.path FILE_OR_DIR (.txt .jsonl .parquet, a folder "
        f"of them, ...), or {STDLIB} for Python's standard library",
    )


def open_overlap(config: PrepareConfig, path: str) -> tuple[PrepareConfig, Corpus]:
    """Returns an evaluation text of data.decontaminate_from, all its files whatever their names."""
    own = replace(config, path=path, clean=(), decontaminate_from=(), split_files="ignore")
    return own, open_corpus(own)


def _split_word(name: str) -> str | None:
    """Returns the word in a file's name, or else in its folders' names, that names a split.

    The last one of a name counts: train-00000-of-00002.parquet, wiki.valid.txt, val/0.bin.
    """
    words = (_WORD.findall(part.lower()) for part in reversed(PurePosixPath(name).parts))
    return next((found[-1] for found in words if found), None)


def _assign_splits(
    files: Sequence[SourceFile], config: PrepareConfig
) -> tuple[list[SourceFile], list[str]]:
    """Returns the files to read with their splits, and notes about what their names decided.

    Names of held-out splits count only if other files are named train. If some files validate, all
    others train; with data.validation_fraction=1 only the validation files are read.
    """
    words = {file.name: None if file.is_prose else _split_word(file.name) for file in files}
    splits = {name: word and _SPLIT_WORDS[word] for name, word in words.items()}
    tests = [name for name, word in words.items() if word == "test"]
    validates = [name for name, split in splits.items() if split == "validation"]
    if config.split_files == "ignore" or "train" not in splits.values():
        return list(files), []
    if not tests and not validates:
        return list(files), []
    trains = [file.name for file in files if file.name not in {*tests, *validates}]
    use = "to train on"
    if config.validation_fraction == 1:
        use = "excluded" if validates else "to validate on"
    excluded = {*tests, *(trains if use == "excluded" else ())}
    kept = [
        replace(file, split=(splits[file.name] or "train") if validates else None)
        for file in files
        if file.name not in excluded
    ]
    notes = [
        f"{_some(names)} {what}"
        for names, what in (
            (trains, use),
            (validates, "to validate on"),
            (tests, "excluded"),
        )
        if names
    ]
    return kept, [
        f"files are named as splits: {', '.join(notes)}; --data.split-files ignore reads all alike"
    ]


def _some(names: list[str]) -> str:
    return f"{len(names):,} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


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
        if file.kind == "tokens":
            dtype, by = choose_dtype(Path(file.path), config, vocab_size)
            file = replace(file, dtype=dtype)
            if dtype:
                chosen[dtype, by] += 1
        found.append(file)
    notes += [
        f"token ids are read as {dtype} in {number:,} .bin (by: {by})"
        for (dtype, by), number in chosen.items()
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
    names = {path: path.relative_to(root).as_posix() for path in paths}
    return root, [
        source_file(path, name, "topics" if name == _TOPICS else "python")
        for path, name in names.items()
    ]


def _is_as_found(file: SourceFile) -> bool:
    path = Path(file.path)
    if not path.is_file():
        return False
    now = source_file(path, file.name, file.kind)
    return (now.num_bytes, now.mtime_ns) == (file.num_bytes, file.mtime_ns)
