"""Being asked to stop: SIGTERM and Ctrl-C, at any moment."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from configs.errors import Stopped
from sharding.processes import Processes

_MAX_SIGNALS = 128


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


class SharedStop:
    """The wish of any process to stop, which all learn of at the same step.

    With one process that is the step in which it came. With several it goes through a tiny
    reduction that every step starts and the next one reads, so that nobody waits for it.
    """

    def __init__(self, stop: StopSignals, processes: Processes, mesh: jax.sharding.Mesh):
        self._stop, self._processes = stop, processes
        self._pending: jax.Array | None = None
        if processes.num > 1:
            self._layout = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
            replicated = NamedSharding(mesh, PartitionSpec())
            self._largest = jax.jit(jnp.max, out_shardings=replicated)
            self._no_wish = self._spread(0)

    def _spread(self, wish: int) -> jax.Array:
        """Returns the wish of every process, one for each of its devices."""
        return jax.make_array_from_callback(
            (self._layout.mesh.size,), self._layout, lambda index: np.array([wish], np.int32)
        )

    def look(self) -> dict[str, str | int] | None:
        """Returns why all processes stop after this step, None to go on; once for each step.

        With several processes that names the one (`process`) that the signal (`cause`) came to.
        """
        cause = self._stop.cause  # read once: a signal after this line is for the next step
        if self._processes.num == 1:
            return {"cause": cause} if cause else None
        wish = self._no_wish
        if cause:
            wish = self._spread(self._processes.index * _MAX_SIGNALS + signal.Signals[cause])
        before, self._pending = self._pending, self._largest(wish)
        if before is None or int(before) == 0:
            return None
        process, number = divmod(int(before), _MAX_SIGNALS)
        return {"cause": signal.Signals(number).name, "process": process}
