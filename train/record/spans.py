"""Spans: what the main thread does now, for the time ledger and the watchdog."""

import contextlib
import statistics
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from train.record.time_ledger import ProcessCategory, TimeLedger, process_age_sec

_WRITE_SEC = 2.0


class SpanKind(NamedTuple):
    """How the time of a span is accounted and limited."""

    category: ProcessCategory
    """The category of the time ledger that its seconds are added to."""
    limit: Literal["measured", "fixed", "progress", "outer"] | None
    """How the watchdog limits it (`train.health.watchdog`); "outer" counts towards the limit of the
    enclosing span, None is unlimited."""


SPANS: Mapping[str, SpanKind] = {
    "set-up": SpanKind("set_up", "progress"),
    "preparation of the data": SpanKind("set_up", None),  # days for a large text
    "fetch": SpanKind("set_up", "progress"),
    "verification": SpanKind("set_up", "progress"),
    "restore": SpanKind("set_up", "progress"),
    "compilation": SpanKind("compile", "fixed"),
    "loop": SpanKind("step", None),  # everything slow in it has a span of its own
    "step": SpanKind("step", "measured"),
    "data wait": SpanKind("data_wait", "outer"),
    "replay": SpanKind("step", "measured"),
    "end of a step": SpanKind("step", "measured"),
    "evaluation": SpanKind("evaluation", "measured"),
    "record": SpanKind("step", None),
    "straggler probe": SpanKind("step", "progress"),
    "sample": SpanKind("evaluation", "measured"),
    "stall": SpanKind("save_stall", "progress"),
    "save": SpanKind("save_stall", "progress"),
    "wait before another save": SpanKind("save_stall", None),
    "rollback": SpanKind("set_up", "progress"),
    "upload": SpanKind("save_stall", "progress"),
    "digest": SpanKind("set_up", "progress"),
}
"""All spans by name."""


class LimitedSpan(NamedTuple):
    """The span that the watchdog limits; a new object whenever its time starts from zero."""

    name: str


class Spans:
    """The nested spans of the main thread; a process starts in "set-up"."""

    def __init__(self) -> None:
        self.ledger = TimeLedger(process_age_sec())
        self.limited = LimitedSpan("set-up")
        self.durations: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=64))
        """Seconds of the last spans of each name."""
        self.closed = threading.Event()
        self._counted_until = time.monotonic()
        self._stack: list[str] = ["set-up"]
        self._lock = threading.Lock()
        self._writer: threading.Thread | None = None

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Enters a span of SPANS by name."""
        has_own_limit = SPANS[name].limit != "outer"
        began, outer = self.settle(), self.limited
        self._stack.append(name)
        if has_own_limit:
            self.limited = LimitedSpan(name)
        try:
            yield
        finally:
            ended = self.settle()
            self._stack.pop()
            self.durations[name].append(ended - began)
            if has_own_limit:
                self.limited = LimitedSpan(outer.name)  # whose time starts from zero

    def median_sec(self, *names: str, at_least: int = 1) -> float | None:
        """Returns the median of the last spans of these names; None if there were too few."""
        seconds = [sec for name in names for sec in list(self.durations.get(name, ()))]
        return statistics.median(seconds) if len(seconds) >= at_least else None

    @property
    def current(self) -> str:
        """The innermost span that the main thread is in; any thread may read it."""
        return self._stack[-1]

    def settle(self) -> float:
        """Adds the time up to now to the ledger, and returns now; any thread may call it."""
        with self._lock:
            now = time.monotonic()
            self.ledger.add(SPANS[self._stack[-1]].category, now - self._counted_until)
            self._counted_until = now
        return now

    def start_writing(self) -> None:
        """Starts a thread that writes the ledger every few seconds, until `close`."""

        def write() -> None:
            while True:
                self._write()
                if self.closed.wait(_WRITE_SEC):
                    return

        self._writer = threading.Thread(target=write, name="ledger", daemon=True)
        self._writer.start()

    def close(self) -> None:
        """Writes the ledger one last time and ends the watchdog."""
        self.closed.set()
        if self._writer is not None:
            self._writer.join()
            self._write()

    def _write(self) -> None:
        self.settle()
        self.ledger.write(time.monotonic() - self._counted_until)
