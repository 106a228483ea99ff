"""The three functions that workers run on a task: scan it, sample its lines, write its shards.

Each is a function of the plan on disk and of numbers, and writes its result to disk, complete or
not at all. So any process on any machine may run it, and run it again.
"""

import hashlib
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from data.atomic_files import save_array, write_json
from data.prepare.cleaning.duplicates import signature_dtype, signature_of
from data.prepare.documents import (
    Document,
    cleaned,
    cleaner_of,
    documents_of,
    may_train_tokenizer,
    read_documents,
    write_cleaned,
)
from data.prepare.encode import Encoder
from data.prepare.plan import Plan, read_plan, tokenizer_of
from data.prepare.shards import ShardWriter
from data.prepare.text.corpus import SPLITS, Split
from data.prepare.text.streams import utf8_len
from data.prepare.text.text_records import ReadReport
from data.tokenizers.train_tokenizer import lines_of

SCANNED_DTYPE = np.dtype(
    [
        ("size", "<i8"),
        ("part", "<u4"),
        ("number", "<u8"),
        ("begins", "?"),
        ("ends_line", "?"),
        ("split", "u1"),
        ("digest", "<u8"),
    ],
    align=False,
)
"""Of each document: its characters, its byte range in the task, its line or row there, whether it
begins there and whether it ends with a line end, its split if names of files decide (1 + index in
SPLITS, else 0), and the digest of the seed and of its beginning, in whatever chunks that is read.
The first of a task has its own digest, as it may begin there."""
_SCANNED = struct.Struct("<qIQ??BQ")  # the layout of numpy; a list of tuples takes ten times more
_HEAD = 2**16  # characters or tokens at the beginning of a document that its digest covers
_TOKEN_BYTES = 4  # of text per token, where only tokens are known


def scan(work: str, task: int) -> dict[str, Any]:
    """Reads a task for the first time: cleans and counts it, and reports what cannot be read."""
    plan = read_plan(work)
    reading = ReadReport(skip=plan.config.bad_records == "skip")
    num_lines = [0] * len(plan.corpus.tasks[task])
    counts = dict.fromkeys(
        ("documents", "characters", "bytes", "learnable", "lines", "line_characters"), 0
    )
    by_file: dict[str, int] = {}
    alphabet: set[str] = set()
    signatures: list[np.void] = []
    scanned = _ScannedDocuments(plan, task)
    cleaner = cleaner_of(work) if plan.local_steps else None
    documents = read_documents(plan, task, reading, num_lines)
    if cleaner is not None:
        documents = write_cleaned(cleaned(documents, cleaner), plan.path("clean", task, "zst"))
    for document in documents:
        text, size = document.text, document.size
        counts["documents"] += document.begins
        name = plan.corpus.files[plan.corpus.tasks[task][document.range_index].file].name
        by_file[name] = by_file.get(name, 0) + document.begins
        counts["characters"] += size
        counts["bytes"] += _TOKEN_BYTES * size if document.ids is not None else utf8_len(text)
        scanned.add(document)
        if plan.config.tokenizer == "sentencepiece" and may_train_tokenizer(plan, task, document):
            counts["learnable"] += size
            lengths_of_lines = [len(line) for line in lines_of(text)]
            counts["lines"] += len(lengths_of_lines)
            counts["line_characters"] += sum(lengths_of_lines)
        if plan.config.tokenizer == "characters":
            alphabet.update(text)
        if plan.finds_duplicates:
            signatures.append(signature_of(text, plan.config))
    if plan.finds_duplicates:
        save_array(
            plan.path("signatures", task, "npy"), np.array(signatures, signature_dtype(plan.config))
        )
    save_array(plan.path("scanned", task, "npy"), scanned.finish())
    result = {
        **counts,
        "by_file": by_file,
        "part_lines": num_lines,
        "alphabet": "".join(sorted(alphabet)),
        "unread": reading.counts,
        "unread_examples": reading.examples,
        "marks": reading.separators,
        "cleaning": cleaner.report if cleaner else [],
    }
    write_json(plan.path("scan", task, "json"), result)
    return result


class _ScannedDocuments:
    """The records of the documents of a task, in SCANNED_DTYPE."""

    def __init__(self, plan: Plan, task: int):
        self._plan, self._task = plan, task
        self._content = bytearray()
        self._left = 0  # characters or tokens still missing in the digest of the last document

    def add(self, document: Document) -> None:
        if document.begins or not self._content:
            key = str(self._plan.config.validation_seed).encode()
            self._digest = hashlib.blake2b(digest_size=8, key=key)
            self._left, self._digest_at = _HEAD, len(self._content) + _SCANNED.size - 8
        file = self._plan.corpus.tasks[self._task][document.range_index].file
        split = self._plan.corpus.split_of(file, document.number)
        self._content += _SCANNED.pack(
            document.size,
            document.range_index,
            document.number,
            document.begins,
            document.text.endswith("\n"),
            1 + SPLITS.index(split) if split else 0,
            0,
        )
        self._update_digest(document)

    def finish(self) -> np.ndarray:
        """Returns the records; later tasks complete the digest of the last document."""
        for document in _after(self._plan, self._task) if self._left else ():
            if document.begins or not self._left:
                break
            self._update_digest(document)
        return np.frombuffer(self._content, SCANNED_DTYPE)

    def _update_digest(self, document: Document) -> None:
        ids, text = document.ids, document.text[: self._left]
        head = text.encode() if ids is None else ids[: self._left].astype("<u4").tobytes()
        self._digest.update(head)
        self._left -= min(self._left, document.size)
        stop = self._digest_at + 8
        self._content[self._digest_at : stop] = self._digest.digest()


def _after(plan: Plan, task: int) -> Iterator[Document]:
    """Yields the documents of later tasks while they may continue the last one of this task."""
    last = plan.corpus.tasks[task][-1].file
    if plan.config.clean or plan.corpus.files[last].kind not in ("text", "tokens"):
        return
    for later, ranges in enumerate(plan.corpus.tasks[task + 1 :], task + 1):
        if ranges[0].file != last:
            return
        yield from read_documents(plan, later, ReadReport(skip=True), [0] * len(ranges))


def sample(work: str, task: int, first_line: int, stride: int) -> list[str]:
    """Returns the lines of the training text of a task whose number in the corpus is due."""
    plan = read_plan(work)
    lines = []
    number = first_line
    for document in documents_of(plan, task):
        for line in lines_of(document.text[: max(0, document.num_train)]):
            if number % stride == 0:
                lines.append(line)
            number += 1
    return lines


def write(work: str, task: int, first_lines: list[int]) -> dict[str, Any]:
    """Writes the shards of a task and returns {split: entry of the manifest}.

    `first_lines` has, for each byte range, the number of lines before it in its file.
    """
    plan = read_plan(work)
    tokenizer = tokenizer_of(work)
    folder = plan.work.parent
    writers: dict[Split, ShardWriter] = {
        split: ShardWriter(folder, f"{split}-{task:05d}", tokenizer.vocab_size, tokenizer.separator)
        for split in SPLITS
    }
    try:
        encoder = Encoder(tokenizer, writers)
        for document in documents_of(plan, task):
            file = plan.corpus.tasks[task][document.range_index].file
            number = first_lines[document.range_index] + document.number
            encoder.add(document, file, number)
        encoder.flush()
        entries = {split: entry for split, w in writers.items() if (entry := w.close())}
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        raise
    write_json(plan.path("shards", task, "json"), entries)
    return entries
