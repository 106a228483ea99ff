"""Files as decompressed bytes, their encodings and kinds of JSON, and text as UTF-8."""

import codecs
import gzip
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import SettingsError

COMPRESSIONS = (".gz", ".zst")
BYTE_ORDER_MARK = "\ufeff"
"""Some programs write it before UTF-8; it is no part of the text."""

_BYTE_ORDER_MARKS = {  # UTF-32 first: its mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_HEAD_BYTES = 2**16
_LINE_BYTES = 2**20
_FEW_BYTES = 16


def open_stream(path: Path) -> Any:
    """Opens the bytes of a file, decompressed if its suffix is one of COMPRESSIONS."""
    match path.suffix.lower():
        case ".gz":
            return gzip.open(path)
        case ".zst":
            import pyarrow

            # Reads all frames of a file, and fails if the last is truncated; zstandard does not.
            return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def other_encoding(path: Path) -> str | None:
    """Returns the encoding of a text as a predicate ("is UTF-16, ..."); None if it may be UTF-8.

    Without a byte-order mark UTF-16 and UTF-32 show in their high bytes: at one or three of four
    byte positions nearly every byte is below 9, and at another nearly none.
    """
    with open_stream(path) as stream:
        head = stream.read1(_HEAD_BYTES)  # the reader reports damage further on
    for mark, name in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return f"is {name}, by its byte-order mark"
    if len(head) < _FEW_BYTES:
        return None
    content = np.frombuffer(head[: len(head) // 4 * 4], np.uint8).reshape(-1, 4)
    low = (content < 9).mean(0)
    is_wide = low.max() > 0.8 and low.min() < 0.2
    return "looks like UTF-16 or UTF-32 without a byte-order mark" if is_wide else None


def json_layout(path: Path) -> str | None:
    """Returns what the beginning of a .json shows: an "array", "lines" of records or an "object".

    An object is one on a single line; None is anything else, such as an object over many lines.
    """
    try:
        with open_stream(path) as stream:
            head = stream.read(_LINE_BYTES).decode("utf-8-sig", errors="ignore").lstrip()
    except (OSError, EOFError, zlib.error):
        return "lines"  # reading reports the error
    if not head.startswith("{"):
        return "array" if head.startswith("[") else None
    line, newline, more = head.partition("\n")
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return None if newline else "lines"
    return "lines" if more.strip() else "object"


def utf8(text: str) -> bytes:
    """Returns the bytes of a text; raises SettingsError for a lone surrogate."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SettingsError(
            f"the text has {text[error.start]!r} at character {error.start}, which UTF-8 cannot "
            "encode; remove it"
        ) from None


def utf8_len(text: str) -> int:
    return len(text) if text.isascii() else len(utf8(text))
