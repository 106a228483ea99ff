"""The documents of a task: as they are read, after cleaning, and without duplicates."""

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
from data.prepare.text.read_report import ReadReport, Record
from data.prepare.text.readers import read_range
from data.prepare.text.source_files import SourceFile


class Document(NamedTuple):
    """A document of a task, or a piece of a long one, after cleaning."""

    part: int
    """Index of its part in the task."""
    number: int
    """Line or row in its part, from 0."""
    begins: bool
    text: str = ""
    ids: np.ndarray | None = None
    num_train: int = 0
    """Characters (or tokens) from its beginning that train, while the rest begins to validate; -1
    where all of it does, and goes on where the document before has ended unless it begins."""

    @property
    def size(self) -> int:
        """Characters, or tokens where there is no text."""
        return len(self.text) if self.ids is None else len(self.ids)


def documents_of(plan: Plan, task: int) -> Iterator[Document]:
    """Yields the documents of a task as they are tokenized: clean, without repeats, and split."""
    clean, dropped = plan.path("clean", task, "zst"), plan.path("dropped", task, "npy")
    if plan.local_steps:
        documents = _kept(clean)
    else:
        reading = ReadReport(skip=plan.config.bad_records == "skip")
        documents = read_documents(plan, task, reading, [0] * len(plan.corpus.tasks[task]))
    if plan.finds_duplicates:
        kept = zip(documents, np.load(dropped), strict=True)
        documents = (document for document, is_dropped in kept if not is_dropped)
    # Not strict: of a file that has changed meanwhile the end of the preparation tells.
    for document, row in zip(documents, np.load(plan.path("split", task, "npy")), strict=False):
        num_train, earliest, opens = row.tolist()
        num_train = _cut(document.text, num_train, earliest)
        yield document._replace(num_train=num_train, begins=document.begins or opens)


def _cut(text: str, num_train: int, earliest: int) -> int:
    """Returns where a text is cut: after the last line that ends where it may, or as planned."""
    if not 0 < num_train < len(text):
        return num_train
    end = text.rfind("\n", max(0, earliest - 1), num_train) + 1
    return end if end >= earliest else num_train


def read_documents(
    plan: Plan, task: int, reading: ReadReport, part_lines: list[int]
) -> Iterator[Document]:
    """Yields what is in the files of a task; a cleaned text that is long is several documents."""
    joins = not plan.config.clean  # a piece may be dropped, and the next must not join another text
    last_file = None
    for i, part in enumerate(plan.corpus.tasks[task]):
        reading.num_lines = 0
        file = plan.corpus.files[part.file]
        for record in read_range(part, file, plan.config, reading):
            # A piece whose beginning could not be read must not join another file's text either.
            is_next = last_file in (None, part.file)
            begins = record.begins or not joins or not is_next
            last_file = part.file
            if record.ids is None:
                yield Document(i, record.number, begins, record.text)
            else:
                yield from _between_separators(plan, i, record, begins, file)
        part_lines[i] = reading.num_lines


def _between_separators(
    plan: Plan, part: int, record: Record, begins: bool, file: SourceFile
) -> Iterator[Document]:
    """Yields the documents in an array of tokens; each separator in it begins one."""
    tokenizer, ids = tokenizer_of(str(plan.work)), record.ids
    is_row = file.kind == "token_rows"
    assert ids is not None
    while is_row and len(ids) and ids[-1] == tokenizer.separator:  # the next row has its own
        ids = ids[:-1]
    unknown = np.flatnonzero((ids < 0) | (ids >= tokenizer.vocab_size))
    if len(unknown):
        raise SettingsError(
            f"data.path: {file.path} has the token {ids[unknown[0]]} at "
            f"{record.number + unknown[0]}, but ids of the tokenizer are 0 to "
            f"{tokenizer.vocab_size - 1}: give --data.tokenizer the one that made them, "
            "or of a .bin another --data.token_dtype"
        )
    marks = np.flatnonzero(ids == tokenizer.separator).tolist()
    first = ids[: marks[0] if marks else None]
    if len(first):
        yield Document(part, record.number, begins, ids=first)
    for start, stop in zip(marks, [*marks, len(ids)][1:], strict=True):
        number = record.number + (0 if is_row else start)
        yield Document(part, number, True, ids=ids[start + 1 : stop])


def cleaned(documents: Iterator[Document], cleaner: Cleaner) -> Iterator[Document]:
    """Yields the documents that cleaning keeps, as it leaves them."""
    for document in documents:
        text = cleaner(f"{document.part}:{document.number}", document.text)
        if text:
            yield document._replace(text=text)


def keep(documents: Iterator[Document], path: Path) -> Iterator[Document]:
    """Yields documents and writes them down on the way, so that they are cleaned once."""
    with atomic_write(path) as temporary, zstandard.open(temporary, "wt") as file:
        for document in documents:
            file.write(json.dumps([document.part, document.number, document.text]) + "\n")
            yield document


def _kept(path: Path) -> Iterator[Document]:
    with zstandard.open(path, "rt") as file:
        for line in file:
            part, number, text = json.loads(line)
            yield Document(part, number, True, text)


def teaches(plan: Plan, task: int, document: Document) -> bool:
    """Says whether a tokenizer may learn from a document, as far as files alone decide."""
    part = plan.corpus.tasks[task][document.part]
    return plan.corpus.split_of(part.file, document.number) != "validation"


def cleaner_of(work: str) -> Cleaner:
    """Returns a cleaner for a task; its steps are made once in a process."""
    return _make_cleaner(work, changed_at(work, PLAN)).anew()


@functools.lru_cache(maxsize=4)
def _make_cleaner(work: str, changed_at: int) -> Cleaner:
    plan = read_plan(work)
    return Cleaner(replace(plan.config, clean=plan.local_steps), _overlap_texts(plan.config))


def _overlap_texts(config: PrepareConfig) -> Iterator[str]:
    """Yields the texts of the evaluation sets that the corpus must not hold."""
    for path in config.decontaminate_from:
        own, corpus = open_overlap(config, path)
        for part in (part for task in corpus.tasks for part in task):
            for record in read_range(part, corpus.files[part.file], own, ReadReport(skip=False)):
                yield record.text
