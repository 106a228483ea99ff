"""Segments: what a model is given of one document and what it is to find; packed into a batch."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data.batch import Batch, EncoderInputs


class Segment(NamedTuple):
    """A document of a row, by itself: it sees nothing of the others."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None = None
    """None counts every target."""
    num_prefix: int = 0
    """Tokens at the beginning that all of the segment sees."""
    types: np.ndarray | None = None
    """0 for the first text, 1 for the second."""
    next: int = 0
    """1 where the second text follows the first, 2 where it does not, 0 where nobody asks."""
    encoded: np.ndarray | None = None
    """The text beside it that is encoded."""


class BatchShape(NamedTuple):
    """The shape of a batch, and which of the fields that not all objectives need it has."""

    length: int
    encoded_length: int | None = None
    has_prefix: bool = False
    has_pairs: bool = False


class DocumentSpan(NamedTuple):
    """Tokens that follow one another in one document."""

    begins: bool
    """Whether the document begins here."""
    content: np.ndarray
    """Its tokens, no separator."""
    following: int
    """The token after it: a separator where the document ends."""


def document_spans(spans: Sequence[np.ndarray], separator: int) -> Iterator[DocumentSpan]:
    """Yields the pieces of documents in a row.

    Args:
        spans: tokens with the one after the last, as rows are read.
    """
    for ids in spans:
        starts = np.flatnonzero(ids[:-1] == separator)
        edges = np.unique(np.concatenate(([0], starts, [len(ids) - 1])))
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            begins = bool(ids[start] == separator)
            yield DocumentSpan(begins, ids[start + begins : stop], int(ids[stop]))


def pack(rows: Sequence[Sequence[Segment]], form: BatchShape) -> Batch[np.ndarray]:
    """Returns the batch of rows of segments, each row in order from its first column on."""
    shape = (len(rows), form.length)
    ints = [np.zeros(shape, np.int32) for _ in range(6)]
    tokens_BT, targets_BT, segments_BT, positions_BT, types_BT, next_BT = ints
    weights_BT, prefix_BT = np.zeros(shape, np.float32), np.zeros(shape, bool)
    encoded = None
    if form.encoded_length is not None:
        shape = (len(rows), form.encoded_length)
        encoded = EncoderInputs(*(np.zeros(shape, np.int32) for _ in range(3)))
    for row, segments in enumerate(rows):
        at = encoded_at = 0
        for number, segment in enumerate(segments, 1):
            end = at + len(segment.tokens)
            assert end <= form.length, (end, form)
            here = (row, slice(at, end))
            tokens_BT[here], targets_BT[here] = segment.tokens, segment.targets
            weights_BT[here] = 1 if segment.weights is None else segment.weights
            segments_BT[here], positions_BT[here] = number, np.arange(end - at)
            prefix_BT[row, at : at + segment.num_prefix] = True
            if segment.types is not None:
                types_BT[here] = segment.types
            if segment.next:
                next_BT[row, at] = segment.next
            at = end
            if segment.encoded is not None:
                assert encoded is not None
                assert form.encoded_length is not None
                encoded_end = encoded_at + len(segment.encoded)
                assert encoded_end <= form.encoded_length, (encoded_end, form)
                here = (row, slice(encoded_at, encoded_end))
                encoded.tokens_BS[here] = segment.encoded
                encoded.segments_BS[here] = number
                encoded.positions_BS[here] = np.arange(encoded_end - encoded_at)
                encoded_at = encoded_end
    return Batch(
        tokens_BT,
        targets_BT,
        weights_BT,
        segments_BT,
        positions_BT,
        prefix_BT=prefix_BT if form.has_prefix else None,
        types_BT=types_BT if form.has_pairs else None,
        next_BT=next_BT if form.has_pairs else None,
        encoder=encoded,
    )
