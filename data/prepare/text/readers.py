"""The records of a part of a file, whatever its format."""

import importlib
import tokenize
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from configs.data import PrepareConfig
from configs.errors import SettingsError
from data.prepare.text.json_csv import read_csv, read_json
from data.prepare.text.parquet_arrow import read_arrayrecord, read_table
from data.prepare.text.read_report import ReadReport, Record
from data.prepare.text.source_files import ByteRange, SourceFile
from data.prepare.text.streams import other_encoding
from data.prepare.text.token_files import read_tokens
from data.prepare.text.txt_jsonl import read_jsonl, read_text

# The last is what numpy says of a damaged header.
_UNREADABLE = (OSError, EOFError, ValueError, zlib.error, tokenize.TokenError)
_UTF8 = ("text", "jsonl", "json", "csv")


def read_range(
    part: ByteRange, file: SourceFile, config: PrepareConfig, reading: ReadReport
) -> Iterator[Record]:
    """Yields the records of a part in their order; memory does not grow with the file.

    Raises:
        SettingsError: something cannot be read, and data.bad_records is stop.
    """
    read: Callable[..., Iterator[Record]] = {
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
            if part.start == 0:  # once, though a text may be read in many parts
                reading.add(file, "", encoding, "convert it (iconv -f UTF-16 -t UTF-8)")
            return
        yield from read(part, file, config, reading)
    except SettingsError:
        raise
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 (byte {error.object[error.start]:#04x})"
        way_out = "convert it, pass --data.invalid_utf8 replace to put U+FFFD there"
        reading.add(file, "", what, way_out)
    except _UNREADABLE as error:
        what = f"cannot be read as {file.kind} ({' '.join(str(error).split()) or repr(error)})"
        reading.add(file, "", what)


def _read_python(
    part: ByteRange, file: SourceFile, config: PrepareConfig, reading: ReadReport
) -> Iterator[Record]:
    """Reads a source of the standard library; a few test the reading of other encodings."""
    try:
        text = Path(file.path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        reading.leave_out(file, "", f"is not UTF-8 (offset {error.start})")
        return
    if text:
        yield Record(0, text)


def _read_topics(
    part: ByteRange, file: SourceFile, config: PrepareConfig, reading: ReadReport
) -> Iterator[Record]:
    for number, (_, text) in enumerate(_topics()):
        yield Record(number, text)


def _topics() -> list[tuple[str, str]]:
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return sorted(topics.items())


def topic_names() -> list[str]:
    """Returns the names of the pages of Python's manual, in the order of their records."""
    return [f"pydoc_data/{topic}" for topic, _ in _topics()]
