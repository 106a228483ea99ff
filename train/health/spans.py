"""What the main thread does now, and a watchdog that ends it where one thing takes too long.

The main thread enters a span for each thing it does (`Spans.__call__`). Its seconds go to the
ledger. The watchdog holds it to a limit, by one of these laws:

- measured: the same span was timed before, at least three times; it may take guard.hang_factor
  times its own median, and a minute in any case. Until then guard.hang_limit_sec is the limit.
- fixed: guard.hang_limit_sec, however often it was timed.
- progress: it may take for ever, but not guard.hang_limit_sec without a byte that moves.

A limit is never scaled by the duration of anything else, or what is slow for a reason would be
ended in good health.
"""

import contextlib
import statistics
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from configs.run import GuardConfig
from train.record.time_ledger import Class, Ledger, process_age_sec

_BEAT_SEC = 2.0
_LOOK_SEC = 0.5
_NUM_MEASURED = 3
"""So many durations make a median."""
_LEAST_SEC = 60.0
"""No measured limit is shorter, unless guard.hang_limit_sec is."""


class Span(NamedTuple):
    """A kind of thing that the main thread does."""

    ledger: Class
    """Where its seconds are counted."""
    limit: Literal["measured", "fixed", "progress", "around"] | None
    """What the watchdog holds it to; "around" is the limit of the span that it is in, whose time
    goes on, and None waits for ever."""


SPANS: Mapping[str, Span] = {
    "set-up": Span("set_up", "progress"),
    "preparation of the data": Span("set_up", None),  # of a large text it takes days
    "fetch": Span("set_up", "progress"),
    "verification": Span("set_up", "progress"),
    "restore": Span("set_up", "progress"),
    "compilation": Span("compile", "fixed"),
    "loop": Span("step", None),  # nothing is done in it but what has a span of its own
    "step": Span("step", "measured"),
    "data wait": Span("data_wait", "around"),
    "replay": Span("step", "measured"),
    "end of a step": Span("step", "measured"),
    "evaluation": Span("evaluation", "measured"),
    "sample": Span("evaluation", "measured"),
    "straggler probe": Span("step", "progress"),
    "stall": Span("save_stall", "progress"),
    "save": Span("save_stall", "progress"),
    "wait before another save": Span("save_stall", None),
    "rollback": Span("set_up", "progress"),
    "upload": Span("save_stall", "progress"),
    "digest": Span("set_up", "progress"),
}
"""All of them by name."""


class Hang(NamedTuple):
    """What the watchdog found."""

    span: str
    seconds: float
    """How long it has taken, or how long no byte has moved."""
    limit_sec: float
    cause: str
    """All of it in a sentence."""


class _Watched(NamedTuple):
    """What the watchdog looks at; another object each time something begins anew."""

    span: str


class Spans:
    """What the main thread does now. A process begins with its set-up."""

    def __init__(self) -> None:
        self.ledger = Ledger(process_age_sec())
        self._mark = time.monotonic()
        self._stack: list[str] = ["set-up"]
        self._watched = _Watched("set-up")
        self._durations: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=64))
        self._counting = threading.Lock()
        self._ended = threading.Event()
        self._beating: threading.Thread | None = None

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Says what is done inside, by a name of SPANS."""
        is_watched = SPANS[name].limit != "around"
        began, around = self._switch(), self._watched
        self._stack.append(name)
        if is_watched:
            self._watched = _Watched(name)
        try:
            yield
        finally:
            ended = self._switch()
            self._stack.pop()
            self._durations[name].append(ended - began)
            if is_watched:
                self._watched = _Watched(around.span)  # whose time begins anew

    def last_sec(self, name: str) -> float:
        """Returns how long the last span of a name has taken."""
        return self._durations[name][-1]

    def median_sec(self, *names: str, at_least: int = 1) -> float | None:
        """Returns the median of the last spans of these names; None if there were too few."""
        seconds = [sec for name in names for sec in list(self._durations.get(name, ()))]
        return statistics.median(seconds) if len(seconds) >= at_least else None

    @property
    def current(self) -> str:
        """The innermost span that the main thread is in; any thread may read it."""
        return self._stack[-1]

    def settle(self) -> None:
        """Counts the time up to now; any thread may call it."""
        self._switch()

    def _switch(self) -> float:
        with self._counting:
            now = time.monotonic()
            self.ledger.add(SPANS[self._stack[-1]].ledger, now - self._mark)
            self._mark = now
        return now

    def limit_sec(self, name: str, config: GuardConfig) -> float | None:
        """Returns how long a span may take now, or go without progress; None is for ever."""
        durations, limit = list(self._durations[name]), SPANS[name].limit
        if limit is None or config.hang_limit_sec is None:
            return None
        if limit != "measured" or len(durations) < _NUM_MEASURED:
            return config.hang_limit_sec
        least_sec = min(_LEAST_SEC, config.hang_limit_sec)
        return max(config.hang_factor * statistics.median(durations), least_sec)

    def watch(
        self,
        config: GuardConfig,
        on_hang: Callable[[Hang], Any],
        progress: Callable[[], int] = lambda: 0,
    ) -> None:
        """Begins to watch the main thread from another one, until this is closed.

        Args:
            on_hang: called once with what takes too long.
            progress: a number that changes as long as bytes move; it must answer at once.
        """

        watchdog = Watchdog(self, config, progress)

        def look() -> None:
            while not self._ended.wait(_LOOK_SEC):
                if (hang := watchdog.look(time.monotonic())) is not None:
                    on_hang(hang)
                    return

        threading.Thread(target=look, name="watchdog", daemon=True).start()

    @property
    def watched(self) -> _Watched:
        """The span that is held to a limit now; another object where it begins anew."""
        return self._watched

    def hang(self, name: str, seconds: float, allowed: float, config: GuardConfig) -> Hang:
        """Returns what is to be said of a span that takes too long."""
        limit = f"guard.hang_limit_sec={config.hang_limit_sec:g}"
        if SPANS[name].limit == "progress":
            cause = f"{name} has moved no byte for {seconds:.0f} s; {limit} allows {allowed:.0f} s"
        elif allowed == config.hang_limit_sec:
            cause = f"{name} has taken {seconds:.0f} s; {limit} allows {allowed:.0f} s"
        else:
            median = statistics.median(self._durations[name])
            cause = (
                f"{name} has taken {seconds:.0f} s; guard.hang_factor={config.hang_factor:g} times "
                f"its median of {median:.3g} s allows {allowed:.0f} s (a minute at least)"
            )
        return Hang(name, seconds, allowed, cause)

    def beat(self) -> None:
        """Begins to write the ledger every few seconds, until this is closed."""

        def write() -> None:
            while True:
                self._write()
                if self._ended.wait(_BEAT_SEC):
                    return

        self._beating = threading.Thread(target=write, name="ledger", daemon=True)
        self._beating.start()

    def close(self) -> None:
        """Writes the ledger a last time; nothing is watched any more."""
        self._ended.set()
        if self._beating is not None:
            self._beating.join()
            self._write()

    def _write(self) -> None:
        self.settle()
        self.ledger.write(time.monotonic() - self._mark)


class Watchdog:
    """Holds the span that is entered now to its limit, one look after the other."""

    def __init__(self, spans: Spans, config: GuardConfig, progress: Callable[[], int]):
        self._spans, self._config, self._progress = spans, config, progress
        self._watched, self._moved = spans.watched, progress()
        self._waited, self._last = 0.0, time.monotonic()

    def look(self, now: float) -> Hang | None:
        """Returns what takes too long at this time of the monotonic clock, if anything does."""
        # A process that was stopped for a while (SIGSTOP) did not hang meanwhile.
        self._waited += min(now - self._last, 2 * _LOOK_SEC)
        self._last = now
        if self._watched is not self._spans.watched:
            self._watched, self._waited = self._spans.watched, 0.0
        name = self._watched.span
        if SPANS[name].limit == "progress" and self._moved != (moved := self._progress()):
            self._moved, self._waited = moved, 0.0
        allowed = self._spans.limit_sec(name, self._config)
        if allowed is None or self._waited <= allowed:
            return None
        return self._spans.hang(name, self._waited, allowed, self._config)
