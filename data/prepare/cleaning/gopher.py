"""Steps "gopher_quality" and "gopher_stop_words": Gopher's rules on the quality of a document.

Source: Rae et al. 2021, Scaling Language Models (Gopher), arXiv:2112.11446, appendix A1.1, "Quality
filtering". The numbers are those of the paper.
"""

import re

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
