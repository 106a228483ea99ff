"""Span corruption (T5, UL2): sentinels replace masked spans, and the targets are these spans."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data.objectives.causal import cut_in_two, encoder_decoder_segment, prefix_segment
from data.objectives.pack_segments import DocumentSpan, Segment


class Denoiser(NamedTuple):
    """How much of a text is masked, and in how long spans."""

    density: float
    """Share of the tokens."""
    mean_len: float
    """Mean tokens of a span."""

    def counts(self, length: int) -> tuple[int, int]:
        """Returns the number of masked tokens in a text of this length, and of spans they form."""
        if length < 2:
            return 0, 0
        num_masked = min(max(round(self.density * length), 1), length - 1)
        num_spans = min(max(round(num_masked / self.mean_len), 1), num_masked)
        return num_masked, min(num_spans, length - num_masked)


SUFFIX = Denoiser(0.25, float("inf"))
"""Masks the end of a text, a quarter of it on average (prefix LM)."""
UL2 = (
    Denoiser(0.15, 3),
    Denoiser(0.15, 8),
    Denoiser(0.5, 3),
    Denoiser(0.5, 8),
    Denoiser(0.15, 64),
    Denoiser(0.5, 64),
    SUFFIX,
)
"""Every row has one of these, at random. Source: Tay et al. 2022, UL2, arXiv:2205.05131, table 1,
without its mode tokens."""


def lengths(denoiser: Denoiser, length: int) -> tuple[int, int]:
    """Returns the most tokens of inputs and targets for a text of a length, one end included."""
    if denoiser is SUFFIX:
        return length, length  # as for many short texts, each with an end token
    num_masked, num_spans = denoiser.counts(length)
    return length - num_masked + num_spans, num_masked + num_spans + 1


def corrupt(
    spans: Sequence[DocumentSpan],
    denoiser: Denoiser,
    separator: int,
    sentinels: np.ndarray,
    rng: np.random.Generator,
    *,
    target_len: int | None,
    most_targets: int,
) -> Iterator[Segment]:
    """Yields the document spans of a row with noise spans masked.

    The row as a whole has the counts of the denoiser, shared among its documents by length; those
    too short to get a noise span are skipped, as they have no targets. Source: Raffel et al. 2019,
    T5, arXiv:1910.10683, section 3.1.4, with the random lengths of its code.

    Args:
        sentinels: ids that replace noise spans, in this order.
        target_len: tokens of a decoder's row; None puts inputs and targets into one row.
        most_targets: most tokens of the targets of the row, end tokens included.
    """
    if denoiser is SUFFIX:

        def choose(length: int) -> int:
            return length - int(rng.integers(1, length // 2 + 1))

        yield from cut_in_two(spans, separator, choose, two_sided=target_len is not None)
        return
    sizes = np.array([len(span.content) for span in spans], np.int64)
    num_masked, num_spans = denoiser.counts(int(sizes.sum()))
    most_texts = max(most_targets - num_masked - num_spans, 1)  # each has its own end token
    small = np.argsort(-sizes, kind="stable")[most_texts:]
    most = sizes // 2
    most[small] = 0
    none = np.zeros_like(sizes)
    num_noise = _apportion(num_spans, sizes, none, most, rng)
    sizes[num_noise == 0] = 0
    masked = _apportion(num_masked, sizes, num_noise, sizes - num_noise, rng)
    for span, num, size in zip(spans, num_noise.tolist(), masked.tolist(), strict=True):
        if num == 0:
            continue
        inputs, targets = _mask_spans(span, num, size, separator, sentinels, rng)
        if target_len is None:
            yield prefix_segment(inputs, np.concatenate((targets, [separator])))
        else:
            yield encoder_decoder_segment(inputs, targets, separator)


def _mask_spans(
    span: DocumentSpan,
    num_spans: int,
    num_masked: int,
    separator: int,
    sentinels: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a text with sentinels in place of noise spans, and each noise span after its own."""
    begin = np.array([separator] * span.begins, np.int32)
    kept = _random_partition(len(span.content) - num_masked, num_spans, rng)
    masked = _random_partition(num_masked, num_spans, rng)
    edges = np.cumsum(np.stack((kept, masked), axis=1).reshape(-1))[:-1]
    texts = np.split(span.content, edges)
    inputs, targets = [begin], []
    for sentinel, visible, noise in zip(sentinels, texts[::2], texts[1::2], strict=False):
        inputs += [visible, [sentinel]]
        targets += [[sentinel], noise]
    return np.concatenate(inputs), np.concatenate(targets)


def _random_partition(total: int, num: int, rng: np.random.Generator) -> np.ndarray:
    """Returns num positive integers that sum to total, uniformly over all such lists."""
    cuts = np.sort(rng.choice(total - 1, num - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)


def _apportion(
    total: int, sizes: np.ndarray, least: np.ndarray, most: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Returns integers near sizes * total / sum(sizes) that sum to total, within bounds.

    The bounds win if no such integers exist.
    """
    exact = total * sizes / max(sizes.sum(), 1)
    shares = np.clip(np.floor(exact).astype(np.int64), least, most)
    order = rng.permutation(len(sizes))
    order = order[np.argsort(-(exact - shares)[order], kind="stable")]
    while (left := total - int(shares.sum())) != 0:
        room = (most - shares) if left > 0 else (shares - least)
        able = order[room[order] > 0][: abs(left)]
        if not len(able):
            break
        shares[able] += 1 if left > 0 else -1
    return shares
