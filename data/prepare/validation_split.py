"""The pass between scanning and writing that settles which text validates."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from configs.data import PrepareConfig
from data.atomic_files import save_array
from data.prepare.plan import Plan
from data.prepare.text.corpus import SPLITS

SPLIT_DTYPE = np.dtype([("num_train", "<i8"), ("earliest", "<i8"), ("opens", "?")])
"""Of each document or piece: `Document.num_train`, the first place a cut may be moved to, and
whether a document begins there though what its file begins with could not be read."""
_USUAL_FRACTION, _USUAL_BYTES = 0.1, 100_000_000
_VALIDATION = 1 + SPLITS.index("validation")


class _Whole(NamedTuple):
    """The documents that begin in a task, with all of their pieces."""

    size: np.ndarray
    digest: np.ndarray
    split: np.ndarray
    """As SCANNED_DTYPE has it: 0 where no name decides."""


class _Edge(NamedTuple):
    """What other tasks say of the documents at both ends of one."""

    opens: bool
    """Nothing of its first row's file comes before, so that a document begins there."""
    goes_on: bool
    """A later task goes on with its last document."""
    tail: int
    """How much later tasks have of the last document that begins in it."""


@dataclass(frozen=True)
class ValidationSplit:
    """How a text is split."""

    rule: str
    fraction: float
    """What was to validate of the text that no name decides about."""
    num_train: tuple[int, ...]
    """Characters (or tokens) of each task that train."""
    num_characters: int
    """Those of all tasks, in both splits."""

    def describe(self) -> str:
        """Returns in words what validates."""
        share = 1 - sum(self.num_train) / max(1, self.num_characters)
        return f"validation: {self.rule}; {share:.2%} of the text"


def choose_split(plan: Plan, scans: Sequence[dict[str, Any]]) -> ValidationSplit:
    """Writes down for each document how much of it trains.

    What no name decides about is split by whole documents. One validates if the digest of
    data.validation_seed and of its bytes (those of its first 65,536 characters or tokens) is in the
    lowest `fraction` of all digests, unless it is longer than all that is to validate. So neither
    order nor other documents matter, and equal ones are on one side. A single text is cut, after a
    line where one ends near.
    """
    edges = _edges(plan, scans)
    fraction = _fraction(plan.config, sum(scan["bytes"] for scan in scans))
    total = num_open = 0
    for _, whole in _wholes(plan, edges):
        total += int(whole.size[whole.split == 0].sum())
        num_open += int((whole.split == 0).sum())
    if num_open == 1:
        rule, places = "the end of the one text", _cut_places(plan, len(scans), total, fraction)
    else:
        rule = "whole documents, by digest" if num_open else "by the names of files"
        places = _whole_places(plan, edges, total, fraction)
    rule = {0.0: "none", 1.0: "all of it"}.get(fraction, rule) if num_open else rule
    num_train = []
    for task, place in enumerate(places):
        place["opens"][:1] = edges[task].opens
        save_array(plan.path("split", task, "npy"), place)
        num_train.append(int(np.maximum(place["num_train"], 0).sum()))
    return ValidationSplit(
        rule, fraction, tuple(num_train), sum(scan["characters"] for scan in scans)
    )


def _fraction(config: PrepareConfig, num_bytes: int) -> float:
    """Returns the part of the text that is to validate: data.validation_fraction, or the usual."""
    if config.validation_fraction is not None:
        return config.validation_fraction
    return min(_USUAL_FRACTION, _USUAL_BYTES / max(1, num_bytes))


def _rows(plan: Plan, task: int) -> np.ndarray:
    """Returns what scanning said of the documents of a task that are tokenized."""
    rows = np.load(plan.path("scanned", task, "npy"))
    return rows[~np.load(plan.path("dropped", task, "npy"))] if plan.finds_duplicates else rows


def _begins(rows: np.ndarray, edge: _Edge) -> np.ndarray:
    """Returns which rows begin a document; a separator that nothing follows begins none."""
    begins = rows["begins"].copy()
    begins[:1] |= edge.opens
    goes_on = np.append(~begins[1:], edge.goes_on)[: len(rows)]
    return begins & ((rows["size"] > 0) | goes_on)


def _edges(plan: Plan, scans: Sequence[dict[str, Any]]) -> list[_Edge]:
    """Returns how the documents of each task go on in others, and counts those that open one."""
    last, opens = None, []
    for scan in scans:
        names = [*scan["by_file"]]
        opens.append(bool(names) and names[0] != last)
        last = names[-1] if names else last
    tail, goes_on, edges = 0, False, []
    for task in reversed(range(len(scans))):
        rows = _rows(plan, task)
        edges.append(edge := _Edge(opens[task], goes_on, tail))
        first = np.flatnonzero(_begins(rows, edge))
        tail = int(rows["size"][: first[0]].sum()) if len(first) else tail + int(rows["size"].sum())
        if len(rows):
            goes_on = not (rows["begins"][0] or edge.opens)
        if opens[task] and len(rows) and not rows["begins"][0]:
            scans[task]["documents"] += 1
            scans[task]["by_file"][next(iter(scans[task]["by_file"]))] += 1
    return edges[::-1]


def _wholes(plan: Plan, edges: Sequence[_Edge]) -> Iterator[tuple[np.ndarray, _Whole]]:
    """Yields the rows of each task and the documents that begin in it."""
    for task, edge in enumerate(edges):
        rows = _rows(plan, task)
        first = np.flatnonzero(_begins(rows, edge))
        size = np.add.reduceat(rows["size"], first) if len(first) else np.zeros(0, np.int64)
        size[-1:] += edge.tail
        yield rows, _Whole(size, rows["digest"][first], rows["split"][first])


def _whole_places(
    plan: Plan, edges: Sequence[_Edge], total: int, fraction: float
) -> Iterator[np.ndarray]:
    """Yields what SPLIT_DTYPE says of each task where whole documents validate."""
    changed = _changed(plan, edges, total, fraction)
    goes_on = fraction == 1  # what the documents before have settled for their pieces in this task
    for task, (rows, whole) in enumerate(_wholes(plan, edges)):
        validates = _is_low(whole, total, fraction) | (whole.split == _VALIDATION)
        if changed is not None:
            validates ^= changed(task, whole)
        of_row = np.concatenate([[goes_on], validates])[np.cumsum(_begins(rows, edges[task]))]
        goes_on = bool(of_row[-1]) if len(of_row) else goes_on
        place = np.zeros(len(rows), SPLIT_DTYPE)
        place["num_train"] = np.where(of_row, -1, rows["size"])
        yield place


def _is_low(whole: _Whole, total: int, fraction: float) -> np.ndarray:
    """Returns which documents validate by the rule alone."""
    is_low = whole.digest / 2.0**64 < fraction
    return (whole.split == 0) & (whole.size <= fraction * total) & is_low


def _changed(
    plan: Plan, edges: Sequence[_Edge], total: int, fraction: float
) -> Callable[[int, _Whole], np.ndarray] | None:
    """Returns what says which documents change sides so that no split is empty, if any have to.

    Of the documents of at most half of the text that with the lowest digest validates, or of all
    that with the highest trains: with its copies, unless these were more than half.
    """
    counts = np.zeros(2, int)
    found: list[list[tuple[int, int, int]]] = [[], []]  # the lowest and highest of each task
    for task, (_, whole) in enumerate(_wholes(plan, edges)):
        is_open, is_low = whole.split == 0, _is_low(whole, total, fraction)
        counts += int(is_low.sum()), int((is_open & ~is_low).sum())
        for side, may, best in ((0, 2 * whole.size <= total, np.argmin), (1, True, np.argmax)):
            if len(indices := np.flatnonzero(is_open & may)):
                index = int(indices[best(whole.digest[indices])])
                found[side].append((int(whole.digest[index]), task, index))
    if counts.all() or not counts.any() or fraction in (0, 1):
        return None
    digest, home, index = min(found[0]) if not counts[0] else max(found[1])
    num_copied = sum(int(w.size[w.digest == digest].sum()) for _, w in _wholes(plan, edges))

    def changed(task: int, whole: _Whole) -> np.ndarray:
        is_copy = (whole.split == 0) & (whole.digest == digest)
        is_one = (np.arange(len(is_copy)) == index) & (task == home)
        return is_one if 2 * num_copied > total else is_copy

    return changed


def _cut_places(plan: Plan, num_tasks: int, total: int, fraction: float) -> Iterator[np.ndarray]:
    """Yields what SPLIT_DTYPE says of each task where the end of the one text validates.

    The cut may move back to the end of a line, as far as this at most doubles what validates.
    """
    num_validation = round(total * fraction)
    before, ends_line = 0, False
    for task in range(num_tasks):
        rows = _rows(plan, task)
        size = np.where(rows["split"] == 0, rows["size"], 0)
        starts_line = np.concatenate([[ends_line], rows["ends_line"]])
        left = total - num_validation - before - (np.cumsum(size) - size)
        place = np.zeros(len(rows), SPLIT_DTYPE)
        place["num_train"] = np.clip(left, -1, rows["size"])
        place["earliest"] = np.maximum(left - num_validation, ~starts_line[:-1])
        for split, num_train in ((1, rows["size"]), (_VALIDATION, -1)):
            place["num_train"] = np.where(rows["split"] == split, num_train, place["num_train"])
        before, ends_line = before + int(size.sum()), bool(starts_line[-1])
        yield place
