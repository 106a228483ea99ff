"""`./tessera report RUN`: one page that tells the whole story of a run, running or not."""

import contextlib
import datetime
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.check import require
from configs.errors import SettingsError
from data.atomic_files import whole_file
from launch.arguments import RunPath, parse_arguments
from launch.commands.checkpoints import SavedCheckpoint, look
from launch.commands.status import read_status
from launch.printable import visible
from launch.reading.event_messages import Event, name_of
from train.checkpoints.manifest import checkpoint_folders, other_names
from train.record.run_folder import Record, RunFolder, read_metrics
from train.record.time_ledger import CLASSES

_PAGE = "report.html"
_NUM_SAMPLES = 3
_SAMPLE_CHARACTERS = 4000


@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    """Writes a page about a run: curves, time, events, samples, settings."""

    run: RunPath
    """The run folder."""
    out: Path | None = None
    """The page; None writes RUN/report.html."""
    json: bool = False
    """Print nothing but one JSON object, on one line."""


@dataclass(frozen=True, kw_only=True)
class TimeLedger:
    """Where the time of a run went, all of it as one moment has it."""

    seconds: dict[str, float]
    """By class; {} where the run keeps no ledger."""
    passed_sec: float | None
    """From the first start to that moment by the clock; None where the run has not left it."""

    @property
    def counted_sec(self) -> float:
        """The sum of the classes, which is to be what has passed."""
        return sum(self.seconds.values())

    @property
    def unaccounted_sec(self) -> float | None:
        """What has passed and is in no class; negative where more is counted than has passed."""
        return None if self.passed_sec is None else self.passed_sec - self.counted_sec


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """All that the page shows of a run."""

    run: str
    """The folder, as it was given."""
    written: datetime.datetime
    status: dict[str, Any]
    records: dict[int, Record]
    """{step: record} without what a resume has superseded."""
    events: list[Event]
    checkpoints: list[SavedCheckpoint]
    set_aside: list[str]
    """Folders beside the checkpoints that do not count: being saved, damaged."""
    samples: dict[int, str]
    """{step: text} of the last few, long ones cut."""
    settings: dict[str, Any]
    environments: tuple[dict[str, Any], dict[str, Any]]
    """Of the first and of the last start."""
    ledger: TimeLedger

    @property
    def last_record(self) -> Record:
        """The last line of metrics; {} before the first."""
        return next(reversed(self.records.values()), {})

    @property
    def goodput(self) -> float | None:
        """The part of the run's life that went into steps, from 0 to 1."""
        counted = self.ledger.counted_sec
        return self.ledger.seconds.get("step", 0.0) / counted if counted else None

    def curve(self, name: str) -> list[tuple[int, float | None]]:
        """Returns (step, value) of the records that have a key; None is what was not finite."""
        return [(s, finite(record[name])) for s, record in self.records.items() if name in record]

    def to_json(self) -> dict[str, Any]:
        """Returns the numbers of the report as JSON can hold them."""
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


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    parsed = parse_arguments(ReportArguments, arguments, command="./tessera report")
    folder = RunFolder(parsed.run)
    report = read_report(folder)
    page = write_page(report, folder, parsed.out)
    if parsed.json:
        print(json.dumps({**report.to_json(), "page": str(page)}))
        return 0
    goodput = "" if report.goodput is None else f", goodput {report.goodput:.1%}"
    status = report.status
    steps = f"{status['step']:,} of {status['num_steps']:,} steps"
    print(f"wrote {visible(str(page))}: {status['state']}, {steps}{goodput}")
    return 0


def read_report(folder: RunFolder) -> RunReport:
    """Returns all there is to tell of a run, which is not touched and may be running.

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
        checkpoints=list(_saved(checkpoints)),
        set_aside=other_names(checkpoints),
        samples=_last_samples(folder.samples),
        settings={k: v for k, v in _read_object(folder.config).items() if k != "format_version"},
        environments=(first, folder.last_environment() or first),
        ledger=_read_ledger(folder.ledger, records),
    )


def write_page(report: RunReport, folder: RunFolder, out: Path | None) -> Path:
    """Writes the page, whole or not at all, and returns where it is.

    Raises:
        SettingsError: it cannot be written there, or would take the place of a file of the run.
    """
    from launch.pages.run_page import run_page

    page = folder.path / _PAGE if out is None else out.expanduser()
    run = folder.path.resolve()
    require(
        page.resolve() == run / _PAGE or run not in page.resolve().parents,
        f"--out={page} is in the run folder, where only {_PAGE} may be written; give a file "
        "elsewhere, or leave --out away",
    )
    content = run_page(report)
    try:
        with whole_file(page) as temporary:
            temporary.write_text(content, encoding="utf-8")
    except OSError as error:
        way_out = "give --out FILE" if out is None else "give a file in a folder that is there"
        raise SettingsError(
            f"{'--out=' if out else ''}{page} cannot be written ({error.strerror}): {way_out}"
        ) from None
    return page


def finite(value: Any) -> float | None:
    """Returns a value that is a finite number, None for all others."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def _without_nan(value: Any) -> Any:
    return finite(value) if isinstance(value, float) else value


def _saved(folder: Path) -> Iterator[SavedCheckpoint]:
    """Yields the checkpoints, oldest first; one that a run removes meanwhile is left out."""
    for step in checkpoint_folders(folder):
        found = look(folder, step, "sizes")
        if (folder / str(step)).is_dir():
            yield found


def _last_samples(folder: Path) -> dict[int, str]:
    """Returns {step: text}; a link is no sample, for it may lead anywhere."""
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


def _read_ledger(path: Path, records: dict[int, Record]) -> TimeLedger:
    """Returns the ledger as it was last written, else the older one of the last record."""
    said = _read_object(path)
    try:
        seconds = {kind: float(value) for kind, value in said["seconds"].items()}
        passed = round(float(said["beat"]) - float(said["first_start"]), 3)
    except (KeyError, TypeError, ValueError, AttributeError):
        last = next(reversed(records.values()), {})
        seconds, passed = {kind: last.get(f"goodput/{kind}_sec") for kind in CLASSES}, None
    counted = {kind: sec for kind in CLASSES if (sec := finite(seconds.get(kind))) is not None}
    return TimeLedger(seconds=counted, passed_sec=passed)


def _read_object(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; {} where there is none, or none that can be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
