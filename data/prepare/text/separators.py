"""Separators between the documents of a .txt file."""

from typing import IO

from configs.data import PrepareConfig
from data.prepare.text.text_records import ReadReport

_USUAL = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
_LOOK_BACK_BYTES = 2**16  # more than the blank lines between documents


def count_separators(text: str, config: PrepareConfig, reading: ReadReport) -> None:
    """Counts data.document_separator in a text; if it is None, the usual separators."""
    separator = config.document_separator
    for candidate in _USUAL if separator is None else (separator,):
        if found := text.count(candidate):
            reading.separators[candidate] = reading.separators.get(candidate, 0) + found


def split_documents(text: str, separator: str | None) -> list[str]:
    """Returns the rest of a document, and the documents that begin in this chunk of a text.

    A line end right after a separator is removed with it.
    """
    if separator is None:
        return [text]
    first, *others = text.split(separator)
    return [first, *(other.removeprefix("\r").removeprefix("\n") for other in others)]


def after_separator(stream: IO[bytes], offset: int, separator: str | None) -> int:
    """Returns the offset, or the end of a separator that begins before it and ends after it."""
    if separator is None:
        return offset
    size = len(encoded := separator.encode())
    first = stream.seek(max(0, offset - size + 1))
    index = stream.read(offset - first + size - 1).find(encoded)
    return offset if index < 0 else first + index + size


def before_separator(content: bytes, stop: int, separator: str | None) -> int:
    """Returns the start of a separator that ends at or after the stop; else the stop."""
    encoded = (separator or "").encode()
    tail = content[max(0, stop - len(encoded)) : stop]
    return stop - next((len(tail) - i for i in range(len(tail)) if encoded.startswith(tail[i:])), 0)


def begins_document(stream: IO[bytes], offset: int, separator: str | None) -> bool:
    """Returns whether a document begins at an offset; leaves the stream there."""
    if offset == 0 or separator is None:
        return offset == 0
    first = stream.seek(max(0, offset - _LOOK_BACK_BYTES))
    _, found, after = stream.read(offset - first).decode(errors="ignore").rpartition(separator)
    return (bool(found) or first == 0) and not after.strip()
