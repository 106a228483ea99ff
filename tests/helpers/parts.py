"""Which tests are a part of the suite: `./tessera test --part K/N`."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def part_of(tests: Sequence[T], part: str) -> list[T]:
    """Returns every N-th test, beginning with the K-th, for a part K/N."""
    k, n = map(int, part.split("/"))
    return list(tests[k - 1 :: n])
