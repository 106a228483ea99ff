"""Steps "unicode", "control_characters" and "length": normalisation, removal and counting."""

import re
import unicodedata

from configs.data import PrepareConfig
from data.prepare.cleaning.cleaning_step import CleaningStep, Dropped
from data.prepare.cleaning.word_split import character_class

_LINE_ENDS = re.compile("\r\n|[\r\x85\u2028\u2029]")
_PAGE_ENDS = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
_TERMINAL_CODE = r"\x1b\[[0-?]*[ -/]*[@-~]"
_FLAG = "\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f"

_KEPT = {
    *map(ord, "\t\n"),
    *(0x200C, 0x200D),  # zero-width (non-)joiner: Persian, Indic scripts, emoji
    0x180E,  # Mongolian vowel separator
    *(*range(0x0600, 0x0606), 0x06DD, 0x070F, 0x0890, 0x0891, 0x08E2, 0x110BD, 0x110CD),  # visible
    *range(0x13430, 0x13440),  # how Egyptian hieroglyphs stand to one another
}
_NONCHARACTERS = {
    *range(0xFDD0, 0xFDF0),
    *(plane << 16 | last for plane in range(17) for last in (0xFFFE, 0xFFFF)),
}


def normalise(text: str) -> str:
    r"""Returns the text in Unicode normalisation form C, with \n as the only line end.

    CR LF, CR, NEL, LS and PS become \n, as all later steps read lines. NFC joins letters with their
    accents and replaces no letter by a similar one, as NFKC does (x², ㎏, ﬁ).

    Source: Unicode Standard Annex 15, and Unicode Standard 5.8, Newline Guidelines.
    """
    return unicodedata.normalize("NFC", _LINE_ENDS.sub("\n", text))


def make_control_characters() -> CleaningStep:
    r"""Returns a step that removes characters that carry no text.

    Removed are the categories Cc and Cf (control and format characters: the byte order mark, soft
    hyphens, zero-width spaces, direction marks), noncharacters, and the colour codes of terminals
    (ECMA-48 control sequences) as a whole. Kept are \t and \n, the zero-width joiner and
    non-joiner, number signs and separators that scripts need, and the tags within an emoji of a
    flag; variation selectors are of category Mn, and stay. Other line and page ends become \n.
    """
    # Of planes 3 to 13 no character is assigned, and plane 15 on is for private use.
    planes = (*range(0x20000), *range(0xE0000, 0xE1000))
    removed = {c for c in planes if unicodedata.category(chr(c)) in ("Cc", "Cf")}
    removed = (removed | _NONCHARACTERS) - _KEPT
    # "re" finds a character of plane 0 by one look-up, one beyond by a scan of ranges: so the
    # pattern first tests whether the character is beyond.
    plane_0, beyond = (
        character_class(c for c in removed if (c < 0x10000) == low) for low in (True, False)
    )
    pattern = re.compile(
        f"{_TERMINAL_CODE}|[{plane_0}]|(?=[\U00010000-\U0010ffff])(?:({_FLAG})|[{beyond}])"
    )

    def remove_control_characters(text: str) -> str:
        if all(map(str.isprintable, text.split("\n"))):
            return text  # several times as fast as the search, and true of most texts
        return pattern.sub(r"\1", _PAGE_ENDS.sub("\n", text))

    return remove_control_characters


def make_length(config: PrepareConfig) -> CleaningStep:
    most = config.max_characters

    def check_length(text: str) -> str | Dropped:
        if len(text) < config.min_characters:
            return Dropped("too short")
        if most is not None and len(text) > most:
            return Dropped("too long")
        return text

    return check_length
