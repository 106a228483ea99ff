"""Finds stragglers: processes that slow all others down.

Every step waits for the slowest process, so step times are equal everywhere and identify none. What
differs is what a process does alone: how long it waits for its data, and how long each of its
devices takes for the same small computation.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

_SIZE, _NUM_PRODUCTS, _NUM_PROBES = 512, 4, 8
_SLOW_RATIO = 1.5
_MIN_WAIT_FRACTION = 0.1
_MIN_WAIT_SEC = 0.005
"""A shorter wait for data, as a fraction of a step or in seconds, makes no straggler."""


class ProcessTimes(NamedTuple):
    """What a process measured since the last call of `StragglerProbe.measure`."""

    data_wait_sec: float
    """Mean wait for a batch."""
    probe_sec: float
    """Time of the probe on its slowest device."""


class StragglerProbe:
    """Measures this process, between two steps, while the devices are idle."""

    def __init__(self) -> None:
        self._waited_sec, self._num_steps = 0.0, 0
        self._inputs: dict[Any, jax.Array] = {}

    def add(self, data_wait_sec: float) -> None:
        """Adds the time that a step waited for its data."""
        self._waited_sec += data_wait_sec
        self._num_steps += 1

    def measure(self) -> ProcessTimes:
        """Returns the times of this process since the last call."""
        times = ProcessTimes(self._waited_sec / max(self._num_steps, 1), self._probe())
        self._waited_sec, self._num_steps = 0.0, 0
        return times

    def _probe(self) -> float:
        return max(_probe_sec(device, self._inputs) for device in jax.local_devices())


def _probe_sec(device: Any, inputs: dict[Any, jax.Array]) -> float:
    """Returns the shortest time of a few matmuls on one device: other load only adds to it."""
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


def find_stragglers(measured: Sequence[ProcessTimes], step_sec: float) -> dict[int, str]:
    """Returns {process: cause} of those that are slower than the others.

    Args:
        measured: of every process, by index.
        step_sec: how long a step takes.
    """
    stragglers = {}
    for i, own in enumerate(measured):
        others = [other for j, other in enumerate(measured) if j != i]
        if not others:
            continue
        probe_sec = statistics.median(other.probe_sec for other in others)
        wait_sec = statistics.median(other.data_wait_sec for other in others)
        reasons = []
        if own.probe_sec > _SLOW_RATIO * probe_sec:
            reasons.append(
                f"its devices take {_ms(own.probe_sec)} for a probe, the others {_ms(probe_sec)}"
            )
        longer_sec = max(_MIN_WAIT_FRACTION * step_sec, _MIN_WAIT_SEC)
        limit_sec = max(_SLOW_RATIO * wait_sec, wait_sec + longer_sec)
        if own.data_wait_sec > limit_sec:
            reasons.append(
                f"it waits {_ms(own.data_wait_sec)} a step for its data, the others {_ms(wait_sec)}"
            )
        if reasons:
            stragglers[i] = "; ".join(reasons)
    return stragglers


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
