"""Rows of T inputs and T targets, as spans of the stream of a split.

Concatenate and split: documents are joined by separators, and a row is the next T tokens. Best fit:
a row is whole documents; only documents longer than a row are cut. Within a row a token attends
only to its own document (segments), and positions restart with each document. Either way, each
token of the stream but the first is a target exactly once in an epoch.
"""

import functools
import math
from typing import Literal

import numpy as np

from data.packing import BestFit
from data.token_store import TokenStream


class Windows:
    """Concatenate and split: row i is the tokens from i T on."""

    def __init__(self, num_tokens: int, sequence_len: int):
        self._num_inputs, self._sequence_len = max(num_tokens - 1, 0), sequence_len

    def __len__(self) -> int:
        return math.ceil(self._num_inputs / self._sequence_len)

    def spans(self, row: int) -> list[tuple[int, int]]:
        """Returns (start, stop) of the inputs in a row; targets are shifted by one token."""
        start = row * self._sequence_len
        return [(start, min(start + self._sequence_len, self._num_inputs))]


class EpochRows:
    """The rows of one epoch of a stream, with random access."""

    def __init__(self, stream: TokenStream, length: int, packing: Literal["concat", "best_fit"]):
        self.stream = stream
        self.packing = (
            Windows(stream.num_tokens, length) if packing == "concat" else _best_fit(stream, length)
        )

    def __len__(self) -> int:
        return len(self.packing)

    def read(self, row: int) -> list[np.ndarray]:
        """Returns the tokens of each span of a row, with the token after it: its last target."""
        return [self.stream.read(start, stop + 1) for start, stop in self.packing.spans(row)]


@functools.lru_cache(maxsize=8)
def _best_fit(stream: TokenStream, sequence_len: int) -> BestFit:
    """Returns the packing of a stream; cached, as the summary of a run needs it too."""
    return BestFit(stream.starts, stream.num_tokens, sequence_len)
