"""Rows of whole documents: best-fit packing, worked out from where documents begin.

A document that fits a row is never cut. A longer one is cut every T tokens from its beginning; the
whole pieces fill a row each, and the remainder is packed like a document. Each input of the stream
is in exactly one row, so nothing is truncated away; what a row has left over is padding.

Source: Ding et al. 2024, Fewer Truncations Improve Language Modeling, arXiv:2404.10830, algorithm 1
(best-fit decreasing). We pack in groups of consecutive documents, and place all pieces of a length
at once, after the histograms of Krell et al. 2021, Efficient Sequence Packing without
Cross-contamination, arXiv:2107.02027; within a group the rows are those of the plain algorithm.
"""

import bisect
from collections import defaultdict, deque
from collections.abc import Iterator

import numpy as np

GROUP_LEN = 2**17
"""Documents that are packed together. Part of the order of data: another value, other rows."""


class BestFit:
    """The rows of one epoch, as spans of a token stream; their order is not that of the documents.

    A document that begins at starts[i] has the inputs from there to starts[i + 1]; those before
    starts[0] are a document too. Targets are the inputs' next tokens, so the last token of the
    stream, which is a separator, is a target only. Takes 12 bytes per piece and 8 per row.

    Args:
        starts: where documents begin, ascending, int64; read in parts, so it may be a memory map.
        num_tokens: length of the stream, with the separator that ends it.
        sequence_len: inputs in a row, T.
    """

    def __init__(self, starts: np.ndarray, num_tokens: int, sequence_len: int):
        self.sequence_len = sequence_len
        self._num_inputs = max(num_tokens - 1, 0)
        num_pieces = sum(
            int(-(-np.diff(edges) // sequence_len).sum())
            for edges in _groups(starts, self._num_inputs)
        )
        self._start_P = np.empty(num_pieces, np.int64)
        self._length_P = np.empty(num_pieces, np.int32)
        bounds = [np.zeros(1, np.int64)]
        done = 0
        for edges in _groups(starts, self._num_inputs):
            start_P, length_P, row_lens = _pack_group(edges, sequence_len)
            self._start_P[done : done + len(start_P)] = start_P
            self._length_P[done : done + len(start_P)] = length_P
            bounds.append(done + np.cumsum(row_lens))
            done += len(start_P)
        self._bounds = np.concatenate(bounds)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def spans(self, row: int) -> list[tuple[int, int]]:
        """Returns (start, stop) of the inputs in a row, in the order of the stream; T at most."""
        pieces = slice(self._bounds[row], self._bounds[row + 1])
        starts, lengths = self._start_P[pieces].tolist(), self._length_P[pieces].tolist()
        return [(start, start + length) for start, length in zip(starts, lengths, strict=True)]

    @property
    def num_padding(self) -> int:
        """Positions of all rows that hold no token."""
        return len(self) * self.sequence_len - self._num_inputs

    @property
    def waste(self) -> float:
        """The part of all positions that is padding, from 0 to 1."""
        return self.num_padding / max(len(self) * self.sequence_len, 1)


def _groups(starts: np.ndarray, num_inputs: int) -> Iterator[np.ndarray]:
    """Yields where documents begin and where the last one ends, for each group in turn.

    The first and the last group may have an empty document more, which makes no piece.
    """
    for first in range(0, max(len(starts), 1), GROUP_LEN):
        edges = np.asarray(starts[first : first + GROUP_LEN + 1], np.int64)
        before = [0] if first == 0 else []
        after = [num_inputs] if first + GROUP_LEN >= len(starts) else []
        edges = np.concatenate((before, edges, after)).astype(np.int64)
        assert np.all(edges[1:] >= edges[:-1]), "starts must ascend and lie in the stream"
        yield edges


def _pack_group(edges: np.ndarray, sequence_len: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns start and length of each piece [P], row after row, and the pieces in each row [R]."""
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


def _best_fit(length_P: np.ndarray, sequence_len: int) -> np.ndarray:
    """Returns the row of each piece, placed in the given order, which must be falling in length.

    A piece goes to the row with the least room that it fits, of several to the one that has had
    that room longest, and to a new row if it fits none. A row that has room for another piece of
    the same length has then the least room of all that do, so it takes that piece too: pieces of
    one length fill row after row, and are placed in one go.
    """
    row_P = np.empty(len(length_P), np.int64)
    rooms = _Rooms()
    num_rows = done = 0
    lengths, counts = np.unique(length_P, return_counts=True)
    for length, num_left in zip(lengths[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while num_left:
            room, rows = rooms.take(length)
            if rows is None:
                room = sequence_len
                num_new = -(-num_left // (room // length))
                rows = np.arange(num_rows, num_rows + num_new)
                num_rows += num_new
            each = room // length
            num_placed = min(num_left, len(rows) * each)
            num_full, extra = divmod(num_placed, each)
            num_used = num_full + (extra > 0)
            row_P[done : done + num_placed] = rows[np.arange(num_placed) // each]
            rooms.put(rows[:num_full], room - each * length)
            rooms.put(rows[num_full:num_used], room - extra * length)
            rooms.put_back(rows[num_used:], room)
            done += num_placed
            num_left -= num_placed
    return row_P


class _Rooms:
    """Rows by the room that they have left: a queue of runs of rows for each room above zero."""

    def __init__(self):
        self._queues: defaultdict[int, deque[np.ndarray]] = defaultdict(deque)
        self._ascending: list[int] = []  # the rooms whose queue is not empty

    def take(self, length: int) -> tuple[int, np.ndarray | None]:
        """Removes the rows that have had the least room for a length longest; None if none has."""
        place = bisect.bisect_left(self._ascending, length)
        if place == len(self._ascending):
            return 0, None
        room = self._ascending[place]
        rows = self._queues[room].popleft()
        if not self._queues[room]:
            del self._ascending[place]
        return room, rows

    def put(self, rows: np.ndarray, room: int) -> None:
        """Adds rows that have come to have this room, the last to be taken."""
        if len(rows) and room:
            self._queue(room).append(rows)

    def put_back(self, rows: np.ndarray, room: int) -> None:
        """Adds rows that were taken and are left over, the first to be taken."""
        if len(rows) and room:
            self._queue(room).appendleft(rows)

    def _queue(self, room: int) -> deque[np.ndarray]:
        if not self._queues[room]:
            bisect.insort(self._ascending, room)
        return self._queues[room]
