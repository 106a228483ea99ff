"""What a worker does with one task of a corpus: scan it, sample its lines, write its shards.

Each is a function of the plan on disk and of numbers, and leaves its result on disk, whole or not
at all. So it does not matter which process does it, on which machine, or how often it is begun.
"""

import functools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zstandard

from configs.data import DUPLICATE_STEPS, PrepareConfig
from configs.errors import SettingsError
from data.cleaning.duplicates import signature_dtype, signature_of
from data.cleaning.pipeline import Cleaner
from data.corpus import SPLITS, Corpus, Split, open_corpus
from data.files import save_array, whole_file, write_json
from data.learn_tokenizer import lines_of
from data.readers import Reading, read_part
from data.shards import ShardWriter
from data.sources import find_files, plan_parts
from data.tokenizer import Tokenizer, load_tokenizer
from data.utf8 import utf8_len

PLAN, TOKENIZER = "plan.json", "tokenizer.json"
_PIECE_CHARACTERS = 128 * 1024  # a longer text is encoded in pieces, cut after a line where it can
_BATCH_CHARACTERS = 256 * 1024
SCANNED_DTYPE = np.dtype(
    [("size", "<i8"), ("part", "<u4"), ("number", "<u8"), ("begins", "?")], align=False
)
"""Of each document: characters, its part in the task, its line or row there, whether it begins."""


class Document(NamedTuple):
    """A document of a task, or a piece of a long one, after cleaning."""

    part: int
    """Index of its part in the task."""
    number: int
    """Line or row in its part, from 0."""
    begins: bool
    text: str
    ids: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Characters, or tokens where there is no text."""
        return len(self.text) if self.ids is None else len(self.ids)


@dataclass(frozen=True)
class Plan:
    """What is prepared and how, as every worker reads it."""

    config: PrepareConfig
    corpus: Corpus
    work: Path
    """Folder of what is not finished; the prepared folder is the one above."""

    def path(self, stage: str, task: int, suffix: str) -> Path:
        """Returns where a stage of a task leaves its result."""
        return self.work / f"{stage}-{task:05d}.{suffix}"

    @property
    def local_steps(self) -> tuple[str, ...]:
        """The cleaning steps that look at one document at a time."""
        return tuple(step for step in self.config.clean if step not in DUPLICATE_STEPS)

    @property
    def finds_duplicates(self) -> bool:
        """Whether documents are compared with one another."""
        return len(self.local_steps) < len(self.config.clean)


def plan_content(plan: Plan) -> dict[str, Any]:
    """Returns what has to be the same for a preparation to go on, as JSON gives it back."""
    texts = [open_corpus(replace(plan.config, path=p)) for p in plan.config.decontaminate_from]
    content = {
        "config": asdict(plan.config),
        "corpus": plan.corpus.to_json(),
        "decontaminate": [text.digest() for text in texts],
    }
    return json.loads(json.dumps(content))


def _changed_at(work: str, name: str) -> int:
    """Returns when a file of a work folder was written, so that a process remembers no old one."""
    return (Path(work) / name).stat().st_mtime_ns


def read_plan(work: str) -> Plan:
    """Returns the plan in a work folder."""
    return _read_plan(work, _changed_at(work, PLAN))


@functools.lru_cache(maxsize=4)
def _read_plan(work: str, changed_at: int) -> Plan:
    content = json.loads((Path(work) / PLAN).read_text())
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in content["config"].items()
    }
    return Plan(PrepareConfig(**fields), Corpus.from_json(content["corpus"]), Path(work))


def scan(work: str, task: int) -> dict[str, Any]:
    """Reads a task for the first time: cleans it, counts it, and says what could not be read."""
    plan = read_plan(work)
    reading = Reading(skip=plan.config.bad_records == "skip")
    part_lines = [0] * len(plan.corpus.tasks[task])
    counts = {"documents": 0, "characters": 0, "lines": 0, "line_characters": 0}
    alphabet: set[str] = set()
    signatures: list[np.void] = []
    scanned: list[tuple[int, int, int, bool]] = []
    cleaner = _cleaner(work, _changed_at(work, PLAN)).anew() if plan.local_steps else None
    documents = _read(plan, task, reading, part_lines)
    if cleaner is not None:
        documents = _keep(_cleaned(documents, cleaner), plan.path("clean", task, "zst"))
    for document in documents:
        text, size = document.text, document.size
        counts["documents"] += document.begins
        counts["characters"] += size
        if plan.config.tokenizer == "sentencepiece" and _teaches(plan, task, document):
            lengths_of_lines = [len(line) for line in lines_of(text)]
            counts["lines"] += len(lengths_of_lines)
            counts["line_characters"] += sum(lengths_of_lines)
        if plan.config.tokenizer == "characters":
            alphabet.update(text)
        if plan.finds_duplicates:
            signatures.append(signature_of(text, plan.config))
            scanned.append((size, document.part, document.number, document.begins))
    if plan.finds_duplicates:
        save_array(
            plan.path("signatures", task, "npy"), np.array(signatures, signature_dtype(plan.config))
        )
        save_array(plan.path("scanned", task, "npy"), np.array(scanned, SCANNED_DTYPE))
    result = {
        **counts,
        "part_lines": part_lines,
        "alphabet": "".join(sorted(alphabet)),
        "unread": reading.counts,
        "unread_examples": reading.examples,
        "cleaning": cleaner.report if cleaner else [],
    }
    write_json(plan.path("scan", task, "json"), result)
    return result


def sample(work: str, task: int, first_line: int, stride: int, num_train: int) -> list[str]:
    """Returns every stride-th line of the training text of the corpus that is in this task.

    Args:
        first_line: lines of the tasks before.
        num_train: characters of the task, from its beginning, that are training text.
    """
    plan = read_plan(work)
    lines = []
    number = first_line
    for document in documents_of(plan, task):
        if not _teaches(plan, task, document):
            continue
        text = document.text[: max(0, num_train)]
        for line in lines_of(text) if text else ():
            if number % stride == 0:
                lines.append(line)
            number += 1
        num_train -= document.size
    return lines


def write(work: str, task: int, first_lines: list[int], num_train: int) -> dict[str, Any]:
    """Writes the shards of a task and returns {split: entry of the manifest}.

    Args:
        first_lines: of each part, the lines of its file in the parts before.
        num_train: characters (or tokens, of a corpus of tokens) that are training text; what comes
            after validates. The document at the cut becomes two.
    """
    plan = read_plan(work)
    tokenizer = _tokenizer(work)
    folder = plan.work.parent
    writers: dict[Split, ShardWriter] = {
        split: ShardWriter(folder, f"{split}-{task:05d}", tokenizer.vocab_size, tokenizer.separator)
        for split in SPLITS
    }
    try:
        encoder = _Encoder(tokenizer, writers, plan.corpus)
        for document in documents_of(plan, task):
            part = plan.corpus.tasks[task][document.part]
            number = first_lines[document.part] + document.number
            split = plan.corpus.split_of(part.file, number)
            if split is None:
                cut = min(max(0, num_train), document.size)
                begins_to_validate = cut < document.size and num_train >= 0
                num_train -= document.size
            else:
                cut, begins_to_validate = (document.size if split == "train" else 0), False
            encoder.add(document, cut, begins_to_validate, part.file, number)
        encoder.flush()
        entries = {split: entry for split, w in writers.items() if (entry := w.close())}
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        raise
    write_json(plan.path("shards", task, "json"), entries)
    return entries


class _Encoder:
    """Hands documents to the writers of their splits, encoded many at a time."""

    def __init__(self, tokenizer: Tokenizer, writers: dict[Split, ShardWriter], corpus: Corpus):
        self._tokenizer, self._writers, self._corpus = tokenizer, writers, corpus
        self._waiting: list[tuple[ShardWriter, tuple[int, int] | None, str]] = []
        self._num_characters = 0

    def add(
        self, document: Document, cut: int, begins_to_validate: bool, file: int, number: int
    ) -> None:
        """Takes a document; what is before the cut trains, the rest validates.

        Args:
            begins_to_validate: says that no piece of the same text validated before.
        """
        sides: tuple[tuple[Split, slice], ...] = (
            ("train", slice(cut)),
            ("validation", slice(cut, None)),
        )
        for split, side in sides:
            writer = self._writers[split]
            begins = document.begins or (split == "validation" and begins_to_validate)
            if document.ids is not None:
                self._add_ids(writer, document.ids[side], begins, file, number + (side.start or 0))
                continue
            text = document.text[side]
            if not text:
                continue
            self._num_characters += len(text)
            first, *others = [text] if len(text) <= _PIECE_CHARACTERS else _pieces(text)
            self._waiting.append((writer, (file, number) if begins else None, first))
            self._waiting += [(writer, None, piece) for piece in others]
        if self._num_characters >= _BATCH_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        """Encodes and writes what waits."""
        encoded = self._tokenizer.encode_batch([text for _, _, text in self._waiting])
        for (writer, begins, text), ids in zip(self._waiting, encoded, strict=True):
            if begins:
                writer.begin(*begins)
            writer.add(ids, num_characters=len(text), num_bytes=utf8_len(text))
        self._waiting, self._num_characters = [], 0

    def _add_ids(
        self, writer: ShardWriter, ids: np.ndarray, begins: bool, file: int, number: int
    ) -> None:
        """Adds tokens as they are; a separator among them begins a document."""
        separator, vocab_size = self._tokenizer.separator, self._tokenizer.vocab_size
        unknown = np.flatnonzero((ids < 0) | (ids >= vocab_size))
        if len(unknown):
            raise SettingsError(
                f"data.path: {self._corpus.files[file].path} has the token {ids[unknown[0]]} at "
                f"{number + unknown[0]}, but ids of the tokenizer are 0 to {vocab_size - 1}: give "
                "--data.tokenizer the one that made them"
            )
        marks = np.flatnonzero(ids == separator)
        if len(ids) and begins and ids[0] != separator:
            writer.begin(file, number)
        for start, stop in zip([0, *(marks + 1)], [*marks, len(ids)], strict=True):
            if start:
                writer.begin(file, number + int(start) - 1)
            piece = ids[start:stop]
            text = self._tokenizer.decode(piece)
            writer.add(piece, num_characters=len(text), num_bytes=utf8_len(text))


def documents_of(plan: Plan, task: int) -> Iterator[Document]:
    """Yields the documents of a task as they are tokenized: clean, and without duplicates."""
    clean, dropped = plan.path("clean", task, "zst"), plan.path("dropped", task, "npy")
    if plan.local_steps:
        documents = _kept(clean)
    else:
        reading = Reading(skip=plan.config.bad_records == "skip")
        documents = _read(plan, task, reading, [0] * len(plan.corpus.tasks[task]))
    if not plan.finds_duplicates:
        yield from documents
        return
    for document, is_dropped in zip(documents, np.load(dropped), strict=True):
        if not is_dropped:
            yield document


def _read(plan: Plan, task: int, reading: Reading, part_lines: list[int]) -> Iterator[Document]:
    """Yields what is in the files of a task; a cleaned text that is long is several documents."""
    joins = not plan.config.clean  # a piece may be dropped, and the next must not join another text
    last_file = None
    for i, part in enumerate(plan.corpus.tasks[task]):
        reading.num_lines = 0
        file = plan.corpus.files[part.file]
        for record in read_part(part, file, plan.config, reading):
            # A piece whose beginning could not be read must not join another file's text either.
            is_next = last_file in (None, part.file)
            begins = record.begins or not joins or not is_next
            last_file = part.file
            yield Document(i, record.number, begins, record.text, record.ids)
        part_lines[i] = reading.num_lines


def _cleaned(documents: Iterator[Document], cleaner: Cleaner) -> Iterator[Document]:
    for document in documents:
        text = cleaner(f"{document.part}:{document.number}", document.text)
        if text:
            yield document._replace(text=text)


def _keep(documents: Iterator[Document], path: Path) -> Iterator[Document]:
    """Yields documents and writes them down on the way, so that they are cleaned once."""
    with whole_file(path) as temporary, zstandard.open(temporary, "wt") as file:
        for document in documents:
            file.write(json.dumps([document.part, document.number, document.text]) + "\n")
            yield document


def _kept(path: Path) -> Iterator[Document]:
    with zstandard.open(path, "rt") as file:
        for line in file:
            part, number, text = json.loads(line)
            yield Document(part, number, True, text)


def _teaches(plan: Plan, task: int, document: Document) -> bool:
    """Says whether a tokenizer may learn from a document, as far as this does not need a cut."""
    part = plan.corpus.tasks[task][document.part]
    return plan.corpus.split_of(part.file, document.number) != "validation"


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _PIECE_CHARACTERS:
        end = text.rfind("\n", start, start + _PIECE_CHARACTERS) + 1
        stop = end if end > start else start + _PIECE_CHARACTERS
        yield text[start:stop]
        start = stop
    if start < len(text):
        yield text[start:]


@functools.lru_cache(maxsize=4)
def _cleaner(work: str, changed_at: int) -> Cleaner:
    plan = read_plan(work)
    return Cleaner(replace(plan.config, clean=plan.local_steps), _overlap_texts(plan.config))


def _overlap_texts(config: PrepareConfig) -> Iterator[str]:
    """Yields the texts of the evaluation sets that the corpus must not hold."""
    for path in config.decontaminate_from:
        own = replace(config, path=path)
        _, files = find_files(own)
        for part in plan_parts(files):
            for record in read_part(part, files[part.file], own, Reading(skip=False)):
                yield record.text


def _tokenizer(work: str) -> Tokenizer:
    return _load_tokenizer(work, _changed_at(work, TOKENIZER))


@functools.lru_cache(maxsize=4)
def _load_tokenizer(work: str, changed_at: int) -> Tokenizer:
    said = json.loads((Path(work) / TOKENIZER).read_text())
    content = (Path(work).parent / "tokenizer").read_bytes()
    return load_tokenizer(said["kind"], content, said["special"])
