"""Rows: T inputs and T targets each, cut from the stream every T tokens.

Concatenate and split: documents follow one another, separators between them, and a row is whatever
T tokens come next. Within a row a token sees only its own document (segments), and positions begin
again with each. Each token of the stream but its first is a target exactly once; the last row is
padded.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from configs.run import DataConfig
from data.batch import Batch
from data.store import TokenStream


@dataclass(frozen=True)
class Windows:
    """The rows of one epoch as a random-access source: item i is T + 1 tokens from i T on."""

    stream: TokenStream
    sequence_len: int

    def __len__(self) -> int:
        return math.ceil((self.stream.num_tokens - 1) / self.sequence_len)

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns up to T + 1 tokens, fewer in the last row of the stream."""
        start = index * self.sequence_len
        return self.stream.read(start, start + self.sequence_len + 1)


def make_row(config: DataConfig, separator: int) -> Callable[[np.ndarray], Batch]:
    """Returns the function from T + 1 tokens to a row, a Batch without its B, for the objective."""
    assert config.objective == "causal"
    return lambda window: causal_row(window, config.sequence_len, separator)


def causal_row(window: np.ndarray, sequence_len: int, separator: int) -> Batch:
    """Returns the row in which each token predicts the next; fields are [T].

    A separator belongs to the document that it begins, and ends the one before as its last target.
    """
    num_padding = sequence_len + 1 - len(window)
    num_targets = sequence_len - num_padding
    padded = np.concatenate((window, np.zeros(num_padding, window.dtype)))
    tokens_T, targets_T = padded[:-1], padded[1:]
    weights_T = (np.arange(sequence_len) < num_targets).astype(np.float32)
    begins_T = tokens_T == separator
    begins_T[0] = True
    segments_T = np.cumsum(begins_T, dtype=np.int32)
    place_T = np.arange(sequence_len, dtype=np.int32)
    positions_T = place_T - np.maximum.accumulate(np.where(begins_T, place_T, 0))
    segments_T = np.where(weights_T > 0, segments_T, 0).astype(np.int32)
    return Batch(tokens_T, targets_T * (weights_T > 0), weights_T, segments_T, positions_T)


def padding_row(sequence_len: int) -> Batch:
    """Returns a row without a target, for a batch that has fewer rows than its shape."""
    return causal_row(np.zeros(1, np.int32), sequence_len, separator=-1)
