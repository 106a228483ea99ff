"""Reads the records of a byte range of a file, in any format."""

import importlib
import tokenize
import zlib
from collections.abc import Callable, Iterator

from configs.data import PrepareConfig
from configs.errors import SettingsError
from data.prepare.text.json_csv import read_csv, read_json
from data.prepare.text.parquet_arrow import read_arrayrecord, read_table
from data.prepare.text.source_files import TEXT_KINDS, ByteRange, SourceFile
from data.prepare.text.streams import other_encoding
from data.prepare.text.text_records import TO_UTF8, RangeReading, ReadReport, TextRecord
from data.prepare.text.token_files import read_tokens
from data.prepare.text.txt_jsonl import read_jsonl, read_text

# numpy raises the last for a damaged header.
_UNREADABLE = (OSError, EOFError, ValueError, zlib.error, tokenize.TokenError)


def read_range(
    byte_range: ByteRange, file: SourceFile, config: PrepareConfig, report: ReadReport
) -> Iterator[TextRecord]:
    """Yields the records of a byte range in order; memory does not grow with the file.

    Raises:
        SettingsError: a record cannot be read, and data.bad_records is stop.
    """
    read: Callable[[RangeReading], Iterator[TextRecord]] = {
        "text": read_text,
        "jsonl": read_jsonl,
        "json": read_json,
        "csv": read_csv,
        "parquet": read_table,
        "arrow": read_table,
        "arrayrecord": read_arrayrecord,
        "tokens": read_tokens,
        "token_rows": read_table,
        "python": _read_python,
        "topics": _read_topics,
    }[file.kind]
    reading = RangeReading(byte_range, file, config, report)
    try:
        if file.kind in TEXT_KINDS and (encoding := other_encoding(reading.path)):
            if byte_range.start == 0:  # once, though a text may be read in many ranges
                reading.skip("", encoding, "convert it (iconv -f UTF-16 -t UTF-8)")
            return
        yield from read(reading)
    except SettingsError:
        raise
    except UnicodeDecodeError as error:
        reading.skip("", f"is not UTF-8 (byte {error.object[error.start]:#04x})", TO_UTF8)
    except _UNREADABLE as error:
        what = f"cannot be read as {file.kind} ({' '.join(str(error).split()) or repr(error)})"
        reading.skip("", what)


def _read_python(reading: RangeReading) -> Iterator[TextRecord]:
    """Reads a source file of the standard library; a few have other encodings on purpose."""
    try:
        text = reading.path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 (offset {error.start})"
        reading.report.count_skipped(reading.file, "", what)
        return
    if text:
        yield TextRecord(0, text)


def _read_topics(reading: RangeReading) -> Iterator[TextRecord]:
    for number, (_, text) in enumerate(_topics()):
        yield TextRecord(number, text)


def _topics() -> list[tuple[str, str]]:
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return sorted(topics.items())


def topic_names() -> list[str]:
    return [f"pydoc_data/{topic}" for topic, _ in _topics()]
