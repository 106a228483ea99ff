"""Reads JSON arrays and CSV, record by record."""

import csv
import io
import itertools
import json
import re
from collections.abc import Iterator
from typing import IO, Any

from data.prepare.text.streams import open_stream
from data.prepare.text.text_records import RangeReading, TextRecord

_RECORD_CHARACTERS = 64 * 2**20
"""The longest array element, CSV line or CSV field; it bounds memory."""
_BLOCK_CHARACTERS = 2**20
_BETWEEN = re.compile(r"[\s,]*")


def _open_text(reading: RangeReading) -> IO[str]:
    errors = "replace" if reading.config.invalid_utf8 == "replace" else "strict"
    return io.TextIOWrapper(open_stream(reading.path), "utf-8-sig", errors, newline="")


def read_json(reading: RangeReading) -> Iterator[TextRecord]:
    config = reading.config
    with _open_text(reading) as stream:
        for number, record in enumerate(_elements(stream)):
            if isinstance(record, str) and config.text_template is None:
                record = {config.text_field: record}
            if text := reading.text_of(record, f", element {number + 1}"):
                yield TextRecord(number, text)


def _elements(stream: IO[str]) -> Iterator[Any]:
    """Yields the elements of an array, a few MB at a time; ValueError if it is no array."""
    parse = json.JSONDecoder().raw_decode
    while stream.read(1) not in ("[", ""):
        pass
    buffer, index, number, is_last = "", 0, 1, False
    while True:
        between = _BETWEEN.match(buffer, index)
        index = between.end() if between else index
        if buffer.startswith("]", index):
            rest = buffer[index + 1 :]
            while not rest.strip() and (rest := stream.read(_BLOCK_CHARACTERS)):
                pass
            if rest.strip():
                raise ValueError(
                    f"text follows the closing ] of the array (last element: {number - 1})"
                )
            return
        try:
            record, end = parse(buffer, index)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = f"element {number} is not JSON ({error})"
        else:
            reason = f"element {number} is too long"
            if end < len(buffer) or is_last:  # the next block may continue a number
                yield record
                index, number = end, number + 1
                continue
        buffer = buffer[index:]
        if is_last or len(buffer) > _RECORD_CHARACTERS:
            raise ValueError(reason if buffer.strip() else "the array has no closing ]")
        block = stream.read(max(_BLOCK_CHARACTERS, len(buffer)))
        buffer, index, is_last = buffer + block, 0, not block


def read_csv(reading: RangeReading) -> Iterator[TextRecord]:
    """Yields the text of each row; the first row names the fields. Quoted text may span lines.

    Fields are separated by commas, in a .tsv by tabs.
    """
    csv.field_size_limit(_RECORD_CHARACTERS)
    is_tsv = ".tsv" in (suffix.lower() for suffix in reading.path.suffixes[-2:])
    with _open_text(reading) as stream:
        rows = csv.reader(_lines(stream), delimiter="\t" if is_tsv else ",", strict=True)
        try:
            yield from _rows(rows, reading)
        except csv.Error as error:
            what = f"is not CSV ({error}), so the rest of the file cannot be read"
            reading.skip(f", line {rows.line_num}", what)


def _lines(stream: IO[str]) -> Iterator[str]:
    for number in itertools.count(1):
        line = stream.readline(_RECORD_CHARACTERS + 1)
        if len(line) > _RECORD_CHARACTERS:
            raise ValueError(f"line {number} is longer than {_RECORD_CHARACTERS:,} characters")
        if not line:
            return
        yield line


def _rows(rows: Iterator[list[str]], reading: RangeReading) -> Iterator[TextRecord]:
    header, names = next(rows, []), reading.field_names
    if not set(names) <= set(header):
        reading.text_of(dict.fromkeys(header, ""), " in its first line")
        return
    for name in names:
        if (num_columns := header.count(name)) > 1:
            what = f"has {num_columns} columns named {name}"
            reading.skip(" in its first line", what, "rename all but the one to read")
            return
    for number, row in enumerate(rows):
        if row and len(row) != len(header):
            what = f"has {len(row)} fields, but the header has {len(header)}"
            reading.skip(f", row {number + 1}", what)
        elif row:
            record = dict(zip(header, row, strict=True))
            if text := reading.text_of(record, f", row {number + 1}"):
                yield TextRecord(number, text)
