"""Reads .txt and .jsonl from any offset of a file."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from configs.data import PrepareConfig
from data.prepare.text.separators import (
    after_separator,
    before_separator,
    begins_document,
    count_separators,
    split_documents,
)
from data.prepare.text.source_files import RANGE_BYTES, ByteRange, SourceFile
from data.prepare.text.streams import BYTE_ORDER_MARK, open_stream
from data.prepare.text.text_fields import field_of, text_of
from data.prepare.text.text_records import ReadReport, TextRecord, decode

_LINE_SEARCH_BYTES = 2**20  # how far to search for a line end to cut a text at


def _boundary(stream: IO[bytes], offset: int, separator: str | None) -> int:
    """Returns the start of the first line at or after an offset.

    If no line ends near, the start of the next character that is not within a separator.
    """
    if offset == 0:
        return 0
    stream.seek(offset - 1)
    position = offset - 1
    while block := stream.read(_LINE_SEARCH_BYTES):
        if (end := block.find(b"\n")) >= 0:
            return position + end + 1
        position += len(block)
        if position - offset >= _LINE_SEARCH_BYTES - 1:
            stream.seek(offset)
            return after_separator(stream, offset + _first_character(stream.read(4)), separator)
    return position


def _first_character(content: bytes) -> int:
    """Returns the index of the first byte that may begin a character in UTF-8."""
    return next((i for i, byte in enumerate(content) if byte & 0xC0 != 0x80), 0)


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


def read_text(
    byte_range: ByteRange, file: SourceFile, config: PrepareConfig, reading: ReadReport
) -> Iterator[TextRecord]:
    """Yields a text in chunks of about RANGE_BYTES that never cut a character."""
    with open_stream(Path(file.path)) as stream:
        separator = config.document_separator
        start, stop = _range(stream, byte_range, separator)
        begins = begins_document(stream, start, separator)
        position, rest, number = start, b"", 0
        while stop is None or position < stop:
            size = RANGE_BYTES if stop is None else stop - position
            content = rest + (block := stream.read(size))
            at_end = len(block) < size or (stop is not None and position + len(block) == stop)
            position += len(block)
            cut = len(content) if at_end else _cut(content, separator)
            content, rest = content[:cut], content[cut:]
            offset = position - len(rest) - len(content)
            text = _text_of(content, offset, file, config, reading)
            text = text.removeprefix(BYTE_ORDER_MARK) if offset == 0 else text
            if not file.is_prose:
                count_separators(text, config, reading)
            for i, document in enumerate(split_documents(text, separator)):
                begins = begins or i > 0
                is_blank = separator and begins and not document.strip()
                if document and not is_blank:
                    yield TextRecord(number, document, begins=begins)
                    begins = False
            number += 1
            if at_end:
                break


def _cut(content: bytes, separator: str | None) -> int:
    """Returns where to cut a long text: after a line, else before a character or separator."""
    newline = content.rfind(b"\n", len(content) - _LINE_SEARCH_BYTES)
    if newline >= 0:
        return newline + 1
    end = len(content) - 1
    while end > len(content) - 4 and content[end] & 0xC0 == 0x80:
        end -= 1
    return before_separator(content, end, separator)


def _text_of(
    content: bytes, offset: int, file: SourceFile, config: PrepareConfig, reading: ReadReport
) -> str:
    """Returns the text of a chunk; a line that is not UTF-8 is skipped and counted."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        if config.invalid_utf8 == "replace":
            return content.decode("utf-8", errors="replace")
    lines = []
    number = _line_number(file, offset) if reading.needs_line_numbers else 0
    for line in content.splitlines(keepends=True):
        if (text := decode(line, f", line {number}", file, config, reading)) is not None:
            lines.append(text)
        number += line.endswith(b"\n")
    return "".join(lines)


@functools.lru_cache(maxsize=4)
def _line_number(file: SourceFile, offset: int) -> int:
    """Returns the line number, from 1, at an offset; reads all before it, so only on errors."""
    number = 1
    with open_stream(Path(file.path)) as stream:
        while offset > 0 and (block := stream.read(min(offset, 2**20))):
            number += block.count(b"\n")
            offset -= len(block)
    return number


def read_jsonl(
    byte_range: ByteRange, file: SourceFile, config: PrepareConfig, reading: ReadReport
) -> Iterator[TextRecord]:
    """Yields the text of each line of JSON.

    A line is in memory three times: its bytes, its characters, and the text in it.
    """
    with open_stream(Path(file.path)) as stream:
        number, position = -1, _first_line(stream, byte_range)
        if (start := position) is None:
            return
        while (byte_range.stop is None or position < byte_range.stop) and (
            line := stream.readline()
        ):
            number += 1
            position += len(line)
            reading.num_lines = number + 1
            text = _text_of_line(line, config)
            if text is None and line.strip():
                # Only a bad line pays for counting the lines before its range.
                first = _line_number(file, start) if reading.needs_line_numbers else 0
                where = f", line {first + number}"
                text = _explain_line(line, where, file, config, reading)
            if text:
                yield TextRecord(number, text)


def _text_of_line(line: bytes, config: PrepareConfig) -> str | None:
    """Returns the text of a valid line, else None."""
    try:
        return text_of(json.loads(line.decode("utf-8")), config)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, IndexError):
        return None


def _explain_line(
    line: bytes, location: str, file: SourceFile, config: PrepareConfig, reading: ReadReport
) -> str | None:
    """Reports what is wrong with a line; returns its text if data.invalid_utf8 is replace."""
    decoded = decode(line, location, file, config, reading)
    if decoded is None:
        return None
    try:
        record = json.loads(decoded.removeprefix(BYTE_ORDER_MARK))
    except (ValueError, RecursionError) as error:
        is_syntax = isinstance(error, json.JSONDecodeError)
        why = f"{error.msg}: character {error.pos + 1}" if is_syntax else error
        reading.add(file, location, f"is not JSON ({why})")
        return None
    return field_of(record, location, file, config, reading)
