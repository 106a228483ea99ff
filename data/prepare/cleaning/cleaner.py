"""The cleaning steps that read one document at a time, run in order, and what they did."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from configs.data import CleanStep, PrepareConfig
from data.prepare.cleaning.boilerplate import drop_boilerplate_lines
from data.prepare.cleaning.c4 import clean_like_c4
from data.prepare.cleaning.characters import make_control_characters, make_length, normalise
from data.prepare.cleaning.cleaning_step import CleaningStep, Dropped
from data.prepare.cleaning.decontaminate import make_decontaminate
from data.prepare.cleaning.gopher import check_quality, check_repetition, check_stop_words
from data.prepare.cleaning.html import make_html
from data.prepare.cleaning.language import make_language
from data.prepare.cleaning.personal_data import mask_personal

_MAKERS: dict[CleanStep, Callable[[PrepareConfig, Iterable[str]], CleaningStep]] = {
    "unicode": lambda config, overlap_texts: normalise,
    "html": lambda config, overlap_texts: make_html(),
    "control_characters": lambda config, overlap_texts: make_control_characters(),
    "boilerplate_lines": lambda config, overlap_texts: drop_boilerplate_lines,
    "length": lambda config, overlap_texts: make_length(config),
    "gopher_quality": lambda config, overlap_texts: check_quality,
    "gopher_stop_words": lambda config, overlap_texts: check_stop_words,
    "gopher_repetition": lambda config, overlap_texts: check_repetition,
    "c4": lambda config, overlap_texts: clean_like_c4,
    "language": lambda config, overlap_texts: make_language(config),
    "mask_personal": lambda config, overlap_texts: mask_personal,
    "decontaminate": make_decontaminate,
}
LOCAL_STEPS: tuple[CleanStep, ...] = tuple(_MAKERS)
"""Every CleanStep but those of DUPLICATE_STEPS, which compare documents."""

NOTHING_LEFT = "nothing left"
"""The rule of a document that a step leaves only white space of."""

NUM_EXAMPLES = 3
"""Examples in a report for each step: this many changed and this many dropped documents."""
EXCERPT_CHARACTERS = 80
_COUNTS = ("documents", "changed", "dropped", "characters_removed")
_EXAMPLES = ("changed_examples", "dropped_examples")

Report = list[dict[str, Any]]
"""What each step did, in order, as JSON; see `Cleaner.report`."""


class Cleaner:
    """The steps of data.clean that read one document at a time, and a report of what they did."""

    report: Report
    """For each step, under these keys:

    step: its name. documents: how many it read. changed: how many it changed and kept. dropped: how
    many it dropped. characters_removed: characters read minus characters kept; all characters of a
    dropped document, negative where text grew. rules: {rule: documents dropped by it}.
    changed_examples, dropped_examples: the first few, in the order of the corpus, as {document,
    before, after} around the first difference, or as {document, rule, text}.
    """

    def __init__(self, config: PrepareConfig, overlap_texts: Iterable[str] = ()):
        names: list[CleanStep] = [name for name in config.clean if name in LOCAL_STEPS]
        self._steps = [make_cleaning_step(name, config, overlap_texts) for name in names]
        self.report = [_empty_report(name) for name in names]

    def with_empty_report(self) -> "Cleaner":
        other = copy.copy(self)
        other.report = [_empty_report(report["step"]) for report in self.report]
        return other

    def __call__(self, name: str, text: str) -> str | None:
        """Returns the text of a document after all steps, or None if a step drops it."""
        for step, report in zip(self._steps, self.report, strict=True):
            after = step(text)
            if isinstance(after, str) and not after.strip():
                after = Dropped(NOTHING_LEFT)
            _record(report, name, text, after)
            if isinstance(after, Dropped):
                return None
            text = after
        return text


def make_cleaning_step(
    name: CleanStep, config: PrepareConfig, overlap_texts: Iterable[str] = ()
) -> CleaningStep:
    """Returns a step of LOCAL_STEPS; raises SettingsError if its settings cannot be used."""
    return _MAKERS[name](config, overlap_texts)


def merge_reports(reports: Sequence[Report]) -> Report:
    """Returns the reports of consecutive tasks, given in order, as one.

    It equals the report of one Cleaner that cleans the documents of all tasks.
    """
    merged: Report = []
    for of_step in zip(*reports, strict=True):
        total = _empty_report(of_step[0]["step"])
        for report in of_step:
            assert report["step"] == total["step"]
            for count in _COUNTS:
                total[count] += report[count]
            for rule, number in report["rules"].items():
                total["rules"][rule] = total["rules"].get(rule, 0) + number
            for examples in _EXAMPLES:
                total[examples] = (total[examples] + report[examples])[:NUM_EXAMPLES]
        merged.append(total)
    return merged


def _empty_report(name: CleanStep) -> dict[str, Any]:
    examples = {key: [] for key in _EXAMPLES}
    return {"step": name, **dict.fromkeys(_COUNTS, 0), "rules": {}, **examples}


def _record(report: dict[str, Any], name: str, before: str, after: str | Dropped) -> None:
    report["documents"] += 1
    if isinstance(after, Dropped):
        report["dropped"] += 1
        report["characters_removed"] += len(before)
        report["rules"][after.rule] = report["rules"].get(after.rule, 0) + 1
        if len(report["dropped_examples"]) < NUM_EXAMPLES:
            example = {"document": name, "rule": after.rule, "text": before[:EXCERPT_CHARACTERS]}
            report["dropped_examples"].append(example)
    elif after != before:
        report["changed"] += 1
        report["characters_removed"] += len(before) - len(after)
        if len(report["changed_examples"]) < NUM_EXAMPLES:
            report["changed_examples"].append({"document": name, **_excerpts(before, after)})


def _excerpts(before: str, after: str) -> dict[str, str]:
    pairs = enumerate(zip(before, after, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), min(len(before), len(after)))
    start = max(first - EXCERPT_CHARACTERS // 4, 0)
    window = slice(start, start + EXCERPT_CHARACTERS)
    return {"before": before[window], "after": after[window]}
