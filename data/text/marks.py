"""Marks that stand between the documents of a text."""

from typing import IO

from configs.data import PrepareConfig
from data.text.reading import Reading

_USUAL = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")


def count_marks(text: str, config: PrepareConfig, reading: Reading) -> None:
    """Counts data.document_separator in a text, or without one what usually is that."""
    separator = config.document_separator
    for mark in _USUAL if separator is None else (separator,):
        if found := text.count(mark):
            reading.marks[mark] = reading.marks.get(mark, 0) + found


def split_documents(text: str, separator: str | None) -> list[str]:
    """Returns the rest of a document, and those that begin in this piece of a text.

    The end of a line right after a separator goes with it.
    """
    if separator is None:
        return [text]
    first, *others = text.split(separator)
    return [first, *(other.removeprefix("\r").removeprefix("\n") for other in others)]


def begins_document(stream: IO[bytes], offset: int, separator: str | None) -> bool:
    """Says whether a document begins at an offset, where the stream then is."""
    if offset == 0 or separator is None:
        return offset == 0
    size = min(offset, len(separator.encode()) + 2)
    stream.seek(offset - size)
    return stream.read(size).rstrip(b"\r\n").endswith(separator.encode())
