"""Requests from outside to stop (SIGTERM, Ctrl-C) or to save (SIGUSR1), at any moment."""

import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from configs.errors import Stopped
from sharding.distributed.processes import Processes
from train.record.console import logger

_MAX_SIGNALS = 128
_REPEAT_SEC = 1.0
"""A second SIGINT within this time is the first one, sent twice."""
_STOPS = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Turns signals into requests that the loop handles between two steps.

    Outside `deferred` there is nothing to save, so a request to stop raises Stopped at once. Some
    schedulers send SIGTERM again, and SIGINT comes twice if both a terminal and a launcher send it:
    neither changes anything. A Ctrl-C that is clearly another one ends the process at once, without
    a save. SIGUSR1 requests a save.
    """

    def __init__(self) -> None:
        self.cause: str | None = None
        """The name of the signal that requested the stop, or None."""
        self.save_requested = False
        self._is_deferred = self._is_handled = False
        self._writing: int | None = None

    def install(
        self, notice_sec: float | None = None, on_notice_over: Callable[[str], None] | None = None
    ) -> None:
        """Installs the signal handlers of this process.

        Args:
            notice_sec: how long the process may take after a signal to stop; None is unlimited.
            on_notice_over: called in another thread with the name of the signal when that time is
                over, whatever the main thread does.
        """
        for number in (*_STOPS, signal.SIGUSR1):
            signal.signal(number, self._handle)
        # The main thread may be inside a step, where no Python handler runs; another thread sees at
        # once what the C handler writes into a pipe.
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)

        def watch() -> None:
            first_at = None
            while numbers := os.read(reading, 1):
                number, now = numbers[0], time.monotonic()
                if number not in _STOPS:
                    continue
                if first_at is None:
                    first_at = now
                    name = signal.Signals(number).name
                    self._acknowledge(name)
                    if notice_sec is not None and on_notice_over is not None:
                        _start_timer(notice_sec, functools.partial(on_notice_over, name))
                elif number == signal.SIGINT and now - first_at > _REPEAT_SEC:
                    logger.warning("ended by a second Ctrl-C, without a save")
                    os._exit(128 + number)
            os.close(reading)

        threading.Thread(target=watch, name="signals", daemon=True).start()

    def close(self) -> None:
        """Stops watching for signals; the handlers stay installed."""
        if self._writing is not None:
            signal.set_wakeup_fd(-1)
            os.close(self._writing)
            self._writing = None

    def _acknowledge(self, name: str) -> None:
        """Logs what a signal leads to, unless it raises Stopped, whose message does."""
        again = "; Ctrl-C again ends at once, without a save"
        if self._is_deferred:
            logger.info(f"{name}: saving the state after this step, then stopping{again}")
        else:
            message = f"{name}: stopping as soon as what is in progress allows it{again}"
            _start_timer(_REPEAT_SEC, lambda: self._is_handled or logger.info(message))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self.save_requested = True
            return
        is_first, self._is_handled = self.cause is None, True
        self.cause = self.cause or signal.Signals(number).name
        if is_first and not self._is_deferred:
            raise Stopped(f"stopped by {self.cause} before there was anything to save")

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Makes signals set a request inside, which the caller polls."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False


def _start_timer(seconds: float, act: Callable[[], object]) -> None:
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()


class StopRequest(NamedTuple):
    """A request to stop or to save after a step, the same in all processes."""

    stop: dict[str, str | int] | None = None
    """The cause, None to continue. With several processes `process` received the `cause`."""
    save: bool = False


class SharedSignals:
    """The requests of all processes, which each of them sees after the same step.

    With one process that is the step during which the signal came. With several it goes through a
    tiny reduction that every step starts and the next one reads, so that no process waits for it.
    """

    def __init__(self, signals: Signals, processes: Processes, mesh: jax.sharding.Mesh):
        self._signals, self._processes = signals, processes
        self._pending: jax.Array | None = None
        if processes.num > 1:
            self._layout = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
            replicated = NamedSharding(mesh, PartitionSpec())
            self._max = jax.jit(jnp.max, out_shardings=replicated)
            self._no_request = self._spread(0)

    def _spread(self, request: int) -> jax.Array:
        return jax.make_array_from_callback(
            (self._layout.mesh.size,), self._layout, lambda index: np.array([request], np.int32)
        )

    def poll(self) -> StopRequest:
        """Returns the request to handle after this step; to be called once per step."""
        cause = self._signals.cause  # read once: a signal after this line is for the next step
        save, self._signals.save_requested = self._signals.save_requested, False
        if self._processes.num == 1:
            return StopRequest({"cause": cause} if cause else None, save)
        request = self._no_request
        if cause or save:
            # A stop is the larger number, and saves in any case.
            stop = self._processes.index * _MAX_SIGNALS + signal.Signals[cause] if cause else 0
            request = self._spread(2 * stop + save)
        before, self._pending = self._pending, self._max(request)
        stop, save = divmod(0 if before is None else int(before), 2)
        if not stop:
            return StopRequest(None, bool(save))
        process, number = divmod(stop, _MAX_SIGNALS)
        return StopRequest({"cause": signal.Signals(number).name, "process": process}, bool(save))
