"""Hidden spans, each with a token in its place; they are to be found one after the other."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data.objectives.causal import behind, beside, cut_in_two
from data.objectives.segments import DocumentSpan, Segment


class Denoiser(NamedTuple):
    """How much is hidden of a text, and in how long spans."""

    density: float
    """Part of the tokens."""
    mean_len: float
    """Tokens of a span."""

    def counts(self, length: int) -> tuple[int, int]:
        """Returns the hidden tokens of a text of so many, and the spans that they form."""
        if length < 2:
            return 0, 0
        num_hidden = min(max(round(self.density * length), 1), length - 1)
        num_spans = min(max(round(num_hidden / self.mean_len), 1), num_hidden)
        return num_hidden, min(num_spans, length - num_hidden)


SUFFIX = Denoiser(0.25, float("inf"))
"""The end of a text, a quarter of it on average."""
UL2 = (
    Denoiser(0.15, 3),
    Denoiser(0.15, 8),
    Denoiser(0.5, 3),
    Denoiser(0.5, 8),
    Denoiser(0.15, 64),
    Denoiser(0.5, 64),
    SUFFIX,
)
"""Of which every row has one by chance. Source: Tay et al. 2022, UL2, arXiv:2205.05131, table 1,
without the tokens that tell them apart."""


def lengths(denoiser: Denoiser, length: int) -> tuple[int, int]:
    """Returns the most that input and targets of so many tokens take, the end of one included."""
    if denoiser is SUFFIX:
        return length, length  # as of many short texts, each with an end
    num_hidden, num_spans = denoiser.counts(length)
    return length - num_hidden + num_spans, num_hidden + num_spans + 1


def corrupt(
    pieces: Sequence[DocumentSpan],
    denoiser: Denoiser,
    separator: int,
    sentinels: np.ndarray,
    draw: np.random.Generator,
    *,
    target_len: int | None,
    most_targets: int,
) -> Iterator[Segment]:
    """Yields the pieces of a row with spans hidden.

    The row as a whole has the counts of the denoiser; pieces have their share by length, and those
    too short to have any are left out, since nothing is to be found in them. Source:
    Raffel et al. 2019, T5, arXiv:1910.10683, section 3.1.4, with the random lengths of its code.

    Args:
        sentinels: ids that stand for spans, in this order.
        target_len: tokens of a decoder's row; None puts input and targets into one row.
        most_targets: tokens that the targets of the row may have, ends included.
    """
    if denoiser is SUFFIX:

        def choose(length: int) -> int:
            return length - int(draw.integers(1, length // 2 + 1))

        yield from cut_in_two(pieces, separator, choose, two_sided=target_len is not None)
        return
    sizes = np.array([len(piece.content) for piece in pieces], np.int64)
    num_hidden, num_spans = denoiser.counts(int(sizes.sum()))
    most_pieces = max(most_targets - num_hidden - num_spans, 1)  # each has an end of its own
    small = np.argsort(-sizes, kind="stable")[most_pieces:]
    most = sizes // 2
    most[small] = 0
    none = np.zeros_like(sizes)
    spans = _shares(num_spans, sizes, none, most, draw)
    sizes[spans == 0] = 0
    hidden = _shares(num_hidden, sizes, spans, sizes - spans, draw)
    for piece, num, size in zip(pieces, spans.tolist(), hidden.tolist(), strict=True):
        if num == 0:
            continue
        given, found = _hide(piece, num, size, separator, sentinels, draw)
        if target_len is None:
            yield behind(given, np.concatenate((found, [separator])))
        else:
            yield beside(given, found, separator)


def _hide(
    piece: DocumentSpan,
    num_spans: int,
    num_hidden: int,
    separator: int,
    sentinels: np.ndarray,
    draw: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a piece with sentinels in place of spans, and each span behind its sentinel."""
    begin = np.array([separator] * piece.begins, np.int32)
    seen = _parts(len(piece.content) - num_hidden, num_spans, draw)
    hidden = _parts(num_hidden, num_spans, draw)
    edges = np.cumsum(np.stack((seen, hidden), axis=1).reshape(-1))[:-1]
    texts = np.split(piece.content, edges)
    given, found = [begin], []
    for sentinel, shown, span in zip(sentinels, texts[::2], texts[1::2], strict=False):
        given += [shown, [sentinel]]
        found += [[sentinel], span]
    return np.concatenate(given), np.concatenate(found)


def _parts(total: int, num: int, draw: np.random.Generator) -> np.ndarray:
    """Returns num numbers above zero with a sum, every such list as likely as any other."""
    cuts = np.sort(draw.choice(total - 1, num - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)


def _shares(
    total: int, sizes: np.ndarray, least: np.ndarray, most: np.ndarray, draw: np.random.Generator
) -> np.ndarray:
    """Returns whole numbers near sizes * total / sum(sizes) with that sum, within bounds.

    Where the bounds do not allow the sum they decide.
    """
    exact = total * sizes / max(sizes.sum(), 1)
    shares = np.clip(np.floor(exact).astype(np.int64), least, most)
    order = draw.permutation(len(sizes))
    order = order[np.argsort(-(exact - shares)[order], kind="stable")]
    while (left := total - int(shares.sum())) != 0:
        room = (most - shares) if left > 0 else (shares - least)
        able = order[room[order] > 0][: abs(left)]
        if not len(able):
            break
        shares[able] += 1 if left > 0 else -1
    return shares
