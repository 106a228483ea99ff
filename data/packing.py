"""Rows of T inputs and T targets, as spans of the stream of a split.

Concatenate and split: documents are joined by separators, and a row is the next T tokens. Best fit:
a row is whole documents, packed by the starts of documents. Within a row a token attends only to
its own document (segments), and positions restart with each document. Either way, each token of
the stream but the first is a target exactly once in an epoch.

In best fit, a document that fits a row is never cut. A longer one is cut every T tokens from its
beginning; each full chunk fills a row, and the remainder is packed like a document.

Source: Ding et al. 2024, Fewer Truncations Improve Language Modeling, arXiv:2404.10830, algorithm 1
(best-fit decreasing). We pack in groups of consecutive documents, and place all chunks of a length
at once, after the histograms of Krell et al. 2021, Efficient Sequence Packing without
Cross-contamination, arXiv:2107.02027; within a group the rows are those of the plain algorithm.
"""

import bisect
import functools
import math
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Literal

import numpy as np

from data.token_store import TokenStream

GROUP_LEN = 2**17
"""Documents per packing group. It decides the rows, so it is part of the order of data."""


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


class BestFit:
    """The rows of one epoch, as spans of a token stream; their order is not that of the documents.

    A document that begins at starts[i] has the inputs from there to starts[i + 1]; those before
    starts[0] are a document too. Targets are the inputs' next tokens, so the last token of the
    stream, which is a separator, is a target only. Takes 12 bytes per chunk and 8 per row.
    """

    def __init__(self, starts: np.ndarray, num_tokens: int, sequence_len: int):
        num_inputs = max(num_tokens - 1, 0)
        num_chunks = sum(
            int(-(-np.diff(edges) // sequence_len).sum()) for edges in _groups(starts, num_inputs)
        )
        self._start_C = np.empty(num_chunks, np.int64)
        self._length_C = np.empty(num_chunks, np.int32)
        bounds = [np.zeros(1, np.int64)]
        done = 0
        for edges in _groups(starts, num_inputs):
            start_C, length_C, row_lens = _pack_group(edges, sequence_len)
            self._start_C[done : done + len(start_C)] = start_C
            self._length_C[done : done + len(start_C)] = length_C
            bounds.append(done + np.cumsum(row_lens))
            done += len(start_C)
        self._bounds = np.concatenate(bounds)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def spans(self, row: int) -> list[tuple[int, int]]:
        """Returns (start, stop) of the inputs in a row, in the order of the stream; T at most."""
        chunks = slice(self._bounds[row], self._bounds[row + 1])
        starts, lengths = self._start_C[chunks].tolist(), self._length_C[chunks].tolist()
        return [(start, start + length) for start, length in zip(starts, lengths, strict=True)]


def _groups(starts: np.ndarray, num_inputs: int) -> Iterator[np.ndarray]:
    """Yields where documents begin and where the last one ends, for each group in turn.

    The first and the last group may have an empty document more, which makes no chunk.
    """
    for first in range(0, max(len(starts), 1), GROUP_LEN):
        edges = np.asarray(starts[first : first + GROUP_LEN + 1], np.int64)
        before = [0] if first == 0 else []
        after = [num_inputs] if first + GROUP_LEN >= len(starts) else []
        edges = np.concatenate((before, edges, after)).astype(np.int64)
        assert np.all(edges[1:] >= edges[:-1]), "starts must ascend and lie in the stream"
        yield edges


def _pack_group(edges: np.ndarray, sequence_len: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns start and length of each chunk [C], row after row, and the chunks in each row [R]."""
    num_whole, rest = np.divmod(np.diff(edges), sequence_len)
    before = np.repeat(np.cumsum(num_whole) - num_whole, num_whole)
    nth_of_document = np.arange(len(before)) - before
    whole_start = np.repeat(edges[:-1], num_whole) + nth_of_document * sequence_len

    remains = rest > 0
    start, length = (edges[1:] - rest)[remains], rest[remains]
    falling = np.argsort(-length, kind="stable")
    row = np.empty(len(length), np.int64)
    row[falling] = _best_fit(length[falling], sequence_len)
    by_row = np.argsort(row, kind="stable")

    return (
        np.concatenate((whole_start, start[by_row])),
        np.concatenate((np.full(len(whole_start), sequence_len), length[by_row])),
        np.concatenate((np.ones(len(whole_start), np.int64), np.bincount(row))),
    )


def _best_fit(length_C: np.ndarray, sequence_len: int) -> np.ndarray:
    """Returns the row of each chunk, placed in the given order, which must be falling in length.

    A chunk goes to the row with the least free space that fits it, of several to the one that has
    had that space longest, and to a new row if none fits. If that row fits another chunk of the
    same length, it then has the least space of all that do, and takes that chunk too: chunks of one
    length fill row after row, and are placed at once.
    """
    row_C = np.empty(len(length_C), np.int64)
    open_rows = _OpenRows()
    num_rows = done = 0
    lengths, counts = np.unique(length_C, return_counts=True)
    for length, num_left in zip(lengths[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while num_left:
            space, rows = open_rows.take(length)
            if rows is None:
                space = sequence_len
                num_new = -(-num_left // (space // length))
                rows = np.arange(num_rows, num_rows + num_new)
                num_rows += num_new
            each = space // length
            num_placed = min(num_left, len(rows) * each)
            num_full, extra = divmod(num_placed, each)
            num_used = num_full + (extra > 0)
            row_C[done : done + num_placed] = rows[np.arange(num_placed) // each]
            open_rows.put(rows[:num_full], space - each * length)
            open_rows.put(rows[num_full:num_used], space - extra * length)
            open_rows.put(rows[num_used:], space, is_first=True)
            done += num_placed
            num_left -= num_placed
    return row_C


class _OpenRows:
    """Rows by their free space: a queue of runs of rows for each space above zero."""

    def __init__(self):
        self._queues: defaultdict[int, deque[np.ndarray]] = defaultdict(deque)
        self._ascending: list[int] = []  # the spaces whose queue is not empty

    def take(self, length: int) -> tuple[int, np.ndarray | None]:
        """Removes the oldest rows of the least space that fits a length; None if none fits."""
        index = bisect.bisect_left(self._ascending, length)
        if index == len(self._ascending):
            return 0, None
        space = self._ascending[index]
        rows = self._queues[space].popleft()
        if not self._queues[space]:
            del self._ascending[index]
        return space, rows

    def put(self, rows: np.ndarray, space: int, *, is_first: bool = False) -> None:
        """Adds rows with this space, to be taken last, or first."""
        if len(rows) and space:
            queue = self._queues[space]
            if not queue:
                bisect.insort(self._ascending, space)
            (queue.appendleft if is_first else queue.append)(rows)


class EpochRows:
    """The rows of one epoch of a stream, with random access."""

    def __init__(self, stream: TokenStream, length: int, packing: Literal["concat", "best_fit"]):
        self.stream = stream
        self.packing: Windows | BestFit = Windows(stream.num_tokens, length)
        if packing == "best_fit":
            self.packing = _cached_best_fit(stream, length)

    def __len__(self) -> int:
        return len(self.packing)

    def read(self, row: int) -> list[np.ndarray]:
        """Returns the tokens of each span of a row, with the token after it: its last target."""
        return [self.stream.read(start, stop + 1) for start, stop in self.packing.spans(row)]


@functools.lru_cache(maxsize=8)
def _cached_best_fit(stream: TokenStream, sequence_len: int) -> BestFit:
    """Returns the packing of a stream; cached, as the summary of a run needs it too."""
    return BestFit(stream.starts, stream.num_tokens, sequence_len)
