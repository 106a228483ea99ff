"""Finds, from the losses alone, where a run goes wrong and which steps did it."""

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from configs.run import GuardConfig

_DEVIATION = 1.4826
"""Turns a median absolute deviation into the standard deviation of a normal distribution."""
_LEAST_DEVIATION = 0.02
"""Of the median: a window of almost equal losses must not call each small change a spike."""


@dataclass(frozen=True)
class Trouble:
    """Steps that a run must go back from."""

    first_step: int
    """The first step that did it."""
    last_step: int
    """The last one, inclusive."""
    cause: str
    layers: dict[str, str] = field(default_factory=dict)
    """Norms of the gradients that stand out, by array and layer."""


class Guard:
    """Looks at each loss in turn. The same losses give the same verdicts.

    A step is skipped where loss or gradient were not finite. It is high where its loss is more
    than guard.spike_deviations robust deviations above the median of the window, which holds good
    losses only, and needs to be half full. A run of either kind is trouble once it is long enough;
    a good step ends both. Where the mixture of the data changes the window begins anew.
    """

    def __init__(self, config: GuardConfig, memory: Mapping[str, Any] | None = None):
        """Begins, or goes on with the memory of a guard that was at this step before."""
        self._config = config
        remembered = memory or {}
        self._window = deque(remembered.get("window", ()), maxlen=config.num_window_steps)
        self._skipped: list[int] = list(remembered.get("skipped", ()))
        self._high: list[int] = list(remembered.get("high", ()))
        self._weights: list[float] | None = remembered.get("weights")

    @property
    def is_worried(self) -> bool:
        """Whether the last step went wrong."""
        return bool(self._skipped or self._high)

    def memory(self) -> dict[str, Any]:
        """Returns what a guard that goes on after this step has to know, as JSON holds it."""
        return {
            "window": list(self._window),
            "skipped": list(self._skipped),
            "high": list(self._high),
            "weights": self._weights,
        }

    def look(
        self, step: int, loss: float, finite: bool, weights: Sequence[float] = ()
    ) -> Trouble | None:
        """Takes the loss of the next step in nats; returns the trouble that it completes.

        Args:
            weights: of the sources in its batch; where they are others the losses may jump.
        """
        if self._weights not in (None, list(weights)):
            self._window.clear()
        self._weights = list(weights)
        if not finite:
            self._skipped.append(step)
            return self._trouble_of_skips()
        self._skipped.clear()
        limit = self._limit()
        if limit is None or loss <= limit:
            self._high.clear()
            self._window.append(loss)
            return None
        self._high.append(step)
        if len(self._high) < self._config.num_spike_steps:
            return None
        middle = statistics.median(self._window)
        # The loss of a step is taken before its update: that of the step before made it high.
        return Trouble(
            max(self._high[0] - 1, 1),
            step,
            f"the loss was above {limit:.4g} for {len(self._high)} steps (now {loss:.4g}; the "
            f"median of {len(self._window)} steps before is {middle:.4g})",
        )

    def _trouble_of_skips(self) -> Trouble | None:
        num = len(self._skipped)
        if num < self._config.max_nonfinite_steps:
            return None
        return Trouble(
            self._skipped[0],
            self._skipped[-1],
            f"{num} steps in a row were not finite, as many as guard.max_nonfinite_steps allows",
        )

    def _limit(self) -> float | None:
        """Returns the loss above which a step is high, None while too few are known."""
        deviations = self._config.spike_deviations
        if deviations is None or len(self._window) < self._config.num_window_steps // 2:
            return None
        middle = statistics.median(self._window)
        spread = statistics.median(abs(loss - middle) for loss in self._window)
        return middle + deviations * max(_DEVIATION * spread, _LEAST_DEVIATION * middle)
