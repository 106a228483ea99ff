"""The pass between scanning and writing that drops duplicates of earlier documents."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from configs.data import DUPLICATE_STEPS, PrepareConfig
from data.atomic_files import require_space, save_array
from data.prepare.cleaning.duplicates import KEPT, bands_and_rows, find_duplicates
from data.prepare.plan import Plan
from data.prepare.tasks import SCANNED_DTYPE

_NUM_EXAMPLES = 5
_SPARE_BYTES = 2**20


def drop_duplicates(
    plan: Plan, scans: Sequence[dict[str, Any]], first_lines: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Writes which documents of each task are dropped, and returns the section of the report.

    Subtracts them from the documents and characters of `scans`. `first_lines` has, for each byte
    range of each task, the number of lines before it in its file.
    """
    tasks = range(len(scans))
    files = [plan.path("signatures", task, "npy") for task in tasks]

    def scanned(task: int) -> np.ndarray:  # one at a time: there may be more than files can be open
        return np.load(plan.path("scanned", task, "npy"))

    lengths = [len(scanned(task)) for task in tasks]
    starts = np.cumsum([0, *lengths])
    report: dict[str, Any] = {}
    dropped = [np.zeros(length, bool) for length in lengths]
    for step in (step for step in plan.config.clean if step in DUPLICATE_STEPS):
        # Each step with those before it: what it adds to them is its own.
        steps = plan.config.clean[: plan.config.clean.index(step) + 1]
        require_space(plan.work, _num_bytes_needed(int(starts[-1]), plan.config))
        found = find_duplicates(files, replace(plan.config, clean=steps), plan.work / step)
        counts = {"dropped": 0, "characters_removed": 0, "examples": []}
        for task in tasks:
            new = (found[task] != KEPT) & ~dropped[task]
            rows = scanned(task)
            sizes = rows["size"][new]
            counts["dropped"] += int(new.sum())
            counts["characters_removed"] += int(sizes.sum())
            scans[task]["documents"] -= int(rows["begins"][new].sum())
            scans[task]["characters"] -= int(sizes.sum())
            for i in np.flatnonzero(new)[: _NUM_EXAMPLES - len(counts["examples"])].tolist():
                earlier = int(found[task][i])
                home = int(np.searchsorted(starts, earlier, "right")) - 1
                example = {
                    "document": _name(plan, task, rows[i], first_lines),
                    "repeats": _name(
                        plan, home, scanned(home)[earlier - int(starts[home])], first_lines
                    ),
                }
                counts["examples"].append(example)
            dropped[task] |= found[task] != KEPT
        report[step] = counts
    for task in tasks:
        save_array(plan.path("dropped", task, "npy"), dropped[task])
    return json.loads(json.dumps(report))


def _num_bytes_needed(num_documents: int, config: PrepareConfig) -> int:
    num_bands, _ = bands_and_rows(config.duplicate_similarity)
    entries = max(24, 16 * num_bands if "near_duplicates" in config.clean else 0)
    return num_documents * (entries + 8) + _SPARE_BYTES


def _name(plan: Plan, task: int, row: Any, first_lines: Sequence[Sequence[int]]) -> str:
    assert row.dtype == SCANNED_DTYPE
    index = int(row["part"])
    number = first_lines[task][index] + int(row["number"])
    return plan.corpus.document_name(plan.corpus.tasks[task][index].file, number)
