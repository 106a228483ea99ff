"""Rows: T inputs and T targets each, as spans of the stream of a split.

Concatenate and split: documents follow one another, separators between them, and a row is whatever
T tokens come next. Best fit: a row is whole documents, and only one that is longer than a row is
cut. Within a row a token sees its own document alone (segments), and positions begin with each.
Each token of the stream but its first is a target exactly once in an epoch, either way.
"""

import functools
import math
from typing import Literal, Protocol

import numpy as np

from data.packing import BestFit
from data.token_store import TokenStream


class Packing(Protocol):
    """The rows of one epoch."""

    def __len__(self) -> int: ...

    def spans(self, row: int) -> list[tuple[int, int]]:
        """Returns (start, stop) of the inputs in a row; targets are one token further on."""
        ...


class Windows:
    """Concatenate and split: row i is the tokens from i T on."""

    def __init__(self, num_tokens: int, sequence_len: int):
        self._num_inputs, self._sequence_len = max(num_tokens - 1, 0), sequence_len

    def __len__(self) -> int:
        return math.ceil(self._num_inputs / self._sequence_len)

    def spans(self, row: int) -> list[tuple[int, int]]:
        """Returns the one span of a row, shorter than T in the last."""
        start = row * self._sequence_len
        return [(start, min(start + self._sequence_len, self._num_inputs))]


class EpochRows:
    """The rows of one epoch of a stream, read at any place."""

    def __init__(self, stream: TokenStream, length: int, packing: Literal["concat", "best_fit"]):
        """Cuts a stream into rows of so many tokens."""
        self.stream = stream
        self.packing: Packing = (
            Windows(stream.num_tokens, length) if packing == "concat" else _best_fit(stream, length)
        )

    def __len__(self) -> int:
        return len(self.packing)

    def read(self, row: int) -> list[np.ndarray]:
        """Returns the tokens of each span of a row, with the token after it: its last target."""
        return [self.stream.read(start, stop + 1) for start, stop in self.packing.spans(row)]


@functools.lru_cache(maxsize=8)
def _best_fit(stream: TokenStream, sequence_len: int) -> BestFit:
    """Returns the packing of a stream, worked out once for what is said of a run and the run."""
    return BestFit(stream.starts, stream.num_tokens, sequence_len)
