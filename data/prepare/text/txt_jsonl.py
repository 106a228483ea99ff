"""Reads .txt, with separators between documents or without, and .jsonl from any offset."""

import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

from configs.errors import SettingsError
from data.prepare.text.source_files import RANGE_BYTES, ByteRange, SourceFile
from data.prepare.text.streams import BYTE_ORDER_MARK, open_stream
from data.prepare.text.text_records import RangeReading, ReadReport, TextRecord

_LINE_SEARCH_BYTES = 2**20  # how far to search for a line end to cut a text at
_LOOK_BACK_BYTES = 2**16  # more than the blank lines between documents
_USUAL_SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")


def read_text(reading: RangeReading) -> Iterator[TextRecord]:
    """Yields a text in chunks of about RANGE_BYTES that never cut a character."""
    with open_stream(reading.path) as stream:
        separator = reading.config.document_separator
        start, stop = _range(stream, reading.byte_range, separator)
        begins = _begins_document(stream, start, separator)
        position, rest, number = start, b"", 0
        while stop is None or position < stop:
            size = RANGE_BYTES if stop is None else stop - position
            content = rest + (block := stream.read(size))
            at_end = len(block) < size or (stop is not None and position + len(block) == stop)
            position += len(block)
            cut = len(content) if at_end else _cut(content, separator)
            content, rest = content[:cut], content[cut:]
            offset = position - len(rest) - len(content)
            text = _text_of(content, offset, reading)
            text = text.removeprefix(BYTE_ORDER_MARK) if offset == 0 else text
            if not reading.file.is_prose:
                _count_separators(text, separator, reading.report)
            for i, document in enumerate(_split_documents(text, separator)):
                begins = begins or i > 0
                is_blank = separator and begins and not document.strip()
                if document and not is_blank:
                    yield TextRecord(number, document, begins=begins)
                    begins = False
            number += 1
            if at_end:
                break


def _range(
    stream: IO[bytes], byte_range: ByteRange, separator: str | None
) -> tuple[int, int | None]:
    """Returns a byte range with its boundaries moved to lines, and seeks to its start."""
    stop = None if byte_range.stop is None else _boundary(stream, byte_range.stop, separator)
    start = 0 if byte_range.start == 0 else _boundary(stream, byte_range.start, separator)
    if byte_range.start:
        stream.seek(start)
    elif byte_range.stop is not None:
        stream.seek(0)
    return start, stop


def _boundary(stream: IO[bytes], offset: int, separator: str | None) -> int:
    """Returns the start of the first line at or after an offset above 0.

    If no line ends near, the start of the next character that is not within a separator.
    """
    stream.seek(offset - 1)
    position = offset - 1
    while block := stream.read(_LINE_SEARCH_BYTES):
        if (end := block.find(b"\n")) >= 0:
            return position + end + 1
        position += len(block)
        if position - offset >= _LINE_SEARCH_BYTES - 1:
            stream.seek(offset)
            few = stream.read(4)
            first = next((i for i, byte in enumerate(few) if byte & 0xC0 != 0x80), 0)
            return _after_separator(stream, offset + first, separator)
    return position


def _after_separator(stream: IO[bytes], offset: int, separator: str | None) -> int:
    """Returns the offset, or the end of a separator that begins before it and ends after it."""
    if separator is None:
        return offset
    size = len(encoded := separator.encode())
    first = stream.seek(max(0, offset - size + 1))
    index = stream.read(offset - first + size - 1).find(encoded)
    return offset if index < 0 else first + index + size


def _begins_document(stream: IO[bytes], offset: int, separator: str | None) -> bool:
    """Returns whether a document begins at an offset; leaves the stream there."""
    if offset == 0 or separator is None:
        return offset == 0
    first = stream.seek(max(0, offset - _LOOK_BACK_BYTES))
    _, found, after = stream.read(offset - first).decode(errors="ignore").rpartition(separator)
    return (bool(found) or first == 0) and not after.strip()


def _cut(content: bytes, separator: str | None) -> int:
    """Returns where to cut a long text: after a line, else before a character or separator."""
    newline = content.rfind(b"\n", len(content) - _LINE_SEARCH_BYTES)
    if newline >= 0:
        return newline + 1
    end = len(content) - 1
    while end > len(content) - 4 and content[end] & 0xC0 == 0x80:
        end -= 1
    encoded = (separator or "").encode()
    tail = content[max(0, end - len(encoded)) : end]
    return end - next((len(tail) - i for i in range(len(tail)) if encoded.startswith(tail[i:])), 0)


def _count_separators(text: str, separator: str | None, report: ReadReport) -> None:
    for candidate in _USUAL_SEPARATORS if separator is None else (separator,):
        if found := text.count(candidate):
            report.separators[candidate] = report.separators.get(candidate, 0) + found


def _split_documents(text: str, separator: str | None) -> list[str]:
    """Returns the rest of a document, and the documents that begin in this chunk of a text.

    A line end right after a separator is removed with it.
    """
    if separator is None:
        return [text]
    first, *others = text.split(separator)
    return [first, *(other.removeprefix("\r").removeprefix("\n") for other in others)]


def _text_of(content: bytes, offset: int, reading: RangeReading) -> str:
    """Returns the text of a chunk; a line that is not UTF-8 is skipped and counted."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        if reading.config.invalid_utf8 == "replace":
            return content.decode("utf-8", errors="replace")
    lines = []
    number = _line_number(reading, offset)
    for line in content.splitlines(keepends=True):
        if (text := reading.decode(line, f", line {number}")) is not None:
            lines.append(text)
        number += line.endswith(b"\n")
    return "".join(lines)


def _line_number(reading: RangeReading, offset: int) -> int:
    """Returns the line number, from 1, at an offset; 0 if no message names it."""
    return _count_lines(reading.file, offset) if reading.report.needs_line_numbers else 0


@functools.lru_cache(maxsize=4)
def _count_lines(file: SourceFile, offset: int) -> int:
    """Counts to an offset of a file as it is now: its size and time are part of the key."""
    number = 1
    with open_stream(Path(file.path)) as stream:
        while offset > 0 and (block := stream.read(min(offset, 2**20))):
            number += block.count(b"\n")
            offset -= len(block)
    return number


def read_jsonl(reading: RangeReading) -> Iterator[TextRecord]:
    """Yields the text of each line of JSON.

    A line is in memory three times: its bytes, its characters, and the text in it.
    """
    byte_range = reading.byte_range
    strict = replace(reading, report=ReadReport(skip=False))
    with open_stream(reading.path) as stream:
        number, position = -1, _first_line(stream, byte_range)
        if (start := position) is None:
            return
        while (byte_range.stop is None or position < byte_range.stop) and (
            line := stream.readline()
        ):
            number += 1
            position += len(line)
            reading.report.num_lines = number + 1
            try:
                text = strict.text_of(json.loads(line.decode("utf-8")), "")
            except (ValueError, RecursionError, SettingsError):
                text = None
            if text is None and line.strip():
                # Only a bad line pays for counting the lines before its range.
                first = _line_number(reading, start)
                text = _explain_line(line, f", line {first + number}", reading)
            if text:
                yield TextRecord(number, text)


def _first_line(stream: IO[bytes], byte_range: ByteRange) -> int | None:
    """Returns the start of the first line that begins in a byte range, and seeks to it; or None.

    Reads no more than the range, as a line may be longer than many ranges.
    """
    if byte_range.start == 0:
        return 0
    position = stream.seek(byte_range.start - 1)
    while (byte_range.stop is None or position < byte_range.stop) and (
        block := stream.read(_LINE_SEARCH_BYTES)
    ):
        if (end := block.find(b"\n")) >= 0:
            return stream.seek(position + end + 1)
        position += len(block)
    return None


def _explain_line(line: bytes, location: str, reading: RangeReading) -> str | None:
    """Reports what is wrong with a line; returns its text if data.invalid_utf8 is replace."""
    decoded = reading.decode(line, location)
    if decoded is None:
        return None
    try:
        record = json.loads(decoded.removeprefix(BYTE_ORDER_MARK))
    except (ValueError, RecursionError) as error:
        is_syntax = isinstance(error, json.JSONDecodeError)
        why = f"{error.msg}: character {error.pos + 1}" if is_syntax else error
        reading.skip(location, f"is not JSON ({why})")
        return None
    return reading.text_of(record, location)
