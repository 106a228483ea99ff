"""Marks that stand between the documents of a text."""

from typing import IO

from configs.data import PrepareConfig
from data.prepare.text.read_report import ReadReport

_USUAL = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
_LOOK_BACK_BYTES = 2**16  # more blank lines than stand between documents


def count_marks(text: str, config: PrepareConfig, reading: ReadReport) -> None:
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


def behind_mark(stream: IO[bytes], offset: int, separator: str | None) -> int:
    """Returns an offset, or the end of a mark that begins before it and ends after it."""
    if separator is None:
        return offset
    size = len(mark := separator.encode())
    first = stream.seek(max(0, offset - size + 1))
    place = stream.read(offset - first + size - 1).find(mark)
    return offset if place < 0 else first + place + size


def before_mark(content: bytes, stop: int, separator: str | None) -> int:
    """Returns where a mark begins that is not, or only just, whole at a stop; else the stop."""
    mark = (separator or "").encode()
    tail = content[max(0, stop - len(mark)) : stop]
    return stop - next((len(tail) - i for i in range(len(tail)) if mark.startswith(tail[i:])), 0)


def begins_document(stream: IO[bytes], offset: int, separator: str | None) -> bool:
    """Says whether a document begins at an offset, where the stream then is."""
    if offset == 0 or separator is None:
        return offset == 0
    first = stream.seek(max(0, offset - _LOOK_BACK_BYTES))
    _, mark, after = stream.read(offset - first).decode(errors="ignore").rpartition(separator)
    return (bool(mark) or first == 0) and not after.strip()
