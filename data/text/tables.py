"""Parquet, Arrow, ArrayRecord, and arrays of tokens."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from configs.data import PrepareConfig
from data.text.reading import Reading, Record, decode, field_of
from data.text.sources import Part, SourceFile

_LLM_C = {20240520: np.dtype("<u2"), 20240801: np.dtype("<u4")}  # magic number: dtype
_LLM_C_HEADER_BYTES = 1024
_TABLE_ROWS = 64  # rows may be whole books
_TOKENS_AT_ONCE = 2**20


def read_table(
    part: Part, file: SourceFile, config: PrepareConfig, reading: Reading
) -> Iterator[Record]:
    """Yields the text of each row of a Parquet or Arrow file that has one."""
    import pyarrow

    open_table = _open_parquet if file.kind == "parquet" else _open_arrow
    number = 0
    try:
        names, batches = open_table(file.path, config)
        if config.text_field not in names:
            field_of(dict.fromkeys(names), "", file, config, reading)
            return
        for batch in batches:
            for content in _contents(batch.column(config.text_field)):
                place = f", row {number + 1}"
                if isinstance(content, bytes):
                    text = decode(content, place, file, config, reading)
                else:
                    record = {config.text_field: content}
                    text = field_of(record, place, file, config, reading)
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


def read_arrayrecord(
    part: Part, file: SourceFile, config: PrepareConfig, reading: Reading
) -> Iterator[Record]:
    """Yields each record of an ArrayRecord file, which are UTF-8."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(file.path, "")
        for first in range(0, reader.num_records(), _TABLE_ROWS):
            stop = min(first + _TABLE_ROWS, reader.num_records())
            for number, content in enumerate(reader.read(first, stop), first):
                text = decode(content, f", record {number + 1}", file, config, reading)
                if text:
                    yield Record(number, text)
        reader.close()
    except RuntimeError as error:
        raise ValueError(str(error)) from None


def read_tokens(
    part: Part, file: SourceFile, config: PrepareConfig, reading: Reading
) -> Iterator[Record]:
    """Yields an array of tokens in pieces, as they are."""
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
