"""A watchdog that ends the process when a span of the main thread hangs.

The limit of a span is one of these:

- measured: 30 times the median of its own durations, at least a minute; until three of them are
  known, guard.hang_limit_sec.
- fixed: guard.hang_limit_sec, however often it was timed.
- progress: no limit as long as bytes move; guard.hang_limit_sec without any.

A limit is never scaled by the duration of another span, or else a healthy one that is slow for a
reason would be ended.
"""

import faulthandler
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from configs.errors import Hung
from configs.run import GuardConfig
from train.record.spans import SPANS, Spans

_POLL_SEC = 0.5
_GRACE_SEC = 20.0
"""How long a process that hangs may take to end."""
_NUM_MEASURED = 3
"""How many durations a median needs."""
_FACTOR = 30.0
"""How many times its median a measured span may take."""
_MIN_LIMIT_SEC = 60.0
"""The shortest measured limit, unless guard.hang_limit_sec is shorter."""


class Hang(NamedTuple):
    """A span that exceeded its limit."""

    span: str
    seconds: float
    """How long it has taken, or how long no byte has moved."""
    limit_sec: float
    cause: str
    """The message for a person."""


class Watchdog:
    """Compares the current span with its limit at each poll."""

    def __init__(
        self, spans: Spans, config: GuardConfig, progress: Callable[[], int] = lambda: 0
    ) -> None:
        """Starts with the span that is current now.

        Args:
            progress: a number that changes while bytes move; it must return at once.
        """
        self._spans, self._config, self._progress = spans, config, progress
        self._span, self._last_progress = spans.limited, progress()
        self._waited_sec, self._last_poll = 0.0, time.monotonic()

    def start(self, on_hang: Callable[[Hang], Any]) -> None:
        """Starts a thread that polls until the spans are closed, or the first hang."""

        def watch() -> None:
            while not self._spans.closed.wait(_POLL_SEC):
                if (hang := self.poll(time.monotonic())) is not None:
                    on_hang(hang)
                    return

        threading.Thread(target=watch, name="watchdog", daemon=True).start()

    def poll(self, now: float) -> Hang | None:
        """Returns the hang at this time of the monotonic clock, if there is one."""
        # A process that was stopped for a while (SIGSTOP) did not hang in that time.
        self._waited_sec += min(now - self._last_poll, 2 * _POLL_SEC)
        self._last_poll = now
        if self._span is not self._spans.limited:
            self._span, self._waited_sec = self._spans.limited, 0.0
        name = self._span.name
        if SPANS[name].limit == "progress" and self._last_progress != (moved := self._progress()):
            self._last_progress, self._waited_sec = moved, 0.0
        limit_sec = self.limit_sec(name)
        if limit_sec is None or self._waited_sec <= limit_sec:
            return None
        return self.describe(name, self._waited_sec, limit_sec)

    def limit_sec(self, name: str) -> float | None:
        """Returns how long a span may take now, or may go without progress; None is unlimited."""
        config, limit = self._config, SPANS[name].limit
        durations = list(self._spans.durations[name])
        if limit is None or config.hang_limit_sec is None:
            return None
        if limit != "measured" or len(durations) < _NUM_MEASURED:
            return config.hang_limit_sec
        min_sec = min(_MIN_LIMIT_SEC, config.hang_limit_sec)
        return max(_FACTOR * statistics.median(durations), min_sec)

    def describe(self, name: str, seconds: float, limit_sec: float) -> Hang:
        config = self._config
        fixed = f"guard.hang_limit_sec={config.hang_limit_sec:g} allows {limit_sec:.0f} s"
        if SPANS[name].limit == "progress":
            cause = f"{name} has moved no byte for {seconds:.0f} s; {fixed}"
        elif limit_sec == config.hang_limit_sec:
            cause = f"{name} has taken {seconds:.0f} s; {fixed}"
        else:
            median = statistics.median(self._spans.durations[name])
            cause = (
                f"{name} has taken {seconds:.0f} s; {_FACTOR:g} times its "
                f"median of {median:.3g} s allows {limit_sec:.0f} s (at least a minute); "
                "guard.hang_limit_sec=None sets no limit"
            )
        return Hang(name, seconds, limit_sec, cause)


def write_stacks(logs: Path, process: int) -> str:
    """Writes the stacks of all threads and returns the path of the file.

    The process exits a few seconds later even if it hangs again while it ends.
    """
    ending = threading.Timer(_GRACE_SEC, os._exit, [Hung.exit_code])
    ending.daemon = True
    ending.start()
    path = logs / f"hung-process-{process}.txt"
    try:
        with path.open("w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
    except OSError:  # there is no run folder yet, or the disk is what hangs
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        return "standard error"
    return str(path)
