"""Checks of settings; each failure names the field, what it was and what it must be.

What holds for a field alone stands in its type: its bounds, and what a change of it does to a run
that has begun. `check_bounds` reads the former, `flat_settings.classify` the latter.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from configs.errors import SettingsError

Setting = TypeVar("Setting")
Change = Literal["safe", "trajectory", "incompatible"]
Safe = Annotated[Setting, "safe"]
"""Neither the batches nor the arithmetic change (beyond the order of additions)."""
Incompatible = Annotated[Setting, "incompatible"]
"""The state or the tokens would not fit. What is neither safe nor this changes the trajectory."""


@dataclass(frozen=True)
class Bounds:
    """Bounds of a number; None and words such as auto are always within."""

    text: str
    """What it must be."""
    hold: Callable[[float], bool]


def at_least(least: float) -> Bounds:
    """Returns the bounds of a number that must not be below this."""
    return Bounds(f"at least {least}", lambda value: value >= least)


def below_power_of_2(num_bits: int) -> Bounds:
    """Returns the bounds of a number of so many bits without a sign."""
    return Bounds(f"at least 0 and below 2^{num_bits}", lambda value: 0 <= value < 2**num_bits)


ABOVE_ZERO = Bounds("above zero", lambda value: value > 0)
FROM_0_TO_1 = Bounds("between 0 and 1", lambda value: 0 <= value <= 1)
Count = Annotated[int, at_least(1)]
CountOrNone = Annotated[int | None, at_least(1)]
CountFromZero = Annotated[int, at_least(0)]
Weight = Annotated[float, at_least(0)]
Positive = Annotated[float, ABOVE_ZERO]
PositiveOrNone = Annotated[float | None, ABOVE_ZERO]
Rate = Annotated[float, Bounds("at least 0 and below 1", lambda value: 0 <= value < 1)]
Share = Annotated[float, FROM_0_TO_1]
ShareOrNone = Annotated[float | None, FROM_0_TO_1]
ProperShare = Annotated[float, Bounds("above 0 and below 1", lambda value: 0 < value < 1)]


def require(holds: bool, message: str) -> None:
    """Raises SettingsError with the message unless the condition holds."""
    if not holds:
        raise SettingsError(message)


def require_at_least(field: str, value: float, least: float) -> None:
    """Raises SettingsError if the value of a field is below its least."""
    require(value >= least, f"{field}={value} must be at least {least}")


def check_bounds(settings: object, group: str) -> None:
    """Raises SettingsError where a field of a group is out of the bounds in its type."""
    for name, bounds, or_none in _bounded(type(settings)):
        value = getattr(settings, name)
        if isinstance(value, int | float):
            require(bounds.hold(value), f"{group}.{name}={value} must be {bounds.text}{or_none}")


@functools.cache
def _bounded(kind: type) -> list[tuple[str, Bounds, str]]:
    """Returns (name, bounds, what else it may be) of each field that has bounds."""
    hints = metadata_of(kind)
    return [
        (name, bounds, ", or None" if NoneType in get_args(hints[name][0]) else "")
        for name, (_, metadata) in hints.items()
        for bounds in metadata
        if isinstance(bounds, Bounds)
    ]


def metadata_of(kind: type) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Returns {field: (its type, what Annotated adds to that)} of a dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        name: (hint.__origin__, hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())
        for name, hint in hints.items()
    }
