"""The run folder: its settings, environment, events, samples and lock."""

import contextlib
import datetime
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from configs.errors import SettingsError
from configs.flat_settings import (
    REPLACED,
    classify_change,
    differences,
    flatten,
    unflatten,
    up_to_date,
)
from configs.require import require
from configs.run import RunConfig
from data.atomic_files import NO_LOCKS, lock_error, write_json
from train.checkpoints.folders import checkpoint_folders, checkpoint_steps, has_set_aside

Record = dict[str, Any]
"""One line of metrics.jsonl: a number or None by name, with `step`."""

FORMAT_VERSION = 2
"""The version of run folders in config.json, which version 1 lacks."""
_LOCK_SEC = 1.0
"""How long to wait for the lock, which `holder` takes for a moment; a run keeps it."""


class RunFolder:
    """Paths and small files of a run; creating this object writes nothing.

    Only one process of a run writes; in the others, methods that would write do nothing.
    """

    def __init__(self, path: Path, *, is_writer: bool = True):
        self.path = path
        self.is_writer = is_writer
        self.metrics = path / "metrics.jsonl"
        self.events = path / "events.jsonl"
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.tensorboard = path / "tensorboard"
        self.logs = path / "logs"
        self.ledger = path / ".ledger.json"
        self.config = path / "config.json"
        self.environment = path / "environment.json"
        self.fetching = path / ".fetching"
        """Exists while the small files are fetched from durable storage."""
        self._lock = path / ".lock"
        self._event_lines = Lines(self.events, is_writer=is_writer)

    @property
    def exists(self) -> bool:
        return self.config.is_file()

    @property
    def small_files(self) -> tuple[Path, ...]:
        """The files that, with a checkpoint, make a run that can be resumed and read."""
        return (self.environment, self.metrics, self.events, self.config)

    def read_config(self) -> RunConfig:
        """Returns the settings of the run; raises SettingsError if this is not a run folder."""
        require(
            self.exists,
            f"{self.path} is not a run folder (it has no config.json); give the folder of a run, "
            "such as runs/quickstart",
        )
        try:
            flat = up_to_date(json.loads(self.config.read_text()))
            check_format(flat, self.config)
            return unflatten(flat)
        except SettingsError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SettingsError(
                f"{self.config} cannot be read as settings of this version of Tessera: {error}"
            ) from None

    def replaced_settings(self) -> list[str]:
        """Returns messages about settings of an earlier version whose values are ignored."""
        flat = json.loads(self.config.read_text())
        names = [name for name in REPLACED if name in flat]
        return [f"{name}={flat[name]} (now {REPLACED[name]})" for name in names]

    def check_free(self) -> None:
        """Raises SettingsError if the folder contains anything but a run."""
        if self.exists or self.fetching.exists() or not self.path.exists():
            return
        require(self.path.is_dir(), f"--run-dir {self.path} is a file; give a folder")
        # A process killed during its start leaves only its lock and half a config.json.
        own = (self._lock.name, f"{self.config.name}.tmp")
        strange = sorted(p.name for p in self.path.iterdir() if not p.name.startswith(own))
        require(
            not strange,
            f"--run-dir {self.path} is not a run folder, but contains {', '.join(strange[:3])}: "
            "give another --run-dir, or an empty one",
        )

    def check_settings(
        self, config: RunConfig, *, allow_changes: bool, new_run: str
    ) -> dict[str, tuple]:
        """Returns the settings that differ from those the run was made with, {name: (old, new)}.

        Raises:
            SettingsError: one is incompatible with the run, or changes training results and
                allow_changes is False.
        """
        old, step = self.read_config(), self.newest_step() or 0
        changed = differences(flatten(old), flatten(config))
        kinds = {name: classify_change(name, old, config, step) for name in changed}
        refused = {
            name: kind
            for name, kind in kinds.items()
            if kind == "incompatible" or (kind == "trajectory" and not allow_changes)
        }
        if not refused:
            return changed
        kind_text = {"trajectory": "changes training results"}
        lines = [
            f"\n  {name}: the run has {changed[name][0]}, now {changed[name][1]} "
            f"({kind_text.get(kind, kind)})"
            for name, kind in list(refused.items())[:6]
        ]
        more = f", and {len(refused) - 6} more" if len(refused) > 6 else ""
        can_allow = "incompatible" not in refused.values()
        allow = "add --allow-changes to resume anyway, " if can_allow else ""
        raise SettingsError(
            f"{self.path} was made with other settings:{''.join(lines)}{more}\n"
            f"give the settings of the run, {allow}or begin a new run: {new_run}"
        )

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Locks the folder against other runs; raises SettingsError if another holds it."""
        if not self.is_writer:
            yield
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = self._lock.open("a+")
        except OSError as error:
            raise SettingsError(
                f"--run-dir {self.path} cannot be written ({error.strerror}): make it writable, or "
                "give another --run-dir"
            ) from None
        with lock as file:
            if not _lock_within(file, _LOCK_SEC):
                raise SettingsError(
                    f"--run-dir {self.path} is in use by process {self.holder()}; wait for it, "
                    "stop it, or give another --run-dir"
                )
            file.truncate(0)
            file.write(f"{os.getpid()} {time.time_ns()}")
            file.flush()
            os.fsync(file.fileno())
            yield

    def mark(self) -> str:
        """Returns the text in the lock, which is different at every start of a run."""
        return self._lock.read_text() if self._lock.is_file() else ""

    def holder(self) -> int | None:
        """Returns the id of the process that holds the folder now, or None."""
        if not self._lock.is_file():
            return None
        with self._lock.open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int((file.read() or "0").split()[0])
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
        return None

    def begin(self, config: RunConfig, environment: dict[str, Any]) -> None:
        """Writes the settings (atomically) and, at the first start, the environment."""
        if not self.is_writer:
            return
        write_json(self.config, {"format_version": FORMAT_VERSION, **flatten(config)})
        if not self.environment.exists():
            write_json(self.environment, environment)
        self.fetching.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.samples, self.tensorboard, self.logs):
            folder.mkdir(exist_ok=True)

    def add_event(self, event: str, **details: Any) -> None:
        """Appends an event with the time; on a full disk it is appended later."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        self._event_lines.add({"time": now, "event": event, **details})

    def last_environment(self) -> dict[str, Any] | None:
        return last_start(self.read_events()).get("environment")

    def has_had_checkpoints(self) -> bool:
        """Returns whether there is or was a valid checkpoint, by its files and events."""
        is_there = checkpoint_folders(self.checkpoints) or has_set_aside(self.checkpoints)
        return bool(is_there) or any(e.get("event") == "saved" for e in self.read_events())

    def newest_step(self) -> int | None:
        """Returns the step of the newest checkpoint that has its final name and a manifest."""
        return next(reversed(checkpoint_steps(self.checkpoints)), None)

    def write_sample(self, step: int, text: str) -> bool:
        """Writes the text that was sampled at a step; returns whether that worked."""
        if not self.is_writer:
            return True
        try:
            self.sample_of(step).write_text(text, encoding="utf-8")
        except OSError:
            return False
        return True

    def sample_of(self, step: int) -> Path:
        return self.samples / f"step-{step:06d}.txt"

    def read_events(self) -> list[dict[str, Any]]:
        return read_json_lines(self.events)


def check_format(flat: dict[str, Any], where: object) -> None:
    """Takes the version out of a config.json; raises SettingsError if this one cannot read it."""
    version = flat.pop("format_version", 1)
    require(
        version in range(1, FORMAT_VERSION + 1),
        f"{where}: format_version={version} must be at most {FORMAT_VERSION}; it was made by a "
        "newer version of Tessera: use that one",
    )


class Lines:
    """Appends objects to a .jsonl file, one per line.

    Lines that cannot be written are kept, in order, and written with the next one that can.
    """

    def __init__(self, path: Path, *, is_writer: bool = True):
        """With is_writer False nothing is ever written."""
        self._path, self._is_writer = path, is_writer
        self._unwritten = b""
        self._lock = threading.Lock()

    def add(self, content: Record) -> None:
        """Appends a line, now or when that is possible again."""
        with self._lock:
            if self._is_writer:
                self._unwritten += json.dumps(content).encode() + b"\n"
            with contextlib.suppress(OSError):
                self._write()

    def flush(self) -> None:
        """Returns when all lines are on the disk; raises OSError if they cannot be written."""
        with self._lock:
            self._write(sync=True)

    def _write(self, *, sync: bool = False) -> None:
        if not self._is_writer or not (self._unwritten or (sync and self._path.exists())):
            return
        close_torn_line(self._path)
        with self._path.open("ab", buffering=0) as file:
            start, rest = file.tell(), memoryview(self._unwritten)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                file.truncate(start)
                raise
            self._unwritten = b""
            if sync:
                os.fsync(file.fileno())


def _lock_within(file: IO[str], seconds: float) -> bool:
    """Locks a file for this process alone; returns False if another holds it for so long.

    Raises SettingsError if the file system has no locks.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        except OSError as error:
            if error.errno in NO_LOCKS:
                raise lock_error(Path(file.name), error) from None
            raise
        else:
            return True


def close_torn_line(path: Path) -> None:
    """Adds the newline that a killed process left out at the end of a file."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


def last_start(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the event of the last start of a run; {} before the first."""
    return next((e for e in reversed(events) if e.get("event") == "started"), {})


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the objects of a .jsonl file; a line torn by a kill is skipped."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def read_metrics(path: Path) -> dict[int, Record]:
    """Returns {step: record}, the last line of each step: those before a resume are superseded."""
    records = {record["step"]: record for record in read_json_lines(path) if "step" in record}
    return dict(sorted(records.items()))
