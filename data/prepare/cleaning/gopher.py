"""Steps "gopher_quality", "gopher_stop_words" and "gopher_repetition": Gopher's rules.

Source: Rae et al. 2021, Scaling Language Models (Gopher), arXiv:2112.11446, appendix A1.1, "Quality
filtering", "Repetition removal" and table A1. The numbers are those of the paper.
"""

import re
from collections.abc import Iterator

import numpy as np

from data.prepare.cleaning.cleaning_step import Dropped
from data.prepare.cleaning.word_split import has_letter, is_unspaced, num_unspaced, split_words

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
MIN_STOP_WORDS = 2

MIN_WORDS = 50
MAX_WORDS = 100_000
MIN_WORD_LENGTH = 3
MAX_WORD_LENGTH = 10
"""Of the mean."""
MAX_SYMBOLS_PER_WORD = 0.1
MAX_BULLET_LINES = 0.9
MAX_ELLIPSIS_LINES = 0.3
MIN_ALPHABETIC_WORDS = 0.8

LETTERS_PER_WORD = 4
"""Letters of a script without spaces in its longer words (Thai; Chinese words have two)."""

_BULLETS = ("•", "‣", "●", "○", "◦", "▪", "■", "·", "*", "-", "\u2013")
_ELLIPSIS = re.compile(r"\u2026+|\.{3,}")  # "\u2026\u2026", as Chinese writes it, is one
_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]")
_LONE_SYMBOLS = re.compile(r"(?<=\S )[^\w\s]+(?!\S)")  # no bullet before an item of a list

MAX_DUPLICATE_LINES = 0.30
MAX_DUPLICATE_LINE_CHARACTERS = 0.20
MAX_TOP_NGRAM = {2: 0.20, 3: 0.18, 4: 0.16}
MAX_DUPLICATE_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}

LETTERS_PER_NGRAM_WORD = 2
"""Letters of a script without spaces that count as one word of an n-gram."""

_PARAGRAPH_END = re.compile(r"\n\s*\n")


def check_quality(text: str) -> str | Dropped:
    """Returns the text, unless one of Gopher's quality rules drops it.

    Dropped is what has fewer than 50 or more than 100,000 words, a mean word length below 3 or
    above 10 characters, more than one "#" or ellipsis per 10 words, more than 90 % of lines that
    begin with a bullet or 30 % that end with an ellipsis, or less than 80 % of words with a letter.
    Blank lines do not count.

    Scripts without spaces: a letter is a word (see `split_words`), but for the upper bound four
    letters are one word, so that no text is dropped which might be short enough. The mean word
    length is that of words with spaces between them, and counts only where most words are such; it
    excludes Hangul, whose syllables stand for two or three letters each.
    """
    found = split_words(text)
    unspaced = num_unspaced(text)
    if len(found) < MIN_WORDS:
        return Dropped("too few words")
    if len(found) - unspaced + unspaced / LETTERS_PER_WORD > MAX_WORDS:
        return Dropped("too many words")
    measured = found
    if unspaced or _HANGUL.search(text):
        measured = [word for word in found if not (is_unspaced(word) or _HANGUL.match(word))]
    mean = sum(map(len, measured)) / max(len(measured), 1)
    if 2 * len(measured) > len(found) and not MIN_WORD_LENGTH <= mean <= MAX_WORD_LENGTH:
        return Dropped("mean word length")
    if text.count("#") > MAX_SYMBOLS_PER_WORD * len(found):
        return Dropped("hash signs per word")
    if len(_ELLIPSIS.findall(text)) > MAX_SYMBOLS_PER_WORD * len(found):
        return Dropped("ellipses per word")
    lines = [line.strip() for line in text.split("\n") if not line.isspace() and line]
    if sum(line.startswith(_BULLETS) for line in lines) > MAX_BULLET_LINES * len(lines):
        return Dropped("lines that begin with a bullet")
    if sum(line.endswith(("\u2026", "...")) for line in lines) > MAX_ELLIPSIS_LINES * len(lines):
        return Dropped("lines that end with an ellipsis")
    # A symbol between spaces ("|", "->") is a word in the paper, but not to `split_words`.
    num_words = len(found) + len(_LONE_SYMBOLS.findall(text))
    least = MIN_ALPHABETIC_WORDS * num_words
    # Counting words of letters only is fast, and usually enough.
    if sum(map(str.isalpha, found)) < least and sum(map(has_letter, found)) < least:
        return Dropped("words with a letter")
    return text


def check_stop_words(text: str) -> str | Dropped:
    """Returns the text if it has at least two different words of Gopher's English list.

    Case does not count. For English only: text in another language has none of them.
    """
    if len(STOP_WORDS.intersection(split_words(text.lower()))) < MIN_STOP_WORDS:
        return Dropped("English stop words")
    return text


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
    scale = LETTERS_PER_NGRAM_WORD if unspaced else 1
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
