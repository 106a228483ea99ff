"""A run read into one object: records, events, checkpoints, samples, time ledger, settings."""

import contextlib
import datetime
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.reading.checkpoint_list import SavedCheckpoint, list_checkpoints
from launch.reading.event_messages import Event, name_of
from launch.reading.run_status import read_status
from train.checkpoints.folders import other_names
from train.record.run_folder import Record, RunFolder, read_metrics
from train.record.time_ledger import CATEGORIES

_NUM_SAMPLES = 3
_SAMPLE_CHARACTERS = 4000


@dataclass(frozen=True, kw_only=True)
class LedgerReport:
    """Where the time of a run went, at one moment."""

    seconds: dict[str, float]
    """By class; {} where the run keeps no ledger."""
    passed_sec: float | None
    """Wall time from the first start to that moment; None if the run has no ledger file."""

    @property
    def counted_sec(self) -> float:
        """The sum of the classes, which should equal the wall time."""
        return sum(self.seconds.values())

    @property
    def unaccounted_sec(self) -> float | None:
        """Wall time that is in no class; negative if the classes sum to more than the wall time."""
        return None if self.passed_sec is None else self.passed_sec - self.counted_sec


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """A run, as its folder has it at one moment."""

    run: str
    """The folder, as it was given."""
    written: datetime.datetime
    status: dict[str, Any]
    records: dict[int, Record]
    """{step: record} without records that a resume superseded."""
    events: list[Event]
    checkpoints: list[SavedCheckpoint]
    set_aside: list[str]
    """Folders beside the checkpoints that are none: being saved, damaged, set aside."""
    samples: dict[int, str]
    """{step: text} of the last few, truncated."""
    settings: dict[str, Any]
    environments: tuple[dict[str, Any], dict[str, Any]]
    """Of the first and of the last start."""
    ledger: LedgerReport

    @property
    def last_record(self) -> Record:
        """The last line of metrics; {} before the first."""
        return next(reversed(self.records.values()), {})

    @property
    def goodput(self) -> float | None:
        """The share of the wall time spent in training steps, from 0 to 1."""
        counted = self.ledger.counted_sec
        return self.ledger.seconds.get("step", 0.0) / counted if counted else None

    def curve(self, name: str) -> list[tuple[int, float | None]]:
        """Returns (step, value) of the records that have a key; None for a nonfinite value."""
        return [(s, finite(record[name])) for s, record in self.records.items() if name in record]

    def to_json(self) -> dict[str, Any]:
        unaccounted = self.ledger.unaccounted_sec
        return {
            **{name: self.status[name] for name in ("run", "state", "step", "num_steps")},
            "ledger": self.ledger.seconds,
            "goodput": self.goodput,
            "wall_clock_sec": self.ledger.passed_sec,
            "unaccounted_sec": None if unaccounted is None else round(unaccounted, 3),
            "events": dict(Counter(map(name_of, self.events))),
            "last_record": {k: _without_nan(v) for k, v in self.last_record.items()},
        }


def read_report(folder: RunFolder) -> RunReport:
    """Returns the report of a run, which may be running and is not changed.

    Raises:
        SettingsError: the folder is not a run folder.
    """
    status = read_status(folder)
    events = folder.read_events()
    first = _read_object(folder.environment)
    checkpoints, records = folder.checkpoints, read_metrics(folder.metrics)
    return RunReport(
        run=str(folder.path),
        written=datetime.datetime.now(datetime.UTC),
        status=status,
        records=records,
        events=events,
        checkpoints=list_checkpoints(checkpoints, "sizes"),
        set_aside=other_names(checkpoints),
        samples=_last_samples(folder.samples),
        settings={k: v for k, v in _read_object(folder.config).items() if k != "format_version"},
        environments=(first, folder.last_environment() or first),
        ledger=_read_ledger(folder.ledger, records),
    )


def finite(value: Any) -> float | None:
    """Returns a finite number as it is, None for all else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def _without_nan(value: Any) -> Any:
    return finite(value) if isinstance(value, float) else value


def _last_samples(folder: Path) -> dict[int, str]:
    """Returns {step: text}; links are skipped, because they may lead anywhere."""
    paths = {
        int(number): path
        for path in folder.glob("step-*.txt")
        if (number := path.stem.removeprefix("step-")).isdecimal() and not path.is_symlink()
    }
    texts = {}
    for step in sorted(paths)[-_NUM_SAMPLES:]:
        with (
            contextlib.suppress(OSError),
            paths[step].open(encoding="utf-8", errors="replace") as file,
        ):
            text = file.read(_SAMPLE_CHARACTERS + 1)
            is_cut = len(text) > _SAMPLE_CHARACTERS
            texts[step] = f"{text[:_SAMPLE_CHARACTERS]}…" if is_cut else text
    return texts


def _read_ledger(path: Path, records: dict[int, Record]) -> LedgerReport:
    """Returns the ledger of its file, else the older one of the last record."""
    content = _read_object(path)
    try:
        seconds = {kind: float(value) for kind, value in content["seconds"].items()}
        passed = round(float(content["beat"]) - float(content["first_start"]), 3)
    except (KeyError, TypeError, ValueError, AttributeError):
        last = next(reversed(records.values()), {})
        seconds, passed = {kind: last.get(f"goodput/{kind}_sec") for kind in CATEGORIES}, None
    counted = {kind: sec for kind in CATEGORIES if (sec := finite(seconds.get(kind))) is not None}
    return LedgerReport(seconds=counted, passed_sec=passed)


def _read_object(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; {} if there is none or it cannot be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
