"""The time that a run still takes, from what its steps, evaluations and saves have taken so far."""

from collections.abc import Mapping

from configs.run import RunConfig


def eta_sec(
    config: RunConfig, step: int, step_sec: float | None, others_sec: Mapping[str, float | None]
) -> float | None:
    """Returns the seconds from the end of a step to that of the last; None where unknown.

    Args:
        step_sec: what a step takes without what is done between steps; None is unknown.
        others_sec: what an "evaluation", a "sample" and a "stall" (of a save) take each; what is
            missing or None counts nothing.
    """
    num_steps = config.train.num_steps
    if step_sec is None and step < num_steps:
        return None
    num_due = {name: _num_due(step, num_steps, p) for name, p in periods(config).items()}
    others = sum(num * (others_sec.get(name) or 0.0) for name, num in num_due.items())
    return (num_steps - step) * (step_sec or 0.0) + others


def periods(config: RunConfig) -> dict[str, int | None]:
    """Returns the steps from one to the next of what is done between steps, by span."""
    return {
        "evaluation": config.eval.every_steps,
        "sample": config.sample.every_steps,
        "stall": config.checkpoint.every_steps,
    }


def _num_due(step: int, num_steps: int, period: int | None) -> int:
    """Returns how many later steps have what each period-th and the last step have."""
    if step >= num_steps:
        return 0
    return (num_steps - 1) // period - step // period + 1 if period else 1


def duration(seconds: float) -> str:
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min"), (36 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds:.0f} s" if size == 1 else f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"


def eta_text(seconds: float | None) -> str:
    return f"ETA {'unknown' if seconds is None else duration(seconds)}"
