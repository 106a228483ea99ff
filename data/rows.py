"""Rows: T inputs and T targets each, as spans of the stream of a split.

Concatenate and split: documents follow one another, separators between them, and a row is whatever
T tokens come next. Best fit: a row is whole documents, and only one that is longer than a row is
cut. Within a row a token sees its own document alone (segments), and positions begin with each.
Each token of the stream but its first is a target exactly once in an epoch, either way.
"""

import functools
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from configs.data import DataConfig
from data.batch import Batch
from data.packing import BestFit
from data.store import TokenStream


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


class Rows:
    """The rows of one epoch of a stream, read at any place."""

    def __init__(self, stream: TokenStream, config: DataConfig):
        self.stream = stream
        self.packing: Packing = (
            Windows(stream.num_tokens, config.sequence_len)
            if config.packing == "concat"
            else _best_fit(stream, config.sequence_len)
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


def empty_row(config: DataConfig) -> Batch[np.ndarray]:
    """Returns a row of padding: a batch of one, which has the fields of all others."""
    return make_batch([[]], config, separator=0)


def make_batch(rows: Sequence[list[np.ndarray]], config: DataConfig, separator: int) -> Batch:
    """Returns the batch [B, T] that data.objective makes of rows; a row of nothing is padding."""
    assert config.objective == "causal"
    return causal_batch(rows, config.sequence_len, separator)


def causal_batch(
    rows: Sequence[list[np.ndarray]], sequence_len: int, separator: int
) -> Batch[np.ndarray]:
    """Returns the batch in which each token predicts the next.

    A separator belongs to the document that it begins, and ends the one before as its last target.
    """
    shape = (len(rows), sequence_len)
    tokens_BT, targets_BT = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    begins_BT = np.zeros(shape, bool)
    begins_BT[:, 0] = True
    length_B1 = np.zeros((len(rows), 1), np.int32)
    for row, spans in enumerate(rows):
        at = 0
        for ids in spans:
            end = at + len(ids) - 1
            tokens_BT[row, at:end], targets_BT[row, at:end] = ids[:-1], ids[1:]
            begins_BT[row, at] = True
            at = end
        length_B1[row] = at
    place_T = np.arange(sequence_len, dtype=np.int32)
    holds_BT = place_T[None] < length_B1
    begins_BT |= (tokens_BT == separator) & holds_BT
    segments_BT = np.cumsum(begins_BT, axis=1, dtype=np.int32) * holds_BT
    begin_BT = np.maximum.accumulate(np.where(begins_BT, place_T[None], 0), axis=1)
    weights_BT = holds_BT.astype(np.float32)
    return Batch(tokens_BT, targets_BT, weights_BT, segments_BT, place_T[None] - begin_BT)
