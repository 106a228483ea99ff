"""The pass between scanning and writing that chooses the validation split."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from configs.data import PrepareConfig
from data.atomic_files import save_array
from data.prepare.plan import Plan
from data.prepare.text.corpus import SPLITS

SPLIT_DTYPE = np.dtype([("num_train", "<i8"), ("earliest", "<i8"), ("opens", "?")])
"""Of each document or chunk: `Document.num_train`, the earliest position of the cut, and whether a
document begins there because the beginning of its file could not be read."""
_DEFAULT_FRACTION, _DEFAULT_BYTES = 0.1, 100_000_000
_VALIDATION = 1 + SPLITS.index("validation")


class _Documents(NamedTuple):
    """The documents that begin in a task, with all of their chunks."""

    size: np.ndarray
    digest: np.ndarray
    split: np.ndarray
    """As in SCANNED_DTYPE: 0 where no name decides."""


class _Boundary(NamedTuple):
    """How the first and the last document of a task continue in other tasks."""

    opens: bool
    """No earlier task has records of the file of its first one, so a document begins there."""
    continues: bool
    """A later task continues its last document."""
    tail: int
    """Size, in later tasks, of the last document that begins in it."""


@dataclass(frozen=True)
class ValidationSplit:
    """How a text is split, as `choose_split` returns it."""

    rule: str
    fraction: float
    """Requested validation fraction of the text that no name decides about."""
    num_train: tuple[int, ...]
    """Training characters (or tokens) of each task."""
    num_characters: int
    """Characters (or tokens) of all tasks, in both splits."""

    def describe(self) -> str:
        share = 1 - sum(self.num_train) / max(1, self.num_characters)
        return f"validation: {self.rule}; {share:.2%} of the text"


def choose_split(plan: Plan, scans: Sequence[dict[str, Any]]) -> ValidationSplit:
    """Writes for each document how much of it trains, and returns the split.

    Text that no name decides about is split by whole documents. A document validates if the digest
    of data.validation_seed and of its bytes (those of its first 65,536 characters or tokens) is in
    the lowest `fraction` of all digests, unless it is larger than the whole validation share. So
    neither order nor other documents matter, and equal documents are in one split. A single text is
    cut, after a line if one ends near.
    """
    boundaries = _boundaries(plan, scans)
    fraction = validation_fraction(plan.config, sum(scan["bytes"] for scan in scans))
    total = num_open = 0
    for _, documents in _documents(plan, boundaries):
        total += int(documents.size[documents.split == 0].sum())
        num_open += int((documents.split == 0).sum())
    if num_open == 1:
        rule, splits = "the end of the one text", _split_at_end(plan, len(scans), total, fraction)
    else:
        rule = "whole documents, by digest" if num_open else "by the names of files"
        splits = _split_by_digest(plan, boundaries, total, fraction)
    rule = {0.0: "none", 1.0: "all of it"}.get(fraction, rule) if num_open else rule
    num_train = []
    for task, split in enumerate(splits):
        split["opens"][:1] = boundaries[task].opens
        save_array(plan.path("split", task, "npy"), split)
        num_train.append(int(np.maximum(split["num_train"], 0).sum()))
    return ValidationSplit(
        rule, fraction, tuple(num_train), sum(scan["characters"] for scan in scans)
    )


def validation_fraction(config: PrepareConfig, num_bytes: int) -> float:
    if config.validation_fraction is not None:
        return config.validation_fraction
    return min(_DEFAULT_FRACTION, _DEFAULT_BYTES / max(1, num_bytes))


def _rows(plan: Plan, task: int) -> np.ndarray:
    rows = np.load(plan.path("scanned", task, "npy"))
    return rows[~np.load(plan.path("dropped", task, "npy"))] if plan.finds_duplicates else rows


def _begins(rows: np.ndarray, boundary: _Boundary) -> np.ndarray:
    """Returns which records begin a document; a separator at the end begins none."""
    begins = rows["begins"].copy()
    begins[:1] |= boundary.opens
    continues = np.append(~begins[1:], boundary.continues)[: len(rows)]
    return begins & ((rows["size"] > 0) | continues)


def _boundaries(plan: Plan, scans: Sequence[dict[str, Any]]) -> list[_Boundary]:
    """Returns the boundary of each task, and adds documents that open a file to the counts."""
    last, opens = None, []
    for scan in scans:
        names = [*scan["by_file"]]
        opens.append(bool(names) and names[0] != last)
        last = names[-1] if names else last
    tail, continues, boundaries = 0, False, []
    for task in reversed(range(len(scans))):
        rows = _rows(plan, task)
        boundaries.append(boundary := _Boundary(opens[task], continues, tail))
        first = np.flatnonzero(_begins(rows, boundary))
        tail = int(rows["size"][: first[0]].sum()) if len(first) else tail + int(rows["size"].sum())
        if len(rows):
            continues = not (rows["begins"][0] or boundary.opens)
        if opens[task] and len(rows) and not rows["begins"][0]:
            scans[task]["documents"] += 1
            scans[task]["by_file"][next(iter(scans[task]["by_file"]))] += 1
    return boundaries[::-1]


def _documents(
    plan: Plan, boundaries: Sequence[_Boundary]
) -> Iterator[tuple[np.ndarray, _Documents]]:
    for task, boundary in enumerate(boundaries):
        rows = _rows(plan, task)
        first = np.flatnonzero(_begins(rows, boundary))
        size = np.add.reduceat(rows["size"], first) if len(first) else np.zeros(0, np.int64)
        size[-1:] += boundary.tail
        yield rows, _Documents(size, rows["digest"][first], rows["split"][first])


def _split_by_digest(
    plan: Plan, boundaries: Sequence[_Boundary], total: int, fraction: float
) -> Iterator[np.ndarray]:
    """Yields the SPLIT_DTYPE array of each task, where whole documents validate."""
    moved = _moved(plan, boundaries, total, fraction)
    earlier = fraction == 1  # whether the document of an earlier task validates
    for task, (rows, documents) in enumerate(_documents(plan, boundaries)):
        validates = _is_low(documents, total, fraction) | (documents.split == _VALIDATION)
        if moved is not None:
            validates ^= moved(task, documents)
        of_row = np.concatenate([[earlier], validates])[np.cumsum(_begins(rows, boundaries[task]))]
        earlier = bool(of_row[-1]) if len(of_row) else earlier
        split = np.zeros(len(rows), SPLIT_DTYPE)
        split["num_train"] = np.where(of_row, -1, rows["size"])
        yield split


def _is_low(documents: _Documents, total: int, fraction: float) -> np.ndarray:
    is_low = documents.digest / 2.0**64 < fraction
    return (documents.split == 0) & (documents.size <= fraction * total) & is_low


def _moved(
    plan: Plan, boundaries: Sequence[_Boundary], total: int, fraction: float
) -> Callable[[int, _Documents], np.ndarray] | None:
    """Returns a function to the documents that change splits, if one split would be empty.

    If none validates, of the documents of at most half of the text the one with the lowest digest
    does; if none trains, the one with the highest does. Its copies move with it, unless they are
    more than half of the text.
    """
    counts = np.zeros(2, int)
    found: list[list[tuple[int, int, int]]] = [[], []]  # the lowest and highest of each task
    for task, (_, documents) in enumerate(_documents(plan, boundaries)):
        is_open, is_low = documents.split == 0, _is_low(documents, total, fraction)
        counts += int(is_low.sum()), int((is_open & ~is_low).sum())
        for side, may, best in ((0, 2 * documents.size <= total, np.argmin), (1, True, np.argmax)):
            if len(indices := np.flatnonzero(is_open & may)):
                index = int(indices[best(documents.digest[indices])])
                found[side].append((int(documents.digest[index]), task, index))
    if counts.all() or not counts.any() or fraction in (0, 1):
        return None
    digest, home, index = min(found[0]) if not counts[0] else max(found[1])
    num_copied = sum(int(d.size[d.digest == digest].sum()) for _, d in _documents(plan, boundaries))

    def moved(task: int, documents: _Documents) -> np.ndarray:
        is_copy = (documents.split == 0) & (documents.digest == digest)
        is_one = (np.arange(len(is_copy)) == index) & (task == home)
        return is_one if 2 * num_copied > total else is_copy

    return moved


def _split_at_end(plan: Plan, num_tasks: int, total: int, fraction: float) -> Iterator[np.ndarray]:
    """Yields the SPLIT_DTYPE array of each task, where the end of the single text validates.

    The cut may move back to the end of a line if this at most doubles the validation text.
    """
    num_validation = round(total * fraction)
    before, ends_line = 0, False
    for task in range(num_tasks):
        rows = _rows(plan, task)
        size = np.where(rows["split"] == 0, rows["size"], 0)
        starts_line = np.concatenate([[ends_line], rows["ends_line"]])
        left = total - num_validation - before - (np.cumsum(size) - size)
        found = np.zeros(len(rows), SPLIT_DTYPE)
        found["num_train"] = np.clip(left, -1, rows["size"])
        found["earliest"] = np.maximum(left - num_validation, ~starts_line[:-1])
        for split, num_train in ((1, rows["size"]), (_VALIDATION, -1)):
            found["num_train"] = np.where(rows["split"] == split, num_train, found["num_train"])
        before, ends_line = before + int(size.sum()), bool(starts_line[-1])
        yield found
