"""The time ledger: where every second of a run's life went, over all its starts."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from data.atomic_files import replace_text

Class = Literal["set_up", "compile", "data_wait", "step", "save_stall", "evaluation"]
"""What a process itself can spend time on."""

CLASSES = (
    *("set_up", "compile", "data_wait", "step", "save_stall", "evaluation"),
    *("lost_work", "down_time"),
)
"""Every second belongs to one of them."""
_WORK = ("data_wait", "step", "save_stall", "evaluation")
"""What is done again after a restart from an older checkpoint."""


class Ledger:
    """Seconds of a run's life by class; all starts of the run together are its life.

    Time between two starts is down time, from the last beat that was written on, unless the run was
    finished in between. Work that an older checkpoint does not hold is lost work, and no longer
    what it was.
    """

    def __init__(self, age_sec: float = 0.0) -> None:
        self._seconds: dict[str, float] = dict.fromkeys(CLASSES, 0.0)
        self._seconds["set_up"] = age_sec
        self._first_start = time.time() - age_sec
        self.is_finished = False
        """Whether all steps are done, so that what follows is no longer the run's life."""
        self._path: Path | None = None
        self._lock = threading.Lock()

    def add(self, kind: Class, seconds: float) -> None:
        """Counts time that has passed."""
        with self._lock:
            self._seconds[kind] += seconds

    def go_on(self, path: Path) -> float:
        """Adds what earlier starts have written there, and writes there from then on.

        Returns:
            By how many seconds the clock was set back since; 0 as a rule.
        """
        with self._lock:
            self._path = path
            try:
                before = json.loads(path.read_text())
                beat, seconds = float(before["beat"]), dict(before["seconds"])
                first_start = float(before["first_start"])
                was_finished = bool(before["finished"])
            except (OSError, ValueError, KeyError, TypeError):  # the first start, or torn by a kill
                return 0.0
            gap = self._first_start - beat
            for kind in CLASSES:
                self._seconds[kind] += seconds.get(kind, 0.0)
            if gap > 0 and not was_finished:
                self._seconds["down_time"] += gap
                gap = 0.0
            # Not of its life, or on a clock that was set back: the beginning moves along.
            self._first_start = first_start + gap
        return max(-gap, 0.0)

    def lose_since(self, snapshot: Mapping[str, float]) -> None:
        """Turns the work since a snapshot into lost work: the run goes on from there."""
        with self._lock:
            for kind in _WORK:
                lost = max(self._seconds[kind] - snapshot.get(kind, 0.0), 0.0)
                self._seconds[kind] -= lost
                self._seconds["lost_work"] += lost

    def snapshot(self) -> dict[str, float]:
        """Returns the seconds of each class."""
        with self._lock:
            return {kind: round(seconds, 3) for kind, seconds in self._seconds.items()}

    def record(self) -> dict[str, float]:
        """Returns the ledger by the names of metrics.jsonl; goodput is the part of the steps."""
        seconds = self.snapshot()
        total = sum(seconds.values())
        fraction = seconds["step"] / total if total else 0.0
        return {
            "goodput/fraction": round(fraction, 4),
            **{f"goodput/{kind}_sec": value for kind, value in seconds.items()},
        }

    def write(self, ago_sec: float = 0.0) -> None:
        """Writes the ledger, so that the next start knows when this one was last alive.

        Args:
            ago_sec: when the last second was added.
        """
        if self._path is None:
            return
        content = {
            "first_start": self._first_start,
            "beat": time.time() - ago_sec,
            "finished": self.is_finished,
            "seconds": self.snapshot(),
        }
        with contextlib.suppress(OSError):  # a full disk: the seconds are written later
            replace_text(self._path, json.dumps(content))


def stat_fields(process: int | Literal["self"]) -> list[str]:
    """Returns what Linux says of a process: its state, its parent, its group, its session, ...

    Raises OSError where there is no such process. Source: proc_pid_stat(5), from field 3 on.
    """
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def process_age_sec() -> float:
    """Returns how long this process has lived; 0 where the system does not tell."""
    try:
        started_at = int(stat_fields("self")[19]) / os.sysconf("SC_CLK_TCK")  # since the boot
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - started_at, 0.0)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
