"""The type of a cleaning step: takes a text, returns a text or the reason to drop it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Dropped:
    """Returned by a step to drop the document."""

    rule: str
    """Short name of the rule that drops it, for people: "mean word length"."""


CleaningStep = Callable[[str], str | Dropped]
"""Takes a text, returns it cleaned or Dropped; keeps no state between texts."""
