"""Where the time of a run goes, second by second, and how long each part of it may take.

The main thread says what it does (`Phases.phase`). From that comes the ledger, which accounts for
every second of the run's life over all its starts, and the watchdog, which ends a process that does
one thing for too long.
"""

import contextlib
import json
import os
import statistics
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from configs.run import GuardConfig
from data.files import replace_text

Phase = Literal["set_up", "compile", "data_wait", "step", "save_stall", "evaluation"]
Limit = Literal["start", "compile", "step", "save", "eval"]
"""What has a limit of its own: guard.LIMIT_limit_sec."""

CLASSES = (
    *("set_up", "compile", "data_wait", "step", "save_stall", "evaluation"),
    *("lost_work", "down_time"),
)
"""Every second belongs to one of them."""
_WORK = ("data_wait", "step", "save_stall", "evaluation")
"""What is done again after a restart from an older checkpoint."""

_BEAT_SEC = 2.0
_LOOK_SEC = 0.5
_NUM_MEASURED = 3
"""So many durations make a median."""


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

    def add(self, kind: Phase, seconds: float) -> None:
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

    def write(self) -> None:
        """Writes the ledger, so that the next start knows when this one was last alive."""
        if self._path is None:
            return
        content = {
            "first_start": self._first_start,
            "beat": time.time(),
            "finished": self.is_finished,
            "seconds": self.snapshot(),
        }
        with contextlib.suppress(OSError):  # a full disk: the seconds are written later
            replace_text(self._path, json.dumps(content))


class _Watched(NamedTuple):
    """What the watchdog looks at; another object each time something begins anew."""

    limit: Limit | None


class Phases:
    """What the main thread does now. A process begins in set_up."""

    def __init__(self) -> None:
        self.ledger = Ledger(process_age_sec())
        self._mark = time.monotonic()
        self._stack: list[Phase] = ["set_up"]
        self._watched = _Watched("start")
        self._durations: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=64))
        self._counting = threading.Lock()
        self._ended = threading.Event()
        self._beating: threading.Thread | None = None

    @contextlib.contextmanager
    def phase(
        self, phase: Phase, limit: Limit | Literal["unlimited"] | None = None
    ) -> Iterator[None]:
        """Says what is done inside.

        Args:
            limit: the one that it is held to; None is that of what is around it, which goes on.
        """
        began, around = self._switch(), self._watched
        self._stack.append(phase)
        if limit is not None:
            self._watched = _Watched(None if limit == "unlimited" else limit)
        try:
            yield
        finally:
            ended = self._switch()
            self._stack.pop()
            if limit is not None:
                self._watched = _Watched(around.limit)  # whose time begins anew
                self._durations[limit].append(ended - began)

    def last_sec(self, limit: Limit) -> float:
        """Returns how long the last one of a kind has taken."""
        return self._durations[limit][-1]

    def settle(self) -> None:
        """Counts the time up to now; any thread may call it."""
        self._switch()

    def _switch(self) -> float:
        with self._counting:
            now = time.monotonic()
            self.ledger.add(self._stack[-1], now - self._mark)
            self._mark = now
        return now

    def limit_sec(self, limit: Limit, config: GuardConfig) -> float | None:
        """Returns how long something may take now: less, once a median of it was measured."""
        setting = getattr(config, f"{limit}_limit_sec")
        durations = list(self._durations[limit])
        if setting is None or len(durations) < _NUM_MEASURED:
            return setting
        scaled = config.hang_factor * statistics.median(durations)
        return min(max(scaled, config.min_limit_sec), setting)

    def watch(self, config: GuardConfig, on_hang: Callable[[str, float, float], Any]) -> None:
        """Begins to watch the main thread from another one, until this is closed.

        Args:
            on_hang: called once with what takes too long, its seconds and its limit.
        """

        def look() -> None:
            watched, waited, last = self._watched, 0.0, time.monotonic()
            while not self._ended.wait(_LOOK_SEC):
                now = time.monotonic()
                # A process that was stopped for a while (SIGSTOP) did not hang meanwhile.
                waited, last = waited + min(now - last, 2 * _LOOK_SEC), now
                if watched is not self._watched:
                    watched, waited = self._watched, 0.0
                allowed = watched.limit and self.limit_sec(watched.limit, config)
                if watched.limit and allowed is not None and waited > allowed:
                    on_hang(watched.limit, waited, allowed)
                    return

        threading.Thread(target=look, name="watchdog", daemon=True).start()

    def beat(self) -> None:
        """Begins to write the ledger every few seconds, until this is closed."""

        def write() -> None:
            while True:
                self.settle()
                self.ledger.write()
                if self._ended.wait(_BEAT_SEC):
                    return

        self._beating = threading.Thread(target=write, name="ledger", daemon=True)
        self._beating.start()

    def close(self) -> None:
        """Writes the ledger a last time; nothing is watched any more."""
        self._ended.set()
        if self._beating is not None:
            self._beating.join()
            self.settle()
            self.ledger.write()


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
