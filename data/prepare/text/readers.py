"""Reads the records of a byte range of a file, in any format."""

import importlib
import tokenize
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from configs.data import PrepareConfig
from configs.errors import SettingsError
from data.prepare.text.json_csv import read_csv, read_json
from data.prepare.text.parquet_arrow import read_arrayrecord, read_table
from data.prepare.text.source_files import ByteRange, SourceFile
from data.prepare.text.streams import other_encoding
from data.prepare.text.text_records import ReadReport, TextRecord
from data.prepare.text.token_files import read_tokens
from data.prepare.text.txt_jsonl import read_jsonl, read_text

# numpy raises the last for a damaged header.
_UNREADABLE = (OSError, EOFError, ValueError, zlib.error, tokenize.TokenError)
_UTF8 = ("text", "jsonl", "json", "csv")


def read_range(
    byte_range: ByteRange, file: SourceFile, config: PrepareConfig, reading: ReadReport
) -> Iterator[TextRecord]:
    """Yields the records of a byte range in order; memory does not grow with the file.

    Raises:
        SettingsError: a record cannot be read, and data.bad_records is stop.
    """
    read: Callable[..., Iterator[TextRecord]] = {
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
    try:
        if file.kind in _UTF8 and (encoding := other_encoding(Path(file.path))):
            if byte_range.start == 0:  # once, though a text may be read in many ranges
                reading.add(file, "", encoding, "convert it (iconv -f UTF-16 -t UTF-8)")
            return
        yield from read(byte_range, file, config, reading)
    except SettingsError:
        raise
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 (byte {error.object[error.start]:#04x})"
        way_out = "convert it, pass --data.invalid-utf8 replace to put U+FFFD there"
        reading.add(file, "", what, way_out)
    except _UNREADABLE as error:
        what = f"cannot be read as {file.kind} ({' '.join(str(error).split()) or repr(error)})"
        reading.add(file, "", what)


def _read_python(
    byte_range: ByteRange, file: SourceFile, config: PrepareConfig, reading: ReadReport
) -> Iterator[TextRecord]:
    """Reads a source file of the standard library; a few have other encodings on purpose."""
    try:
        text = Path(file.path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        reading.count_skipped(file, "", f"is not UTF-8 (offset {error.start})")
        return
    if text:
        yield TextRecord(0, text)


def _read_topics(
    byte_range: ByteRange, file: SourceFile, config: PrepareConfig, reading: ReadReport
) -> Iterator[TextRecord]:
    for number, (_, text) in enumerate(_topics()):
        yield TextRecord(number, text)


def _topics() -> list[tuple[str, str]]:
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return sorted(topics.items())


def topic_names() -> list[str]:
    """Returns the names of the help topics of Python, in the order of their records."""
    return [f"pydoc_data/{topic}" for topic, _ in _topics()]
