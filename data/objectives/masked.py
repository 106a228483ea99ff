"""Masked language modelling, with or without next-sentence prediction."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data.objectives.pack_segments import DocumentSpan, Segment


class Masking(NamedTuple):
    """How tokens are masked. Source: Devlin et al. 2018, BERT, arXiv:1810.04805, section 3.1."""

    rate: float
    mask: int
    """Id of [MASK]."""
    ordinary: np.ndarray
    """Ids to sample random tokens from: all but special ones."""
    starts_word: np.ndarray | None
    """For each id whether it begins a word, to mask whole words; None masks single tokens."""

    def apply(
        self, tokens: np.ndarray, is_text: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the tokens with some masked, and weights of 1 at the chosen ones.

        The number of chosen tokens is rate times the length, rounded, at least one. Of them 80 %
        become [MASK], 10 % a random token, and 10 % stay.
        """
        weights = np.zeros(len(tokens), np.float32)
        positions = np.flatnonzero(is_text)
        if not len(positions):
            return tokens, weights
        chosen = self._choose(tokens, positions, rng)
        weights[chosen] = 1
        kind = rng.random(len(chosen))
        random = self.ordinary[rng.integers(0, len(self.ordinary), len(chosen))]
        masked = tokens.copy()
        masked[chosen] = np.where(
            kind < 0.8, self.mask, np.where(kind < 0.9, random, tokens[chosen])
        )
        return masked, weights

    def _choose(
        self, tokens: np.ndarray, positions: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        num = max(round(self.rate * len(positions)), 1)
        if self.starts_word is None:
            return rng.permutation(positions)[:num]
        begins = self.starts_word[tokens[positions]]
        begins |= np.diff(positions, prepend=-2) > 1  # tokens between texts end a word
        words = np.split(
            positions, np.flatnonzero(begins)[1:] if begins[0] else np.flatnonzero(begins)
        )
        chosen: list[int] = []
        for i in rng.permutation(len(words)):
            if len(chosen) + len(words[i]) <= num:
                chosen += words[i].tolist()
        return np.array(chosen or positions[:1], np.int64)


def masked(
    spans: Iterable[DocumentSpan],
    special: dict[str, int],
    masking: Masking,
    rng: np.random.Generator,
) -> Iterator[Segment]:
    for span in spans:
        tokens = np.concatenate(([special["[CLS]"]] * span.begins, span.content))
        tokens = tokens.astype(np.int32)
        if len(tokens):
            is_text = np.arange(len(tokens)) >= span.begins
            inputs, weights = masking.apply(tokens, is_text, rng)
            yield Segment(inputs, tokens, weights)


def masked_pairs(
    spans: Iterable[DocumentSpan],
    other_spans: Sequence[DocumentSpan],
    special: dict[str, int],
    masking: Masking,
    rng: np.random.Generator,
    *,
    most: int,
) -> Iterator[Segment]:
    """Yields spans as pairs of texts, [CLS] first [SEP] second [SEP], with some tokens masked.

    In half of the pairs the second text follows the first; in the others it comes from another row,
    and the text that follows is not used in this step. Source: as Masking.

    Args:
        other_spans: spans of another row.
        most: most spans of a row that become pairs, each three tokens longer; the rest as `masked`.
    """
    cls, sep = special["[CLS]"], special["[SEP]"]
    candidates = [span.content for span in other_spans if len(span.content)]
    for number, span in enumerate(spans):
        content = span.content
        if number >= most or len(content) < 2:
            yield from masked([span], special, masking, rng)
            continue
        cut = int(rng.integers(1, len(content)))
        first, second = content[:cut], content[cut:]
        is_next = rng.random() < 0.5 or not candidates
        if not is_next:
            other = candidates[rng.integers(len(candidates))]
            start = rng.integers(max(len(other) - len(second), 0) + 1)
            second = other[start : start + len(second)]
        tokens = np.concatenate(([cls], first, [sep], second, [sep])).astype(np.int32)
        is_text = np.ones(len(tokens), bool)
        is_text[[0, len(first) + 1, -1]] = False
        inputs, weights = masking.apply(tokens, is_text, rng)
        types = (np.arange(len(tokens)) > len(first) + 1).astype(np.int32)
        yield Segment(inputs, tokens, weights, types=types, next=1 if is_next else 2)
