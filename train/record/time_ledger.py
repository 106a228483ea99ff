"""The time ledger: how every second of a run was spent, over all its starts."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from data.atomic_files import replace_text

ProcessCategory = Literal["set_up", "compile", "data_wait", "step", "save_stall", "evaluation"]
"""What a running process spends time on."""

CATEGORIES = (
    *("set_up", "compile", "data_wait", "step", "save_stall", "evaluation"),
    *("lost_work", "down_time"),
)
"""Every second belongs to exactly one of them."""
_WORK = ("data_wait", "step", "save_stall", "evaluation")
"""What is repeated after a restart from an older checkpoint."""


class TimeLedger:
    """Seconds by category, over all starts of a run; their sum is its wall time.

    Time between two starts is down time, from the last write of the earlier one, unless the run was
    finished then. Work that the restored checkpoint does not contain is moved to lost work.
    """

    def __init__(self, age_sec: float = 0.0) -> None:
        self._seconds: dict[str, float] = dict.fromkeys(CATEGORIES, 0.0)
        self._seconds["set_up"] = age_sec
        self._first_start = time.time() - age_sec
        self.is_finished = False
        """Whether all steps are done, so that later time is not counted."""
        self._path: Path | None = None
        self._lock = threading.Lock()

    def add(self, category: ProcessCategory, seconds: float) -> None:
        with self._lock:
            self._seconds[category] += seconds

    def resume(self, path: Path) -> float:
        """Adds the ledger of earlier starts in a file, and writes to that file from then on.

        Returns by how many seconds the clock was set back since; normally 0.
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
            for category in CATEGORIES:
                self._seconds[category] += seconds.get(category, 0.0)
            if gap > 0 and not was_finished:
                self._seconds["down_time"] += gap
                gap = 0.0
            # The gap is no wall time of the run if that was finished or the clock was set back.
            self._first_start = first_start + gap
        return max(-gap, 0.0)

    def lose_work_since(self, snapshot: Mapping[str, float]) -> None:
        """Moves the work since a snapshot to lost work, when a run resumes from there."""
        with self._lock:
            for category in _WORK:
                lost = max(self._seconds[category] - snapshot.get(category, 0.0), 0.0)
                self._seconds[category] -= lost
                self._seconds["lost_work"] += lost

    def snapshot(self) -> dict[str, float]:
        with self._lock:
            return {category: round(seconds, 3) for category, seconds in self._seconds.items()}

    def record(self) -> dict[str, float]:
        """Returns the ledger by the names of metrics.jsonl; goodput is that of the steps."""
        seconds = self.snapshot()
        total = sum(seconds.values())
        fraction = seconds["step"] / total if total else 0.0
        return {
            "goodput/fraction": round(fraction, 4),
            **{f"goodput/{category}_sec": value for category, value in seconds.items()},
        }

    def write(self, ago_sec: float = 0.0) -> None:
        """Writes the ledger with its last second `ago_sec` ago: then the process was alive."""
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
    """Returns the fields of /proc/PID/stat: state, parent, process group, session, ...

    Raises OSError if there is no such process. Source: proc_pid_stat(5), from field 3 on.
    """
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def process_age_sec() -> float:
    """Returns the seconds since this process started; 0 if the system does not provide it."""
    try:
        started_at = int(stat_fields("self")[19]) / os.sysconf("SC_CLK_TCK")  # since boot
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - started_at, 0.0)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
