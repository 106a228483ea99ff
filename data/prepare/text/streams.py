"""Files as bytes, decompressed, and whether those bytes are text in UTF-8."""

import codecs
import gzip
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

COMPRESSIONS = (".gz", ".zst")
MARK = "\ufeff"
"""The byte-order mark, which says of UTF-8 only that it is UTF-8, and belongs to no text."""

_MARKS = {  # UTF-32 first: its mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_HEAD_BYTES = 2**16
_LINE_BYTES = 2**20
_FEW_BYTES = 16


def open_stream(path: Path) -> Any:
    """Opens the bytes of a file, those within where its name says that it is compressed."""
    match path.suffix.lower():
        case ".gz":
            return gzip.open(path)
        case ".zst":
            import pyarrow

            # Reads all frames of a file, and says when the last is not whole; zstandard does not.
            return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def other_encoding(path: Path) -> str | None:
    """Returns how a text is written that is not UTF-8, as a predicate; None if it may be UTF-8.

    Without a mark UTF-16 and UTF-32 are seen by their high bytes: in one or three of four places
    nearly every byte is below 9, and in another nearly none.
    """
    with open_stream(path) as stream:
        head = stream.read1(_HEAD_BYTES)  # what is damaged later is for the reader to tell
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return f"is {name}, by its byte-order mark"
    if len(head) < _FEW_BYTES:
        return None
    content = np.frombuffer(head[: len(head) // 4 * 4], np.uint8).reshape(-1, 4)
    low = (content < 9).mean(0)
    is_wide = low.max() > 0.8 and low.min() < 0.2
    return "looks like UTF-16 or UTF-32 without a byte-order mark" if is_wide else None


def json_layout(path: Path) -> str | None:
    """Returns what a .json holds: an "array", "lines" of records, or one "object" on one line.

    None is anything else, such as an object over many lines. Its beginning is looked at.
    """
    try:
        with open_stream(path) as stream:
            head = stream.read(_LINE_BYTES).decode("utf-8-sig", errors="ignore").lstrip()
    except (OSError, EOFError, zlib.error):
        return "lines"  # reading says what is wrong
    if not head.startswith("{"):
        return "array" if head.startswith("[") else None
    line, newline, more = head.partition("\n")
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return None if newline else "lines"
    return "lines" if more.strip() else "object"
