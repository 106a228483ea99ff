"""Each token predicts the next: as it is, behind a start that is seen whole, or out of order."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from data.batch import Batch
from data.objectives.segments import DocumentSpan, Segment


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


def causal(pieces: Iterable[DocumentSpan], separator: int) -> Iterator[Segment]:
    """Yields each piece as it is, its separator first."""
    for piece in pieces:
        sequence = whole(piece, separator)
        if len(sequence) > 1:
            yield Segment(sequence[:-1], sequence[1:])


def whole(piece: DocumentSpan, separator: int) -> np.ndarray:
    """Returns a piece with its separator, if the document begins there, and the token after it."""
    return np.concatenate(([separator] * piece.begins, piece.content, [piece.following])).astype(
        np.int32
    )


def prefix(
    pieces: Iterable[DocumentSpan], separator: int, draw: np.random.Generator, *, two_sided: bool
) -> Iterator[Segment]:
    """Returns each piece cut at a place by chance: what is before is seen whole.

    Source: Raffel et al. 2019, T5, arXiv:1910.10683, section 3.2.1.

    Args:
        two_sided: what is before goes to the encoder, and the decoder begins with a separator.
    """

    def choose(length: int) -> int:
        return int(draw.integers(1, length))

    return cut_in_two(pieces, separator, choose, two_sided=two_sided)


def cut_in_two(
    pieces: Iterable[DocumentSpan], separator: int, choose: Callable[[int], int], *, two_sided: bool
) -> Iterator[Segment]:
    """Yields each piece of two tokens or more, cut behind as many as `choose` says of its length.

    Args:
        two_sided: as of `prefix`.
    """
    for piece in pieces:
        sequence = whole(piece, separator)
        length = len(sequence) - 1
        if length < 2:
            continue
        cut = choose(length)
        if two_sided:
            yield beside(sequence[:cut], sequence[cut:-1], separator)
        else:
            yield behind(sequence[:cut], sequence[cut:])


def behind(given: np.ndarray, found: np.ndarray) -> Segment:
    """Returns a segment of one text that is seen whole and one behind it that is to be found."""
    sequence = np.concatenate((given, found)).astype(np.int32)
    weights = (np.arange(len(sequence) - 1) >= len(given) - 1).astype(np.float32)
    return Segment(sequence[:-1], sequence[1:], weights, num_prefix=len(given))


def beside(given: np.ndarray, found: np.ndarray, separator: int) -> Segment:
    """Returns a segment in which one text is encoded and the other is to be found, with its end."""
    sequence = np.concatenate(([separator], found, [separator])).astype(np.int32)
    return Segment(sequence[:-1], sequence[1:], encoded=given.astype(np.int32))


def infill(
    pieces: Iterable[DocumentSpan],
    separator: int,
    special: dict[str, int],
    draw: np.random.Generator,
    *,
    rate: float,
    most: int,
) -> Iterator[Segment]:
    """Yields pieces, the middle of some of them moved to the end.

    PREFIX start SUFFIX end MIDDLE middle, or PREFIX SUFFIX end MIDDLE start middle; cut by tokens,
    where the paper's best variant cuts by characters. Source: Bavarian et al. 2022, Efficient
    training of language models to fill in the middle, arXiv:2207.14255, section 3.

    Args:
        rate: part of the pieces that is changed.
        most: pieces of a row that may be changed, each by three tokens more.
    """
    marks = [special[f"<|fim_{name}|>"] for name in ("prefix", "suffix", "middle")]
    for number, piece in enumerate(pieces):
        sequence = whole(piece, separator)
        content = piece.content
        if draw.random() < rate and number < most and len(content) > 2:
            first, second = np.sort(draw.choice(len(content) + 1, 2, replace=False))
            start, middle, end = np.split(content, (first, second))
            begin, suffix, mid = ([mark] for mark in marks)
            parts = (
                (begin, suffix, end, mid, start, middle)
                if draw.random() < 0.5
                else (begin, start, suffix, end, mid, middle)
            )
            sequence = np.concatenate(
                ([separator] * piece.begins, *parts, [piece.following])
            ).astype(np.int32)
        if len(sequence) > 1:
            yield Segment(sequence[:-1], sequence[1:])
