"""Finds stragglers: processes that slow all others down.

Every step waits for the slowest process, so step times are equal everywhere and identify none. What
differs is how long a process waits for its data.
"""

import statistics
from collections.abc import Sequence

_SLOW_RATIO = 1.5
_MIN_WAIT_FRACTION = 0.1
_MIN_WAIT_SEC = 0.005
"""A shorter wait for data, as a fraction of a step or in seconds, makes no straggler."""


def find_stragglers(waits_sec: Sequence[float], step_sec: float) -> dict[int, str]:
    """Returns {process: cause} of those that wait longer for a batch than the others."""
    stragglers = {}
    for i, own_sec in enumerate(waits_sec):
        others = [*waits_sec[:i], *waits_sec[i + 1 :]]
        median_sec = statistics.median(others) if others else own_sec
        longer_sec = max(_MIN_WAIT_FRACTION * step_sec, _MIN_WAIT_SEC)
        if own_sec > max(_SLOW_RATIO * median_sec, median_sec + longer_sec):
            stragglers[i] = (
                f"it waits {own_sec * 1000:.1f} ms a step for its data, the others "
                f"{median_sec * 1000:.1f} ms"
            )
    return stragglers
