"""What a worker does with one task of a corpus: scan it, sample its lines, write its shards.

Each is a function of the plan on disk and of numbers, and leaves its result on disk, whole or not
at all. So it does not matter which process does it, on which machine, or how often it is begun.
"""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from data.cleaning.duplicates import signature_dtype, signature_of
from data.files import save_array, write_json
from data.preparation.documents import (
    cleaned,
    cleaner_of,
    documents_of,
    keep,
    read_documents,
    teaches,
)
from data.preparation.encode import Encoder
from data.preparation.plan import TOKENIZER, changed_at, read_plan
from data.preparation.shards import ShardWriter
from data.text.corpus import SPLITS, Split
from data.text.reading import Reading
from data.tokenizers.learn import lines_of
from data.tokenizers.tokenizer import Tokenizer, load_tokenizer

SCANNED_DTYPE = np.dtype(
    [("size", "<i8"), ("part", "<u4"), ("number", "<u8"), ("begins", "?")], align=False
)
"""Of each document: characters, its part in the task, its line or row there, whether it begins."""


def scan(work: str, task: int) -> dict[str, Any]:
    """Reads a task for the first time: cleans it, counts it, and says what could not be read."""
    plan = read_plan(work)
    reading = Reading(skip=plan.config.bad_records == "skip")
    part_lines = [0] * len(plan.corpus.tasks[task])
    counts = {"documents": 0, "characters": 0, "lines": 0, "line_characters": 0}
    by_file: dict[str, int] = {}
    alphabet: set[str] = set()
    signatures: list[np.void] = []
    scanned: list[tuple[int, int, int, bool]] = []
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
        if plan.config.tokenizer == "sentencepiece" and teaches(plan, task, document):
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
        if not teaches(plan, task, document):
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
        encoder = Encoder(tokenizer, writers, plan.corpus)
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


def _tokenizer(work: str) -> Tokenizer:
    return _load_tokenizer(work, changed_at(work, TOKENIZER))


@functools.lru_cache(maxsize=4)
def _load_tokenizer(work: str, changed_at: int) -> Tokenizer:
    said = json.loads((Path(work) / TOKENIZER).read_text())
    content = (Path(work).parent / "tokenizer").read_bytes()
    return load_tokenizer(said["kind"], content, said["special"])
