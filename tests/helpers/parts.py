"""Which tests are run: `./tessera test --part K/N`, and rows of a table with --all only."""

from collections.abc import Sequence
from typing import Any, TypeVar

import pytest
from _pytest.mark import ParameterSet

T = TypeVar("T")


def part_of(tests: Sequence[T], part: str) -> tuple[list[T], list[T]]:
    """Returns the tests of a part K/N, every N-th from the K-th on, and the others."""
    k, n = map(int, part.split("/"))
    others = [test for i, test in enumerate(tests) if i % n != k - 1]
    return list(tests[k - 1 :: n]), others


def slowly(*rows: Any) -> list[ParameterSet]:
    """Returns rows of a parametrized test that only `./tessera test --all` runs.

    Args:
        rows: the value of a test's only parameter, or the tuple of all of them.
    """
    return [
        pytest.param(*(row if isinstance(row, tuple) else (row,)), marks=pytest.mark.slow)
        for row in rows
    ]
