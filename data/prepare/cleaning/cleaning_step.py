"""What a step of cleaning is: one text in, one text or a reason out."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Dropped:
    """A step's answer that the document is to be left out."""

    rule: str
    """Short name of the rule that says so, as a person reads it: "mean word length"."""


CleaningStep = Callable[[str], str | Dropped]
"""Takes a text, returns it cleaned, or says why it is dropped; keeps nothing between texts."""
