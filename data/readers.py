"""The records of a part of a file, whatever its format."""

import functools
import gzip
import importlib
import io
import json
import tokenize
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from configs.data import PrepareConfig
from configs.errors import SettingsError
from data.sources import PART_BYTES, Part, SourceFile

NUM_EXAMPLES = 20
_LINE_SEARCH_BYTES = 2**20  # how far a text is searched for the end of a line to be cut there
_LLM_C = {20240520: np.dtype("<u2"), 20240801: np.dtype("<u4")}  # magic number: dtype
_LLM_C_HEADER_BYTES = 1024
_TABLE_ROWS = 64  # rows may be whole books
_TOKENS_AT_ONCE = 2**20
# The last is what numpy says of a damaged header.
_UNREADABLE = (OSError, EOFError, ValueError, zlib.error, tokenize.TokenError)


@dataclass(frozen=True)
class Record:
    """A document, or a piece of a long one."""

    number: int
    """Line or row of the file, from 0, counted from the beginning of the part."""
    text: str = ""
    ids: np.ndarray | None = None
    """Tokens, in place of text, with separators between documents."""
    begins: bool = True
    """False for a piece that goes on where the record before it ended."""


@dataclass
class Reading:
    """How far a part was read, and what of it could not be.

    The first record that cannot be read ends the preparation, or all of them are counted.
    """

    skip: bool
    num_lines: int = 0
    """Lines of the part, where it is one of lines and may be one part of several."""
    counts: dict[str, int] = field(default_factory=dict)
    """Records left out of each file, or 1 for the rest of a file that is damaged."""
    examples: list[str] = field(default_factory=list)

    @property
    def wants_places(self) -> bool:
        """Whether the line of the next thing that cannot be read will be told; it costs a read."""
        return not self.skip or len(self.examples) < NUM_EXAMPLES

    def add(self, file: SourceFile, place: str, what: str, way_out: str = "repair it") -> None:
        """Counts something that is left out; raises SettingsError where nothing may be."""
        where = f"{file.path}{place}"
        what = " ".join(what.split())  # a name of a field may have line ends in it
        if not self.skip:
            raise SettingsError(
                f"data.path: {where} {what}; {way_out}, or pass --data.bad_records skip to leave "
                "out and count what cannot be read"
            )
        self.leave_out(file, place, what)

    def leave_out(self, file: SourceFile, place: str, what: str) -> None:
        """Counts something that is left out, whatever the settings say."""
        self.counts[file.name] = self.counts.get(file.name, 0) + 1
        if len(self.examples) < NUM_EXAMPLES:
            self.examples.append(f"{file.name}{place} {what}")


def read_part(
    part: Part, file: SourceFile, config: PrepareConfig, reading: Reading
) -> Iterator[Record]:
    """Yields the records of a part in their order; memory does not grow with the file.

    Raises:
        SettingsError: something cannot be read, and data.bad_records is stop.
    """
    read: Callable[..., Iterator[Record]] = {
        "text": _read_text,
        "jsonl": _read_jsonl,
        "parquet": _read_table,
        "arrow": _read_table,
        "arrayrecord": _read_arrayrecord,
        "tokens": _read_tokens,
        "python": _read_python,
        "topics": _read_topics,
    }[file.kind]
    try:
        yield from read(part, file, config, reading)
    except SettingsError:
        raise
    except _UNREADABLE as error:
        what = f"cannot be read as {file.kind} ({' '.join(str(error).split()) or repr(error)})"
        reading.add(file, "", what)


def _open(file: SourceFile) -> Any:
    match file.compression:
        case ".gz":
            return gzip.open(file.path)
        case ".zst":
            import pyarrow

            # Reads all frames of a file, and says when the last is not whole; zstandard does not.
            return io.BufferedReader(pyarrow.input_stream(file.path, compression="zstd"))
    return open(file.path, "rb")


def _boundary(stream: IO[bytes], offset: int, limit: int | None) -> int:
    """Returns where the first line begins at or after an offset.

    Where no line ends within `limit` bytes, the first character that begins there will do.
    """
    if offset == 0:
        return 0
    stream.seek(offset - 1)
    place = offset - 1
    while block := stream.read(_LINE_SEARCH_BYTES):
        if (end := block.find(b"\n")) >= 0:
            return place + end + 1
        place += len(block)
        if limit is not None and place - offset >= limit - 1:
            stream.seek(offset)
            return offset + _first_character(stream.read(4))
    return place


def _first_character(content: bytes) -> int:
    """Returns the first place where a character of UTF-8 may begin."""
    return next((i for i, byte in enumerate(content) if byte & 0xC0 != 0x80), 0)


def _range(stream: IO[bytes], part: Part, limit: int | None) -> tuple[int, int | None]:
    """Returns the bytes of a part after its boundaries have moved, and goes to the first."""
    stop = None if part.stop is None else _boundary(stream, part.stop, limit)
    start = 0 if part.start == 0 else _boundary(stream, part.start, limit)
    if part.start:
        stream.seek(start)
    elif part.stop is not None:
        stream.seek(0)
    return start, stop


def _read_text(
    part: Part, file: SourceFile, config: PrepareConfig, reading: Reading
) -> Iterator[Record]:
    with _open(file) as stream:
        start, stop = _range(stream, part, _LINE_SEARCH_BYTES)
        place, rest, number, begins = start, b"", 0, start == 0
        while stop is None or place < stop:
            size = PART_BYTES if stop is None else stop - place
            content = rest + (block := stream.read(size))
            at_end = len(block) < size or (stop is not None and place + len(block) == stop)
            place += len(block)
            cut = len(content) if at_end else _cut(content)
            content, rest = content[:cut], content[cut:]
            offset = place - len(rest) - len(content)
            if text := _text_of(content, offset, file, config, reading):
                yield Record(number, text, begins=begins)
                begins = False
            number += 1
            if at_end:
                break


def _cut(content: bytes) -> int:
    """Returns where a long text is cut: after its last line, or else before a character."""
    newline = content.rfind(b"\n", len(content) - _LINE_SEARCH_BYTES)
    if newline >= 0:
        return newline + 1
    end = len(content) - 1
    while end > len(content) - 4 and content[end] & 0xC0 == 0x80:
        end -= 1
    return end


def _text_of(
    content: bytes, offset: int, file: SourceFile, config: PrepareConfig, reading: Reading
) -> str:
    """Returns the text of a piece; a line of it that is not UTF-8 is left out and counted."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        if config.invalid_utf8 == "replace":
            return content.decode("utf-8", errors="replace")
    lines = []
    number = _line_number(file, offset) if reading.wants_places else 0
    for line in content.splitlines(keepends=True):
        if (text := _decode(line, f", line {number}", file, config, reading)) is not None:
            lines.append(text)
        number += line.endswith(b"\n")
    return "".join(lines)


@functools.lru_cache(maxsize=4)
def _line_number(file: SourceFile, offset: int) -> int:
    """Returns the number of the line, from 1, at an offset; reads all before it, so only if bad."""
    number = 1
    with _open(file) as stream:
        while offset > 0 and (block := stream.read(min(offset, 2**20))):
            number += block.count(b"\n")
            offset -= len(block)
    return number


def _decode(
    content: bytes, place: str, file: SourceFile, config: PrepareConfig, reading: Reading
) -> str | None:
    if config.invalid_utf8 == "replace":
        return content.decode("utf-8", errors="replace")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        reading.add(
            file,
            place,
            f"is not UTF-8 (byte {content[error.start]:#04x} at offset {error.start})",
            "convert it, pass --data.invalid_utf8 replace to put U+FFFD there",
        )
        return None


def _read_jsonl(
    part: Part, file: SourceFile, config: PrepareConfig, reading: Reading
) -> Iterator[Record]:
    with _open(file) as stream:
        place, stop = _range(stream, part, None)
        start = place
        for number, line in enumerate(stream):
            if stop is not None and place >= stop:
                break
            place += len(line)
            reading.num_lines = number + 1
            text = _text_of_line(line, config)
            if text is None and line.strip():
                # Only a bad line pays for counting the lines before its part.
                first = _line_number(file, start) if reading.wants_places else 0
                where = f", line {first + number}"
                text = _explain_line(line, where, file, config, reading)
            if text:
                yield Record(number, text)


def _text_of_line(line: bytes, config: PrepareConfig) -> str | None:
    """Returns the text of a good line, None for any other."""
    try:
        text = json.loads(line.decode("utf-8"))[config.text_field]
        if not text.isascii():
            text.encode("utf-8")  # JSON can spell half a pair, which is no character
        return text
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, IndexError):
        return None


def _explain_line(
    line: bytes, place: str, file: SourceFile, config: PrepareConfig, reading: Reading
) -> str | None:
    """Says what is wrong with a line, or mends it where the settings say how."""
    decoded = _decode(line, place, file, config, reading)
    if decoded is None:
        return None
    try:
        record = json.loads(decoded.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        is_syntax = isinstance(error, json.JSONDecodeError)
        why = f"{error.msg}: character {error.pos + 1}" if is_syntax else error
        reading.add(file, place, f"is not JSON ({why})")
        return None
    return _field_of(record, place, file, config, reading)


def _field_of(
    record: Any, place: str, file: SourceFile, config: PrepareConfig, reading: Reading
) -> str | None:
    field_ = config.text_field
    if not isinstance(record, dict) or not isinstance(record.get(field_), str):
        if isinstance(record, dict) and field_ in record:
            kind = "null" if record[field_] is None else type(record[field_]).__name__
            what = f"has {kind} in data.text_field={field_}, not text"
        else:
            has = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            what = f"has no data.text_field={field_}, but has: {has}"
        reading.add(file, place, what, "name the field that holds the text")
        return None
    # Half a UTF-16 pair, which JSON can spell and UTF-8 cannot, is text not in UTF-8.
    content = record[field_].encode("utf-8", errors="surrogatepass")
    return _decode(content, place, file, config, reading)


def _read_table(
    part: Part, file: SourceFile, config: PrepareConfig, reading: Reading
) -> Iterator[Record]:
    import pyarrow

    open_table = _open_parquet if file.kind == "parquet" else _open_arrow
    number = 0
    try:
        names, batches = open_table(file.path, config)
        if config.text_field not in names:
            _field_of(dict.fromkeys(names), "", file, config, reading)
            return
        for batch in batches:
            for content in _contents(batch.column(config.text_field)):
                place = f", row {number + 1}"
                if isinstance(content, bytes):
                    text = _decode(content, place, file, config, reading)
                else:
                    record = {config.text_field: content}
                    text = _field_of(record, place, file, config, reading)
                if text:
                    yield Record(number, text)
                number += 1
    except (pyarrow.ArrowException, KeyError, OSError) as error:
        raise ValueError(f"after row {number}: {error}") from None


def _contents(column: Any) -> list[Any]:
    """Returns the values of a column, of text its bytes, so that each is decoded by itself."""
    import pyarrow

    if pyarrow.types.is_string(column.type):
        column = column.view(pyarrow.binary())
    if pyarrow.types.is_large_string(column.type):
        column = column.view(pyarrow.large_binary())
    column.validate(full=True)  # what is damaged would otherwise be read outside of the file
    return column.to_pylist()


def _open_parquet(path: str, config: PrepareConfig) -> tuple[list[str], Iterator[Any]]:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(
        path, pre_buffer=False, buffer_size=2**20, page_checksum_verification=True
    )
    batches = table.iter_batches(_TABLE_ROWS, columns=[config.text_field], use_threads=False)
    return table.schema_arrow.names, batches


def _open_arrow(path: str, config: PrepareConfig) -> tuple[list[str], Iterator[Any]]:
    """Opens what Hugging Face `datasets` saves to disk (a stream), or an Arrow file."""
    import pyarrow

    source = pyarrow.memory_map(path)
    try:
        table = pyarrow.ipc.open_stream(source)
        return table.schema.names, iter(table)
    except pyarrow.ArrowInvalid:
        rows = pyarrow.ipc.open_file(source)
        return rows.schema.names, map(rows.get_batch, range(rows.num_record_batches))


def _read_arrayrecord(
    part: Part, file: SourceFile, config: PrepareConfig, reading: Reading
) -> Iterator[Record]:
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(file.path, "")
        for first in range(0, reader.num_records(), _TABLE_ROWS):
            stop = min(first + _TABLE_ROWS, reader.num_records())
            for number, content in enumerate(reader.read(first, stop), first):
                text = _decode(content, f", record {number + 1}", file, config, reading)
                if text:
                    yield Record(number, text)
        reader.close()
    except RuntimeError as error:
        raise ValueError(str(error)) from None


def _read_tokens(
    part: Part, file: SourceFile, config: PrepareConfig, reading: Reading
) -> Iterator[Record]:
    ids = open_tokens(Path(file.path))
    size = ids.dtype.itemsize
    stop = len(ids) if part.stop is None else part.stop // size
    for start in range(part.start // size, min(stop, len(ids)), _TOKENS_AT_ONCE):
        piece = np.asarray(ids[start : min(start + _TOKENS_AT_ONCE, stop)])
        yield Record(start, ids=piece, begins=start == 0)


def open_tokens(path: Path) -> np.ndarray:
    """Returns an array of token ids, one axis, mapped into memory and not read.

    A .bin is uint16 without a header (nanoGPT), or has the header of llm.c.

    Raises:
        ValueError: it is none of these.
    """
    if path.suffix == ".npy":
        ids = np.lib.format.open_memmap(path, mode="r")  # np.load would unpickle and unzip as well
    else:
        with path.open("rb") as file:
            magic, _, num_tokens = np.frombuffer(file.read(12).ljust(12, b"\0"), "<i4").tolist()
        offset = _LLM_C_HEADER_BYTES if magic in _LLM_C else 0
        ids = np.memmap(path, _LLM_C.get(magic, np.dtype("<u2")), "r", offset)
        if offset and len(ids) != num_tokens:
            raise ValueError(f"it holds {len(ids)} tokens, its header says {num_tokens}")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"it holds {ids.dtype} of shape {ids.shape}, not integers on one axis")
    return ids


def _read_python(
    part: Part, file: SourceFile, config: PrepareConfig, reading: Reading
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
    part: Part, file: SourceFile, config: PrepareConfig, reading: Reading
) -> Iterator[Record]:
    for number, (_, text) in enumerate(_topics()):
        yield Record(number, text)


def _topics() -> list[tuple[str, str]]:
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return sorted(topics.items())


def topic_names() -> list[str]:
    """Returns the names of the pages of Python's manual, in the order of their records."""
    return [f"pydoc_data/{topic}" for topic, _ in _topics()]
