"""Which of several processes holds the others up.

Every step waits for the slowest process, so that step times are the same everywhere and name
nobody. What differs is what a process does by itself: how long it waits for its data, and how long
its devices take for the same small computation that no other device takes part in.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

_SIZE, _NUM_PRODUCTS, _NUM_PROBES = 512, 4, 8
_TIMES_SLOWER = 1.5
_LEAST_WAIT_FRACTION = 0.1
_LEAST_WAIT_SEC = 0.005
"""A wait for data that is shorter than either, of a step or by itself, holds nobody up."""


class Own(NamedTuple):
    """What a process measured of itself since the last look."""

    data_wait_sec: float
    """Mean wait for a batch."""
    probe_sec: float
    """Time of the probe on its slowest device."""


class Pace:
    """Measures this process; to be used between two steps, when the devices have nothing to do."""

    def __init__(self) -> None:
        self._waited_sec, self._num_steps = 0.0, 0
        self._inputs: dict[Any, jax.Array] = {}

    def add(self, data_wait_sec: float) -> None:
        """Takes how long a step waited for its data."""
        self._waited_sec += data_wait_sec
        self._num_steps += 1

    def look(self) -> Own:
        """Returns what was measured since the last look."""
        own = Own(self._waited_sec / max(self._num_steps, 1), self._probe())
        self._waited_sec, self._num_steps = 0.0, 0
        return own

    def _probe(self) -> float:
        return max(_probe_sec(device, self._inputs) for device in jax.local_devices())


def _probe_sec(device: Any, inputs: dict[Any, jax.Array]) -> float:
    """Returns the shortest time of a few products on one device: whatever else runs adds to it."""
    times = []
    with jax.set_mesh(jax.make_mesh((1,), ("probe",), devices=[device])):
        if device not in inputs:
            inputs[device] = jax.device_put(np.eye(_SIZE, dtype=np.float32), device)
            jax.block_until_ready(_multiply(inputs[device]))  # the first is compiled
        for _ in range(_NUM_PROBES):
            began = time.perf_counter()
            jax.block_until_ready(_multiply(inputs[device]))
            times.append(time.perf_counter() - began)
    return min(times)


@jax.jit
def _multiply(x_DD: jax.Array) -> jax.Array:
    for _ in range(_NUM_PRODUCTS):
        x_DD = x_DD @ x_DD
    return x_DD


def slow_processes(measured: Sequence[Own], step_sec: float) -> dict[int, str]:
    """Returns {process: why it is slow} of those that are slower than the others.

    Args:
        measured: of every process, by index.
        step_sec: how long a step takes.
    """
    slow = {}
    for i, own in enumerate(measured):
        others = [other for j, other in enumerate(measured) if j != i]
        if not others:
            continue
        probe_sec = statistics.median(other.probe_sec for other in others)
        wait_sec = statistics.median(other.data_wait_sec for other in others)
        reasons = []
        if own.probe_sec > _TIMES_SLOWER * probe_sec:
            reasons.append(
                f"its devices take {_ms(own.probe_sec)} for what takes the others {_ms(probe_sec)}"
            )
        longer_sec = max(_LEAST_WAIT_FRACTION * step_sec, _LEAST_WAIT_SEC)
        least_sec = max(_TIMES_SLOWER * wait_sec, wait_sec + longer_sec)
        if own.data_wait_sec > least_sec:
            reasons.append(
                f"it waits {_ms(own.data_wait_sec)} a step for its data, the others {_ms(wait_sec)}"
            )
        if reasons:
            slow[i] = "; ".join(reasons)
    return slow


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
