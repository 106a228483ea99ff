"""Being asked to stop: SIGTERM and Ctrl-C, at any moment."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from configs.errors import Stopped


class StopSignals:
    """Turns the first SIGTERM or SIGINT into a wish that the loop can act on between two steps.

    Outside `deferred` there is nothing to save, so the wish is an exception at once. A second
    signal is not held back.
    """

    def __init__(self) -> None:
        self.cause: str | None = None
        """The name of the signal that came, or None."""
        self._is_deferred = False

    def install(self) -> None:
        """Takes over both signals in this process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        self.cause = signal.Signals(number).name
        if not self._is_deferred:
            raise Stopped(f"stopped by {self.cause} before there was anything to save")

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it a signal only sets `cause`; whoever is inside looks at it."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
