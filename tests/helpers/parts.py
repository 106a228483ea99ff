"""Which tests are a part of the suite: `./tessera test --part K/N`."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def part_of(tests: Sequence[T], part: str) -> tuple[list[T], list[T]]:
    """Returns the tests of a part K/N, every N-th from the K-th on, and the others."""
    k, n = map(int, part.split("/"))
    others = [test for i, test in enumerate(tests) if i % n != k - 1]
    return list(tests[k - 1 :: n]), others
