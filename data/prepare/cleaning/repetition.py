"""Step "gopher_repetition": drops texts that repeat lines, paragraphs or n-grams.

Source: Rae et al. 2021, Scaling Language Models (Gopher), arXiv:2112.11446, appendix A1.1,
"Repetition removal", and table A1.
"""

import re
from collections.abc import Iterator

import numpy as np

from data.prepare.cleaning.cleaning_step import Dropped
from data.prepare.cleaning.word_split import num_unspaced, split_words

MAX_DUPLICATE_LINES = 0.30
MAX_DUPLICATE_LINE_CHARACTERS = 0.20
MAX_TOP_NGRAM = {2: 0.20, 3: 0.18, 4: 0.16}
MAX_DUPLICATE_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}

LETTERS_PER_WORD = 2
"""Letters of a script without spaces that count as one word of an n-gram."""

_PARAGRAPH_END = re.compile(r"\n\s*\n")


def check_repetition(text: str) -> str | Dropped:
    """Returns the text, unless it repeats its lines, paragraphs or n-grams of words too much.

    Of lines, and of paragraphs (separated by blank lines): at most 30 % are copies of an earlier
    one, and at most 20 % of characters are in such copies. Of n-grams: the most frequent one that
    occurs twice or more has at most 20, 18, 16 % of all characters (n = 2, 3, 4); those that occur
    twice or more have together at most 15, 14, ..., 10 % (n = 5, 6, ..., 10), where each character
    counts once, the first occurrence too. Characters of n-grams are those of words, so neither
    spaces nor punctuation. Case counts.

    Where most words are letters of a script without spaces, n-grams are twice as many letters long:
    a Chinese word has about two, and a name of five is no repetition of a phrase.
    """
    lines = [line.strip() for line in text.split("\n")]
    for blocks, what in ((lines, "lines"), (_PARAGRAPH_END.split(text), "paragraphs")):
        copies, characters = _copies([block for block in blocks if block and not block.isspace()])
        if copies > MAX_DUPLICATE_LINES:
            return Dropped(f"duplicate {what}")
        if characters > MAX_DUPLICATE_LINE_CHARACTERS:
            return Dropped(f"characters in duplicate {what}")

    found = split_words(text)
    unspaced = 2 * num_unspaced(text) > len(found)
    scale = LETTERS_PER_WORD if unspaced else 1
    length = np.fromiter(map(len, found), np.int64, len(found))
    allowed = MAX_TOP_NGRAM | MAX_DUPLICATE_NGRAMS
    for n, start, ngram in _repeated_ngrams(found, max(allowed) * scale):
        size, rest = divmod(n, scale)
        if rest or size not in allowed:
            continue
        if size in MAX_TOP_NGRAM:
            start = start[_is_most_frequent(ngram)]
        if _num_characters(start, n, length) > allowed[size] * length.sum():
            kind = "most frequent" if size in MAX_TOP_NGRAM else "duplicate"
            return Dropped(f"{kind} {size}-gram")
    return text


def _copies(blocks: list[str]) -> tuple[float, float]:
    """Returns the shares of blocks, and of their characters, that are copies of earlier blocks."""
    if not blocks:
        return 0.0, 0.0
    originals = set(blocks)
    total = sum(map(len, blocks))
    characters = (total - sum(map(len, originals))) / total
    return (len(blocks) - len(originals)) / len(blocks), characters


def _repeated_ngrams(found: list[str], most: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields n, the starts of all n-grams that occur twice or more, and the id of each n-gram.

    n counts from 1 to most. Starts are in order; equal ids are equal n-grams. Exact and fast: an
    n-gram repeats only if its first n - 1 words do, so only these are counted.
    """
    number: dict[str, int] = {}
    word = np.fromiter((number.setdefault(w, len(number)) for w in found), np.int64, len(found))
    start, ngram = np.arange(len(found)), np.zeros_like(word)
    for n in range(1, most + 1):
        fits = start + n <= len(found)
        start, ngram = start[fits], ngram[fits]
        pair = ngram * len(number) + word[start + n - 1]
        _, ngram, count = np.unique(pair, return_inverse=True, return_counts=True)
        repeats = count[ngram] > 1
        start, ngram = start[repeats], ngram[repeats]
        yield n, start, ngram


def _is_most_frequent(ngram: np.ndarray) -> np.ndarray:
    """Returns the occurrences of the most frequent n-gram (the first one of several), as a mask."""
    if not len(ngram):
        return np.zeros(0, bool)
    return ngram == ngram[np.argmax(np.bincount(ngram)[ngram])]


def _num_characters(start: np.ndarray, n: int, length: np.ndarray) -> int:
    """Returns the characters of the words that n-grams at these starts cover, each counted once."""
    change = np.zeros(len(length) + 1, np.int64)
    change[start] += 1
    change[start + n] -= 1
    return int(length[np.cumsum(change[:-1]) > 0].sum())
