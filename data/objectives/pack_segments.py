"""Segments: inputs and targets made of one document; packed into a batch."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data.batch import Batch, EncoderInputs


class Segment(NamedTuple):
    """Inputs and targets of one document of a row; attention stays within it."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None = None
    """None counts every target."""
    num_prefix: int = 0
    """Tokens at the beginning that all of the segment attends to."""
    types: np.ndarray | None = None
    """0 for the first text, 1 for the second."""
    next: int = 0
    """Next-sentence prediction: 1 if the second text follows the first, 2 if not, 0 if unused."""
    encoded: np.ndarray | None = None
    """Inputs of the encoder."""


class BatchShape(NamedTuple):
    """The shape of a batch, and which of its optional fields it has."""

    length: int
    encoded_length: int | None = None
    has_prefix: bool = False
    has_pairs: bool = False


class DocumentSpan(NamedTuple):
    """Consecutive tokens of one document within a row."""

    begins: bool
    """Whether the document begins here."""
    content: np.ndarray
    """Its tokens, without the separator."""
    following: int
    """The token after it: a separator where the document ends."""


def document_spans(spans: Sequence[np.ndarray], separator: int) -> Iterator[DocumentSpan]:
    """Yields the document spans of the stream spans of a row, each with the token after it."""
    for ids in spans:
        starts = np.flatnonzero(ids[:-1] == separator)
        edges = np.unique(np.concatenate(([0], starts, [len(ids) - 1])))
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            begins = bool(ids[start] == separator)
            yield DocumentSpan(begins, ids[start + begins : stop], int(ids[stop]))


def pack(rows: Sequence[Iterable[Segment]], shape: BatchShape) -> Batch[np.ndarray]:
    """Returns the batch of rows of segments; each row is filled in order from its first column."""
    size = (len(rows), shape.length)
    ints = [np.zeros(size, np.int32) for _ in range(6)]
    tokens_BT, targets_BT, segments_BT, positions_BT, types_BT, next_BT = ints
    weights_BT, prefix_BT = np.zeros(size, np.float32), np.zeros(size, bool)
    encoded = None
    if shape.encoded_length is not None:
        size = (len(rows), shape.encoded_length)
        encoded = EncoderInputs(*(np.zeros(size, np.int32) for _ in range(3)))
    for row, segments in enumerate(rows):
        at = encoded_at = 0
        for number, segment in enumerate(segments, 1):
            end = at + len(segment.tokens)
            assert end <= shape.length, (end, shape)
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
                assert shape.encoded_length is not None
                encoded_end = encoded_at + len(segment.encoded)
                assert encoded_end <= shape.encoded_length, (encoded_end, shape)
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
        prefix_BT=prefix_BT if shape.has_prefix else None,
        types_BT=types_BT if shape.has_pairs else None,
        next_BT=next_BT if shape.has_pairs else None,
        encoder=encoded,
    )
