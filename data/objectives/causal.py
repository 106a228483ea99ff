"""Next-token prediction: causal, prefix LM, and fill-in-the-middle."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from data.batch import Batch
from data.objectives.pack_segments import DocumentSpan, Segment


def causal_batch(
    rows: Sequence[list[np.ndarray]], sequence_len: int, separator: int
) -> Batch[np.ndarray]:
    """Returns the batch in which each token predicts the next.

    A separator belongs to the document that it begins, and is the last target of the one before.
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
    column_T = np.arange(sequence_len, dtype=np.int32)
    is_token_BT = column_T[None] < length_B1
    begins_BT |= (tokens_BT == separator) & is_token_BT
    segments_BT = np.cumsum(begins_BT, axis=1, dtype=np.int32) * is_token_BT
    start_BT = np.maximum.accumulate(np.where(begins_BT, column_T[None], 0), axis=1)
    weights_BT = is_token_BT.astype(np.float32)
    return Batch(tokens_BT, targets_BT, weights_BT, segments_BT, column_T[None] - start_BT)


def causal(spans: Iterable[DocumentSpan], separator: int) -> Iterator[Segment]:
    for span in spans:
        sequence = with_boundaries(span, separator)
        if len(sequence) > 1:
            yield Segment(sequence[:-1], sequence[1:])


def with_boundaries(span: DocumentSpan, separator: int) -> np.ndarray:
    sequence = np.concatenate(([separator] * span.begins, span.content, [span.following]))
    return sequence.astype(np.int32)


def prefix(
    spans: Iterable[DocumentSpan], separator: int, rng: np.random.Generator, *, two_sided: bool
) -> Iterator[Segment]:
    """Yields each span cut at a random position; attention is bidirectional before the cut.

    Source: Raffel et al. 2019, T5, arXiv:1910.10683, section 3.2.1.

    Args:
        two_sided: the tokens before the cut go to the encoder, and the decoder begins with a
            separator.
    """

    def choose(length: int) -> int:
        return int(rng.integers(1, length))

    return cut_in_two(spans, separator, choose, two_sided=two_sided)


def cut_in_two(
    spans: Iterable[DocumentSpan], separator: int, choose: Callable[[int], int], *, two_sided: bool
) -> Iterator[Segment]:
    """Yields each span of two tokens or more, cut after `choose(length)` tokens."""
    for span in spans:
        sequence = with_boundaries(span, separator)
        length = len(sequence) - 1
        if length < 2:
            continue
        cut = choose(length)
        if two_sided:
            yield encoder_decoder_segment(sequence[:cut], sequence[cut:-1], separator)
        else:
            yield prefix_segment(sequence[:cut], sequence[cut:])


def prefix_segment(inputs: np.ndarray, targets: np.ndarray) -> Segment:
    """Returns a segment with the inputs as a bidirectional prefix of the targets."""
    sequence = np.concatenate((inputs, targets)).astype(np.int32)
    weights = (np.arange(len(sequence) - 1) >= len(inputs) - 1).astype(np.float32)
    return Segment(sequence[:-1], sequence[1:], weights, num_prefix=len(inputs))


def encoder_decoder_segment(inputs: np.ndarray, targets: np.ndarray, separator: int) -> Segment:
    """Returns a segment with inputs for the encoder; its targets end with a separator."""
    sequence = np.concatenate(([separator], targets, [separator])).astype(np.int32)
    return Segment(sequence[:-1], sequence[1:], encoded=inputs.astype(np.int32))


def infill(
    spans: Iterable[DocumentSpan],
    separator: int,
    special: dict[str, int],
    rng: np.random.Generator,
    *,
    rate: float,
    most: int,
) -> Iterator[Segment]:
    """Yields spans, the middle of some of them moved to the end.

    PREFIX start SUFFIX end MIDDLE middle, or PREFIX SUFFIX end MIDDLE start middle; cut by tokens,
    where the paper's best variant cuts by characters. Source: Bavarian et al. 2022, Efficient
    training of language models to fill in the middle, arXiv:2207.14255, section 3.

    Args:
        rate: share of the spans that are changed.
        most: most spans of a row to change; each gets three tokens longer.
    """
    sentinels = [special[f"<|fim_{name}|>"] for name in ("prefix", "suffix", "middle")]
    for number, span in enumerate(spans):
        content = span.content
        if rng.random() < rate and number < most and len(content) > 2:
            first, second = np.sort(rng.choice(len(content) + 1, 2, replace=False))
            start, middle, end = np.split(content, (first, second))
            begin, suffix, mid = ([sentinel] for sentinel in sentinels)
            parts = (
                (begin, suffix, end, mid, start, middle)
                if rng.random() < 0.5
                else (begin, start, suffix, end, mid, middle)
            )
            span = span._replace(content=np.concatenate(parts))
        sequence = with_boundaries(span, separator)
        if len(sequence) > 1:
            yield Segment(sequence[:-1], sequence[1:])
