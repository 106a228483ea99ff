"""Detects divergence from the losses alone, and which steps caused it."""

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from configs.run import GuardConfig

_DEVIATION = 1.4826
"""Turns a median absolute deviation into the standard deviation of a normal distribution."""
_MIN_DEVIATION = 0.02
"""Of the median: in a window of almost equal losses a small change is no spike."""


@dataclass(frozen=True)
class Divergence:
    """Steps that a run must be rolled back before."""

    first_step: int
    """The first step that caused it."""
    last_step: int
    """The last one, inclusive."""
    cause: str
    layers: dict[str, str] = field(default_factory=dict)
    """The largest or nonfinite gradient norms, by array and layer."""

    def message(self) -> str:
        first, last = self.first_step, self.last_step
        where = f"step {first}" if first == last else f"steps {first} to {last}"
        return f"{self.cause} ({where})"


class Guard:
    """Judges the loss of each step. The same losses give the same verdicts.

    A step is nonfinite if its loss or gradient is. It is high if its loss is more than
    guard.spike_deviations robust deviations above the median of the window, which holds normal
    losses only and needs to be half full. Enough consecutive steps of one kind are a divergence; a
    normal step resets both counts. The window is cleared when the weights of the sources change.
    """

    def __init__(self, config: GuardConfig, memory: Mapping[str, Any] | None = None):
        """Starts empty, or from the `memory()` of a guard after the step before."""
        self._config = config
        memory = memory or {}
        self._window = deque(memory.get("window", ()), maxlen=config.num_window_steps)
        self._nonfinite: list[int] = list(memory.get("skipped", ()))
        self._high: list[int] = list(memory.get("high", ()))
        self._weights: list[float] | None = memory.get("weights")

    @property
    def is_suspect(self) -> bool:
        """Whether the last step was nonfinite or high."""
        return bool(self._nonfinite or self._high)

    def memory(self) -> dict[str, Any]:
        """Returns what a guard needs to continue after this step, as checkpoints store it."""
        return {
            "window": list(self._window),
            "skipped": list(self._nonfinite),
            "high": list(self._high),
            "weights": self._weights,
        }

    def check(
        self, step: int, loss: float, finite: bool, weights: Sequence[float] = ()
    ) -> Divergence | None:
        """Takes the loss of the next step in nats; returns the divergence that it completes.

        When the weights of the sources in its batch change, the losses may jump.
        """
        if self._weights not in (None, list(weights)):
            self._window.clear()
        self._weights = list(weights)
        if not finite:
            self._nonfinite.append(step)
            return self._nonfinite_divergence()
        self._nonfinite.clear()
        limit = self._limit()
        if limit is None or loss <= limit:
            self._high.clear()
            self._window.append(loss)
            return None
        self._high.append(step)
        if len(self._high) < self._config.num_spike_steps:
            return None
        median = statistics.median(self._window)
        # The loss of a step is taken before its update: the update of the step before made it high.
        return Divergence(
            max(self._high[0] - 1, 1),
            step,
            f"the loss was above {limit:.4g} for {len(self._high)} steps (now {loss:.4g}; the "
            f"median of {len(self._window)} earlier steps is {median:.4g})",
        )

    def _nonfinite_divergence(self) -> Divergence | None:
        num = len(self._nonfinite)
        if num < self._config.max_nonfinite_steps:
            return None
        return Divergence(
            self._nonfinite[0],
            self._nonfinite[-1],
            f"{num} consecutive steps were nonfinite "
            f"(guard.max_nonfinite_steps={self._config.max_nonfinite_steps})",
        )

    def _limit(self) -> float | None:
        """Returns the loss above which a step is high; None while too few are known."""
        deviations = self._config.spike_deviations
        if deviations is None or len(self._window) < self._config.num_window_steps // 2:
            return None
        median = statistics.median(self._window)
        spread = statistics.median(abs(loss - median) for loss in self._window)
        return median + deviations * max(_DEVIATION * spread, _MIN_DEVIATION * median)
