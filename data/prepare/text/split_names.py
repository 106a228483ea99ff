"""Splits by file name: which files train, which validate, which are excluded."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from configs.data import PrepareConfig
from data.prepare.text.source_files import SourceFile, Split

_SPLITS: dict[str, Split | None] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": None,
}
_WORD = re.compile(rf"(?<![a-z0-9])({'|'.join(_SPLITS)})(?![a-z])")


def split_word(name: str) -> str | None:
    """Returns the word in a file's name, or else in its folders' names, that names a split.

    The last one of a name counts: train-00000-of-00002.parquet, wiki.valid.txt, val/0.bin.
    """
    words = (_WORD.findall(part.lower()) for part in reversed(PurePosixPath(name).parts))
    return next((found[-1] for found in words if found), None)


def assign_splits(
    files: Sequence[SourceFile], config: PrepareConfig
) -> tuple[list[SourceFile], list[str]]:
    """Returns the files to read with their splits, and notes about what their names decided.

    Names of held-out splits count only if other files are named train. If some files validate, all
    others train; with data.validation_fraction=1 only the validation files are read.
    """
    words = {file.name: None if file.is_prose else split_word(file.name) for file in files}
    splits = {name: word and _SPLITS[word] for name, word in words.items()}
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
