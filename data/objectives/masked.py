"""Hidden tokens that are to be found in their place, with or without pairs of texts."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data.objectives.segments import DocumentSpan, Segment


class Masking(NamedTuple):
    """How tokens are hidden. Source: Devlin et al. 2018, BERT, arXiv:1810.04805, section 3.1."""

    rate: float
    mask: int
    """Id of [MASK]."""
    ordinary: np.ndarray
    """Ids that a wrong token may have: all but special ones."""
    starts_word: np.ndarray | None
    """For each id whether a word begins with it, to hide whole words; None hides tokens."""

    def hide(
        self, tokens: np.ndarray, is_text: np.ndarray, draw: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the tokens with some hidden, and weights of 1 where one is to be found.

        Exactly the rate of the text is chosen, rounded, and one token at least. Of the chosen 80 %
        become [MASK], 10 % another token and 10 % stay.
        """
        weights = np.zeros(len(tokens), np.float32)
        places = np.flatnonzero(is_text)
        if not len(places):
            return tokens, weights
        chosen = self._choose(tokens, places, draw)
        weights[chosen] = 1
        fate = draw.random(len(chosen))
        wrong = self.ordinary[draw.integers(0, len(self.ordinary), len(chosen))]
        hidden = tokens.copy()
        hidden[chosen] = np.where(
            fate < 0.8, self.mask, np.where(fate < 0.9, wrong, tokens[chosen])
        )
        return hidden, weights

    def _choose(
        self, tokens: np.ndarray, places: np.ndarray, draw: np.random.Generator
    ) -> np.ndarray:
        num = max(round(self.rate * len(places)), 1)
        if self.starts_word is None:
            return draw.permutation(places)[:num]
        begins = self.starts_word[tokens[places]]
        begins |= np.diff(places, prepend=-2) > 1  # what stands between texts ends a word
        words = np.split(
            places, np.flatnonzero(begins)[1:] if begins[0] else np.flatnonzero(begins)
        )
        chosen: list[int] = []
        for i in draw.permutation(len(words)):
            if len(chosen) + len(words[i]) <= num:
                chosen += words[i].tolist()
        return np.array(chosen or places[:1], np.int64)


def masked(
    pieces: Iterable[DocumentSpan],
    special: dict[str, int],
    masking: Masking,
    draw: np.random.Generator,
) -> Iterator[Segment]:
    """Yields each piece with some tokens hidden, [CLS] in place of the separator it begins with."""
    for piece in pieces:
        tokens = np.concatenate(([special["[CLS]"]] * piece.begins, piece.content))
        tokens = tokens.astype(np.int32)
        if len(tokens):
            is_text = np.arange(len(tokens)) >= piece.begins
            hidden, weights = masking.hide(tokens, is_text, draw)
            yield Segment(hidden, tokens, weights)


def masked_pairs(
    pieces: Iterable[DocumentSpan],
    others: Sequence[DocumentSpan],
    special: dict[str, int],
    masking: Masking,
    draw: np.random.Generator,
    *,
    most: int,
) -> Iterator[Segment]:
    """Yields pieces in two texts, [CLS] first [SEP] second [SEP], with some tokens hidden.

    The second text is what follows the first, or in half of the pairs part of another row, in whose
    place it is not seen in this step. Source: as Masking.

    Args:
        others: pieces of another row.
        most: pieces of a row that become pairs, each by three tokens more; others are as in masked.
    """
    cls, sep = special["[CLS]"], special["[SEP]"]
    strangers = [piece.content for piece in others if len(piece.content)]
    for number, piece in enumerate(pieces):
        content = piece.content
        if number >= most or len(content) < 2:
            yield from masked([piece], special, masking, draw)
            continue
        cut = int(draw.integers(1, len(content)))
        first, second = content[:cut], content[cut:]
        follows = draw.random() < 0.5 or not strangers
        if not follows:
            stranger = strangers[draw.integers(len(strangers))]
            start = draw.integers(max(len(stranger) - len(second), 0) + 1)
            second = stranger[start : start + len(second)]
        tokens = np.concatenate(([cls], first, [sep], second, [sep])).astype(np.int32)
        is_text = np.ones(len(tokens), bool)
        is_text[[0, len(first) + 1, -1]] = False
        hidden, weights = masking.hide(tokens, is_text, draw)
        types = (np.arange(len(tokens)) > len(first) + 1).astype(np.int32)
        yield Segment(hidden, tokens, weights, types=types, next=1 if follows else 2)
