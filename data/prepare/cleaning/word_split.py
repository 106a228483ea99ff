"""Splits text into words, in scripts with and without spaces."""

import re
import unicodedata
from collections.abc import Iterable

_UNSPACED_BLOCKS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x1B00, 0x1B7F),  # Balinese
    (0x3005, 0x3007),  # ideographic iteration mark, closing mark, zero
    (0x3040, 0x312F),  # Hiragana, Katakana, Bopomofo
    (0x31A0, 0x31BF),  # Bopomofo extended
    (0x31F0, 0x31FF),  # Katakana extended
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0xA4CF),  # Han, Yi
    (0xA980, 0xA9FF),  # Javanese, Myanmar extended
    (0xAA60, 0xAADF),  # Myanmar extended, Tai Viet
    (0xF900, 0xFAFF),  # Han, compatibility forms
    (0xFF66, 0xFF9F),  # half-width Katakana
    (0x16FE0, 0x18DFF),  # Han iteration marks, Tangut, Khitan
    (0x1AFF0, 0x1B2FF),  # Kana extended, Nushu
    (0x20000, 0x323AF),  # Han, planes 2 and 3
)
_PLANES_WITH_WORDS = 0x20000  # higher planes have only Han, and variation selectors


def split_words(text: str) -> list[str]:
    """Returns the words of a text, in order, without spaces, punctuation and symbols.

    In a script with spaces between words, a word is a run of letters, digits and their marks
    ("don't" is two). In a script without spaces (Han, Kana, Thai, Lao, Tibetan, Myanmar, Khmer and
    others: the classes ID and SA of Unicode Standard Annex 14), each letter with its marks is a
    word, so that a text without spaces is not one word. Hangul has spaces.
    """
    return _WORD.findall(text)


def is_unspaced(word: str) -> bool:
    return _LETTER.match(word) is not None


def num_unspaced(text: str) -> int:
    return len(_LETTER.findall(text))


def has_letter(word: str) -> bool:
    return word.isalpha() or any(map(str.isalpha, word))


def character_class(characters: Iterable[int]) -> str:
    """Returns the inside of a regular expression's [...] that matches exactly these code points."""
    ranges: list[list[int]] = []
    for character in sorted(characters):
        if ranges and ranges[-1][1] == character - 1:
            ranges[-1][1] = character
        else:
            ranges.append([character, character])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges)


def _patterns() -> tuple[str, str]:
    """Returns expressions for a letter of a script without spaces, and for a word of any script.

    They are built from the Unicode tables of this Python: "re" knows no scripts, and ends words at
    the vowel signs of Hindi and Thai. Planes 1 to 3 are separate: "re" finds a character of plane 0
    in a class by one look-up, one of another plane by a scan of its ranges.
    """
    blocks = [range(first, last + 1) for first, last in _UNSPACED_BLOCKS]
    unspaced = {letter for block in blocks for letter in block if chr(letter).isalpha()}
    marks, spaced = set(), set()
    for character in range(_PLANES_WITH_WORDS):
        if unicodedata.category(chr(character)).startswith("M"):
            marks.add(character)
        elif chr(character).isalnum() and character not in unspaced:
            spaced.add(character)

    letters, words = [], []
    for plane_0 in (True, False):
        letter, mark, other = (
            character_class(c for c in members if (c < 0x10000) == plane_0)
            for members in (unspaced, marks, spaced)
        )
        here = "" if plane_0 else "(?=[\U00010000-\U0003ffff])"
        letters.append(f"{here}[{letter}]")
        words.append(f"{here}(?:[{letter}][{mark}]*|[{other}][{other}{mark}]*)")
    return "|".join(letters), "|".join(words)


_LETTER, _WORD = map(re.compile, _patterns())
