"""What happens to one document after the other, and what is written down about it."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from configs.data import CleanStep, PrepareConfig
from data.prepare.cleaning.cleaning_step import Dropped
from data.prepare.cleaning.step_table import LOCAL_STEPS, make_cleaning_step

NOTHING_LEFT = "nothing left"
"""The rule by which a step drops a document of which it leaves only white space."""

NUM_EXAMPLES = 3
"""Documents that a report shows for each step: so many it changed, and so many it dropped."""
EXCERPT_CHARACTERS = 80

Report = list[dict[str, Any]]
"""What each step did, in order; see `Cleaner.report`. JSON can hold it."""


class Cleaner:
    """The steps of data.clean that look at one document, and a report of what they did."""

    report: Report
    """For each step, under these keys:

    step: its name. documents: how many it was given. changed: how many it altered and kept.
    dropped: how many it left out. characters_removed: characters given minus characters kept; all
    those of a dropped document, and less than zero where text grew. rules: {rule: documents dropped
    by it}. changed_examples, dropped_examples: the first few, in the order of the corpus, as
    {document, before, after} around the first difference, or as {document, rule, text}.
    """

    def __init__(self, config: PrepareConfig, overlap_texts: Iterable[str] = ()):
        names: list[CleanStep] = [name for name in config.clean if name in LOCAL_STEPS]
        self._steps = [make_cleaning_step(name, config, overlap_texts) for name in names]
        self.report = [_empty_report(name) for name in names]

    def anew(self) -> "Cleaner":
        """Returns a cleaner of the same steps with an empty report; it costs nothing to make."""
        other = copy.copy(self)
        other.report = [_empty_report(report["step"]) for report in self.report]
        return other

    def __call__(self, name: str, text: str) -> str | None:
        """Returns the text of a document after all steps, or None if one of them drops it."""
        for step, report in zip(self._steps, self.report, strict=True):
            after = step(text)
            if isinstance(after, str) and not after.strip():
                after = Dropped(NOTHING_LEFT)
            _note(report, name, text, after)
            if isinstance(after, Dropped):
                return None
            text = after
        return text


def merge_reports(reports: Sequence[Report]) -> Report:
    """Returns one report of tasks whose documents follow one another, given in that order.

    It is the report of a Cleaner that had cleaned the documents of all tasks itself.
    """
    merged: Report = []
    for of_step in zip(*reports, strict=True):
        total = _empty_report(of_step[0]["step"])
        for report in of_step:
            assert report["step"] == total["step"]
            for count in ("documents", "changed", "dropped", "characters_removed"):
                total[count] += report[count]
            for rule, number in report["rules"].items():
                total["rules"][rule] = total["rules"].get(rule, 0) + number
            for examples in ("changed_examples", "dropped_examples"):
                total[examples] = (total[examples] + report[examples])[:NUM_EXAMPLES]
        merged.append(total)
    return merged


def _empty_report(name: CleanStep) -> dict[str, Any]:
    return {
        "step": name,
        **dict.fromkeys(("documents", "changed", "dropped", "characters_removed"), 0),
        "rules": {},
        "changed_examples": [],
        "dropped_examples": [],
    }


def _note(report: dict[str, Any], name: str, before: str, after: str | Dropped) -> None:
    report["documents"] += 1
    if isinstance(after, Dropped):
        report["dropped"] += 1
        report["characters_removed"] += len(before)
        report["rules"][after.rule] = report["rules"].get(after.rule, 0) + 1
        if len(report["dropped_examples"]) < NUM_EXAMPLES:
            text = before[:EXCERPT_CHARACTERS]
            example = {"document": name, "rule": after.rule, "text": text}
            report["dropped_examples"].append(example)
    elif after != before:
        report["changed"] += 1
        report["characters_removed"] += len(before) - len(after)
        if len(report["changed_examples"]) < NUM_EXAMPLES:
            excerpts = _excerpts(before, after)
            report["changed_examples"].append({"document": name, **excerpts})


def _excerpts(before: str, after: str) -> dict[str, str]:
    """Returns the two texts around the place where they first differ."""
    pairs = enumerate(zip(before, after, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), min(len(before), len(after)))
    start = max(first - EXCERPT_CHARACTERS // 4, 0)
    window = slice(start, start + EXCERPT_CHARACTERS)
    return {"before": before[window], "after": after[window]}
