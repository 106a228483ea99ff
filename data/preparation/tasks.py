"""What a worker does with one task of a corpus: scan it, sample its lines, write its shards.

Each is a function of the plan on disk and of numbers, and leaves its result on disk, whole or not
at all. So it does not matter which process does it, on which machine, or how often it is begun.
"""

import hashlib
import struct
from typing import Any

import numpy as np

from data.cleaning.duplicates import signature_dtype, signature_of
from data.files import save_array, write_json
from data.preparation.documents import (
    Document,
    cleaned,
    cleaner_of,
    documents_of,
    keep,
    read_documents,
    teaches,
)
from data.preparation.encode import Encoder
from data.preparation.plan import Plan, read_plan, tokenizer_of
from data.preparation.shards import ShardWriter
from data.text.corpus import SPLITS, Split
from data.text.reading import Reading
from data.text.utf8 import utf8_len
from data.tokenizers.learn import lines_of

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
"""Of each document: characters, its part in the task, its line or row there, whether it begins and
whether it ends with a line, its split where the files decide (1 + index in SPLITS, else 0), and the
digest of the seed and of what it holds."""
_SCANNED = struct.Struct("<qIQ??BQ")  # as numpy packs it; a list of tuples takes ten times more
_AT_ONCE = 2**20  # characters or tokens
_TOKEN_BYTES = 4  # of text, where only tokens are known


def scan(work: str, task: int) -> dict[str, Any]:
    """Reads a task for the first time: cleans it, counts it, and says what could not be read."""
    plan = read_plan(work)
    reading = Reading(skip=plan.config.bad_records == "skip")
    part_lines = [0] * len(plan.corpus.tasks[task])
    counts = dict.fromkeys(
        ("documents", "characters", "bytes", "learnable", "lines", "line_characters"), 0
    )
    by_file: dict[str, int] = {}
    alphabet: set[str] = set()
    signatures: list[np.void] = []
    scanned = bytearray()
    cleaner = cleaner_of(work) if plan.local_steps else None
    documents = read_documents(plan, task, reading, part_lines)
    if cleaner is not None:
        documents = keep(cleaned(documents, cleaner), plan.path("clean", task, "zst"))
    for document in documents:
        text, size = document.text, document.size
        counts["documents"] += document.begins
        name = plan.corpus.files[plan.corpus.tasks[task][document.part].file].name
        by_file[name] = by_file.get(name, 0) + document.begins
        counts["characters"] += size
        counts["bytes"] += _TOKEN_BYTES * size if document.ids is not None else utf8_len(text)
        scanned += _row(plan, task, document)
        if plan.config.tokenizer == "sentencepiece" and teaches(plan, task, document):
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
    save_array(plan.path("scanned", task, "npy"), np.frombuffer(scanned, SCANNED_DTYPE))
    result = {
        **counts,
        "by_file": by_file,
        "part_lines": part_lines,
        "alphabet": "".join(sorted(alphabet)),
        "unread": reading.counts,
        "unread_examples": reading.examples,
        "marks": reading.marks,
        "cleaning": cleaner.report if cleaner else [],
    }
    write_json(plan.path("scan", task, "json"), result)
    return result


def _row(plan: Plan, task: int, document: Document) -> bytes:
    """Returns what is kept of a document, as SCANNED_DTYPE has it."""
    part = plan.corpus.tasks[task][document.part].file
    split = plan.corpus.split_of(part, document.number)
    digest = hashlib.blake2b(digest_size=8, key=str(plan.config.validation_seed).encode())
    for start in range(0, document.size, _AT_ONCE):
        piece = slice(start, start + _AT_ONCE)
        ids, text = document.ids, document.text[piece]
        digest.update(text.encode() if ids is None else ids[piece].astype("<u4").tobytes())
    return _SCANNED.pack(
        document.size,
        document.part,
        document.number,
        document.begins,
        document.text.endswith("\n"),
        1 + SPLITS.index(split) if split else 0,
        int.from_bytes(digest.digest(), "little"),
    )


def sample(work: str, task: int, first_line: int, stride: int) -> list[str]:
    """Returns every stride-th line of the training text of the corpus that is in this task.

    Args:
        first_line: lines of the tasks before.
    """
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

    Args:
        first_lines: of each part, the lines of its file in the parts before.
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
            part = plan.corpus.tasks[task][document.part]
            number = first_lines[document.part] + document.number
            encoder.add(document, part.file, number)
        encoder.flush()
        entries = {split: entry for split, w in writers.items() if (entry := w.close())}
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        raise
    write_json(plan.path("shards", task, "json"), entries)
    return entries
