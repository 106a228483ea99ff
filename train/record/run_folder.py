"""The folder of a run: what it was made with, what happened, and who holds it now."""

import contextlib
import datetime
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from configs.check import require
from configs.errors import SettingsError
from configs.run import RunConfig
from configs.settings import (
    REPLACED,
    classify_change,
    differences,
    flatten,
    unflatten,
    without_replaced,
)
from data.atomic_files import NO_LOCKS, lock_error, write_json
from train.checkpoints.manifest import checkpoint_folders, checkpoint_steps, has_set_aside

Record = dict[str, Any]
"""One line of metrics.jsonl: a number or None by name, `step` among them."""

FORMAT_VERSION = 2
"""Of run folders, in config.json: 1 is without a number there."""
_LOCK_SEC = 1.0
"""A look at the lock (`holder`) takes it for a moment; a run keeps it."""


class RunFolder:
    """Names and small files of one run; nothing is created until it is asked for.

    Of the processes of a run one writes. In the others, what would write does nothing.
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
        """There while the small files come from durable storage."""
        self._lock = path / ".lock"
        self._untold = Lines(self.events)

    @property
    def exists(self) -> bool:
        """Whether a run has begun here."""
        return self.config.is_file()

    @property
    def small_files(self) -> tuple[Path, ...]:
        """What makes, beside checkpoints, a run: whoever has these can go on and look back."""
        return (self.environment, self.metrics, self.events, self.config)

    def read_config(self) -> RunConfig:
        """Returns the settings of the run; raises SettingsError if this is not a run folder."""
        require(
            self.exists,
            f"{self.path} is not a run folder (it has no config.json); give the folder of a run, "
            "such as runs/quickstart",
        )
        try:
            flat = without_replaced(self._read_flat())
            version = flat.pop("format_version", 1)
            require(
                version <= FORMAT_VERSION,
                f"{self.config}: format_version={version} must be at most {FORMAT_VERSION}; the "
                "run was made by a newer version of Tessera: go on with that one",
            )
            return unflatten(flat)
        except SettingsError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SettingsError(
                f"{self.config} cannot be read as settings of this version of Tessera: {error}"
            ) from None

    def _read_flat(self) -> dict[str, Any]:
        return json.loads(self.config.read_text())

    def replaced_settings(self) -> list[str]:
        """Returns, in words, the settings of an earlier version that have a successor now."""
        flat = self._read_flat()
        names = [name for name in REPLACED if name in flat]
        return [f"{name}={flat[name]} (now {REPLACED[name]})" for name in names]

    def check_free(self) -> None:
        """Raises SettingsError if the folder holds something that is not a run of ours."""
        if self.exists or self.fetching.exists() or not self.path.exists():
            return
        require(self.path.is_dir(), f"--run-dir {self.path} is a file; give a folder")
        # A process killed as it began has left no more than its lock and half a config.json.
        own = (self._lock.name, f"{self.config.name}.tmp")
        strange = sorted(p.name for p in self.path.iterdir() if not p.name.startswith(own))
        require(
            not strange,
            f"--run-dir {self.path} is not a run folder, but holds {', '.join(strange[:3])}: give "
            "another --run-dir, or an empty one",
        )

    def check_settings(
        self, config: RunConfig, *, allow_changes: bool, new_run: str
    ) -> dict[str, tuple]:
        """Returns the settings that differ from those the run was made with, {name: (old, new)}.

        Args:
            new_run: the command that begins a new run with these settings.

        Raises:
            SettingsError: one of them would not fit the run, or would change training results and
                allow_changes is not given.
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
            f"  {name}: the run has {changed[name][0]}, now {changed[name][1]} "
            f"({kind_text.get(kind, kind)})"
            for name, kind in list(refused.items())[:6]
        ]
        if len(refused) > 6:
            lines[-1] += f", and {len(refused) - 6} more"
        ways_out = ["give the settings of the run"]
        if "incompatible" not in refused.values():
            ways_out.append("add --allow-changes to resume anyway")
        raise SettingsError(
            "\n".join([f"{self.path} was made with other settings:", *lines])
            + f"\n{', '.join(ways_out)}, or begin a new run: {new_run}"
        )

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds the folder against other runs; raises SettingsError if another has it."""
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
        """Returns what whoever holds the folder has written there, another text at every start."""
        return self._lock.read_text() if self._lock.is_file() else ""

    def holder(self) -> int | None:
        """Returns the process that is training here now, or None."""
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
        """Writes the settings (whole or not at all) and, at the first start, the environment."""
        if not self.is_writer:
            return
        write_json(self.config, {"format_version": FORMAT_VERSION, **flatten(config)})
        if not self.environment.exists():
            write_json(self.environment, environment)
        self.fetching.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.samples, self.tensorboard, self.logs):
            folder.mkdir(exist_ok=True)

    def add_event(self, event: str, **details: Any) -> None:
        """Appends what happened, with the time; where the disk is full it is appended later."""
        if not self.is_writer:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        self._untold.add({"time": now, "event": event, **details})

    def last_environment(self) -> dict[str, Any] | None:
        """Returns the environment of the last start, None before the first."""
        starts = [event for event in self.read_events() if event.get("event") == "started"]
        return starts[-1].get("environment") if starts else None

    def has_had_checkpoints(self) -> bool:
        """Says whether there is or was a whole checkpoint, as far as anything here knows."""
        is_there = checkpoint_folders(self.checkpoints) or has_set_aside(self.checkpoints)
        return bool(is_there) or any(e.get("event") == "saved" for e in self.read_events())

    def newest_step(self) -> int | None:
        """Returns the step of the newest checkpoint that is whole by its name and manifest."""
        return next(reversed(checkpoint_steps(self.checkpoints)), None)

    def write_sample(self, step: int, text: str) -> bool:
        """Writes the text that was sampled at a step; says whether the disk took it."""
        if not self.is_writer:
            return True
        try:
            self.sample_of(step).write_text(text, encoding="utf-8")
        except OSError:
            return False
        return True

    def sample_of(self, step: int) -> Path:
        """Returns where the sample of a step is."""
        return self.samples / f"step-{step:06d}.txt"

    def read_events(self) -> list[dict[str, Any]]:
        """Returns all events, oldest first."""
        return read_json_lines(self.events)


class Lines:
    """Appends objects to a .jsonl file, a line each.

    What the disk does not take is kept, in order, and written with the next line that it takes.
    """

    def __init__(self, path: Path):
        self._path = path
        self._unwritten = b""
        self._lock = threading.Lock()

    def add(self, content: Record) -> None:
        """Appends a line, now or when that is possible again."""
        with self._lock:
            self._unwritten += json.dumps(content).encode() + b"\n"
            with contextlib.suppress(OSError):
                self._write()

    def flush(self) -> None:
        """Returns when all lines are on the disk; OSError if it does not take them."""
        with self._lock:
            self._write(sync=True)

    def _write(self, *, sync: bool = False) -> None:
        if not self._unwritten and not (sync and self._path.exists()):
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
    """Locks a file for this process alone; False if another process keeps it for so long.

    Raises SettingsError where its file system has no locks.
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
    """Ends the last line of a file that a killed process left without its newline."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the objects of a .jsonl file; a line that a killed process tore is passed over."""
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
