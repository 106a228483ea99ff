"""The documents of a task: as read, after cleaning, and without duplicates."""

import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import zstandard

from configs.data import PrepareConfig
from configs.errors import SettingsError
from data.atomic_files import atomic_write
from data.prepare.cleaning.cleaner import Cleaner
from data.prepare.plan import PLAN, Plan, changed_at, read_plan, tokenizer_of
from data.prepare.text.corpus import open_overlap
from data.prepare.text.readers import read_range
from data.prepare.text.source_files import SourceFile
from data.prepare.text.text_records import ReadReport, TextRecord


class Document(NamedTuple):
    """A document of a task, or a chunk of a long one, after cleaning."""

    range_index: int
    """Index of its byte range in the task."""
    number: int
    """Line or row in its byte range, from 0."""
    begins: bool
    text: str = ""
    ids: np.ndarray | None = None
    num_train: int = 0
    """Characters (or tokens) at its beginning that train; the rest begins a validation document.
    -1: all of it validates, and continues the document before it unless it begins one."""

    @property
    def size(self) -> int:
        """Characters, or tokens of a file of tokens."""
        return len(self.text) if self.ids is None else len(self.ids)


def documents_of(plan: Plan, task: int) -> Iterator[Document]:
    """Yields the documents of a task to tokenize: cleaned, deduplicated and split."""
    clean, dropped = plan.path("clean", task, "zst"), plan.path("dropped", task, "npy")
    if plan.local_steps:
        documents = _read_cleaned(clean)
    else:
        reading = ReadReport(skip=plan.config.bad_records == "skip")
        documents = read_documents(plan, task, reading, [0] * len(plan.corpus.tasks[task]))
    if plan.finds_duplicates:
        kept = zip(documents, np.load(dropped), strict=True)
        documents = (document for document, is_dropped in kept if not is_dropped)
    # Not strict: the end of the preparation reports a file that has changed meanwhile.
    for document, row in zip(documents, np.load(plan.path("split", task, "npy")), strict=False):
        num_train, earliest, opens = row.tolist()
        num_train = _cut(document.text, num_train, earliest)
        yield document._replace(num_train=num_train, begins=document.begins or opens)


def _cut(text: str, num_train: int, earliest: int) -> int:
    """Returns where to cut a text: after the last line end from `earliest` on, or as planned."""
    if not 0 < num_train < len(text):
        return num_train
    end = text.rfind("\n", max(0, earliest - 1), num_train) + 1
    return end if end >= earliest else num_train


def read_documents(
    plan: Plan, task: int, reading: ReadReport, num_lines: list[int]
) -> Iterator[Document]:
    """Yields the documents of a task as read; sets num_lines to the lines of its byte ranges."""
    joins = not plan.config.clean  # a chunk may be dropped, and the next must not join another text
    last_file = None
    for i, byte_range in enumerate(plan.corpus.tasks[task]):
        reading.num_lines = 0
        file = plan.corpus.files[byte_range.file]
        for record in read_range(byte_range, file, plan.config, reading):
            # A chunk whose beginning could not be read must not join another file's text either.
            is_next = last_file in (None, byte_range.file)
            begins = record.begins or not joins or not is_next
            last_file = byte_range.file
            if record.ids is None:
                yield Document(i, record.number, begins, record.text)
            else:
                yield from _between_separators(plan, i, record, begins, file)
        num_lines[i] = reading.num_lines


def _between_separators(
    plan: Plan, range_index: int, record: TextRecord, begins: bool, file: SourceFile
) -> Iterator[Document]:
    """Yields the documents of an array of tokens; each separator begins one."""
    tokenizer, ids = tokenizer_of(str(plan.work)), record.ids
    is_row = file.kind == "token_rows"
    assert ids is not None
    while is_row and len(ids) and ids[-1] == tokenizer.separator:  # each row begins a document
        ids = ids[:-1]
    unknown = np.flatnonzero((ids < 0) | (ids >= tokenizer.vocab_size))
    if len(unknown):
        raise SettingsError(
            f"data.path: {file.path} has the token {ids[unknown[0]]} at "
            f"{record.number + unknown[0]}, but ids of the tokenizer are 0 to "
            f"{tokenizer.vocab_size - 1}: give --data.tokenizer the one that made the file, "
            "or for a .bin another --data.token-dtype"
        )
    separators = np.flatnonzero(ids == tokenizer.separator).tolist()
    first = ids[: separators[0] if separators else None]
    if len(first):
        yield Document(range_index, record.number, begins, ids=first)
    for start, stop in zip(separators, [*separators, len(ids)][1:], strict=True):
        number = record.number + (0 if is_row else start)
        yield Document(range_index, number, True, ids=ids[start + 1 : stop])


def cleaned(documents: Iterator[Document], cleaner: Cleaner) -> Iterator[Document]:
    for document in documents:
        text = cleaner(f"{document.range_index}:{document.number}", document.text)
        if text:
            yield document._replace(text=text)


def write_cleaned(documents: Iterator[Document], path: Path) -> Iterator[Document]:
    with atomic_write(path) as temporary, zstandard.open(temporary, "wt") as file:
        for document in documents:
            file.write(json.dumps([document.range_index, document.number, document.text]) + "\n")
            yield document


def _read_cleaned(path: Path) -> Iterator[Document]:
    with zstandard.open(path, "rt") as file:
        for line in file:
            range_index, number, text = json.loads(line)
            yield Document(range_index, number, True, text)


def may_train_tokenizer(plan: Plan, task: int, document: Document) -> bool:
    file = plan.corpus.tasks[task][document.range_index].file
    return plan.corpus.split_of(file, document.number) != "validation"


def cleaner_of(work: str) -> Cleaner:
    """Returns a cleaner for a task; its steps are created once per process."""
    return _make_cleaner(work, changed_at(work, PLAN)).with_empty_report()


@functools.lru_cache(maxsize=4)
def _make_cleaner(work: str, changed_at: int) -> Cleaner:
    plan = read_plan(work)
    return Cleaner(replace(plan.config, clean=plan.local_steps), _overlap_texts(plan.config))


def _overlap_texts(config: PrepareConfig) -> Iterator[str]:
    for path in config.decontaminate_from:
        own, corpus = open_overlap(config, path)
        for byte_range in (byte_range for task in corpus.tasks for byte_range in task):
            file = corpus.files[byte_range.file]
            for record in read_range(byte_range, file, own, ReadReport(skip=False)):
                yield record.text
