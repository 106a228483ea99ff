"""Untrusted text made harmless for a terminal or a page: no character acts or is invisible."""

import unicodedata

from rich.cells import chop_cells

_SIGNS = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
_JOINERS = "\u200c\u200d"  # words and emoji need them; they have no other effect
_ESCAPED = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def visible(text: str) -> str:
    """Returns a text on one line, with a sign or an escape for each nonprintable character."""
    if text.isprintable():
        return text
    return "".join(_SIGNS.get(character) or _escaped(character) for character in text)


def visible_lines(text: str) -> str:
    """Returns what `visible` does, but keeps line breaks and tabs."""
    return "".join(
        character if character in "\n\t" else _SIGNS.get(character) or _escaped(character)
        for character in text
    )


def shortened(text: str, num_characters: int) -> str:
    """Returns the beginning of a text on one line, with … if it is cut."""
    if len(text) <= num_characters:
        return visible(text)
    return f"{visible(text[: max(num_characters - 1, 0)])}…"


def first_lines(text: str, width: int, num_lines: int = 2) -> str:
    """Returns the beginning of a text as a few full lines of a terminal, with … if it is cut."""
    width = max(width, 8)
    lines = chop_cells(visible(text[: width * num_lines + 1]), width)
    if len(lines) > num_lines or len(text) > width * num_lines:
        lines = lines[:num_lines]
        lines[-1] = f"{chop_cells(lines[-1], width - 1)[0]}…"
    return "\n".join(lines)


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in _ESCAPED or character in _JOINERS:
        return character
    point = ord(character)
    if point < 0x100:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"
