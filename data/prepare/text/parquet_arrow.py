"""Reads Parquet, Arrow and ArrayRecord files."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from configs.data import PrepareConfig
from data.prepare.text.source_files import ByteRange, SourceFile
from data.prepare.text.text_fields import field_names, field_of
from data.prepare.text.text_records import ReadReport, TextRecord, decode

_TABLE_ROWS = 64  # rows may be whole books


def read_table(
    byte_range: ByteRange, file: SourceFile, config: PrepareConfig, reading: ReadReport
) -> Iterator[TextRecord]:
    """Yields the text, or the token ids, of each row of a Parquet or Arrow file."""
    import pyarrow

    number = 0
    try:
        names, batches = _open_table(file, config)
        columns = _columns(names, config)
        if not set(columns) <= set(names):
            field_of(dict.fromkeys(names, ""), "", file, config, reading)
            return
        for batch in batches:
            contents = [_contents(batch.column(column)) for column in columns]
            for values in zip(*contents, strict=True):
                if file.kind == "token_rows":
                    yield TextRecord(number, ids=_ids_of(values[0], number))
                else:
                    record = dict(zip(columns, values, strict=True))
                    if text := field_of(record, f", row {number + 1}", file, config, reading):
                        yield TextRecord(number, text)
                number += 1
    except (pyarrow.ArrowException, KeyError, OSError) as error:
        raise ValueError(f"after row {number}: {error}") from None


def _columns(names: list[str], config: PrepareConfig) -> list[str]:
    """Returns the columns that the text is made of; of a dotted name the part before the dot."""
    wanted = (n if n in names else n.split(".")[0] for n in field_names(config))
    return list(dict.fromkeys(wanted))


def _ids_of(values: Any, number: int) -> np.ndarray:
    ids = np.array([] if values is None else values)
    if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
        raise ValueError(f"row {number + 1} is not a list of token ids")
    return ids.astype(np.int64)


def has_token_rows(file: SourceFile, config: PrepareConfig) -> bool:
    """Returns whether data.text_field is a column of lists of integers."""
    import pyarrow

    try:
        schema = _schema(file)
        kind = schema.field(config.text_field).type
    except (pyarrow.ArrowException, KeyError, OSError):
        return False  # reading reports the error
    types = pyarrow.types
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return is_list and types.is_integer(kind.value_type)


def _contents(column: Any) -> list[Any]:
    """Returns the values of a column, text as bytes, so that each value is decoded separately."""
    import pyarrow

    if pyarrow.types.is_string(column.type):
        column = column.view(pyarrow.binary())
    if pyarrow.types.is_large_string(column.type):
        column = column.view(pyarrow.large_binary())
    column.validate(full=True)  # else damaged offsets read outside the file
    return column.to_pylist()


def _schema(file: SourceFile) -> Any:
    import pyarrow.parquet

    if file.path.lower().endswith(".parquet"):
        return pyarrow.parquet.read_schema(file.path)
    return _open_arrow(file.path)[0]


def _open_table(file: SourceFile, config: PrepareConfig) -> tuple[list[str], Iterator[Any]]:
    """Returns the names of the columns, and the rows in batches."""
    import pyarrow.parquet

    if not file.path.lower().endswith(".parquet"):
        schema, batches = _open_arrow(file.path)
        return schema.names, batches
    table = pyarrow.parquet.ParquetFile(
        file.path, pre_buffer=False, buffer_size=2**20, page_checksum_verification=True
    )
    names = table.schema_arrow.names
    columns = _columns(names, config)
    return names, table.iter_batches(_TABLE_ROWS, columns=columns, use_threads=False)


def _open_arrow(path: str) -> tuple[Any, Iterator[Any]]:
    """Opens an Arrow stream (Hugging Face `datasets` saves these) or an Arrow file."""
    import pyarrow

    source = pyarrow.memory_map(path)
    try:
        table = pyarrow.ipc.open_stream(source)
        return table.schema, iter(table)
    except pyarrow.ArrowInvalid:
        rows = pyarrow.ipc.open_file(source)
        return rows.schema, map(rows.get_batch, range(rows.num_record_batches))


def read_arrayrecord(
    byte_range: ByteRange, file: SourceFile, config: PrepareConfig, reading: ReadReport
) -> Iterator[TextRecord]:
    """Yields the records of an ArrayRecord file as UTF-8 text."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(file.path, "")
        for first in range(0, reader.num_records(), _TABLE_ROWS):
            stop = min(first + _TABLE_ROWS, reader.num_records())
            for number, content in enumerate(reader.read(first, stop), first):
                text = decode(content, f", record {number + 1}", file, config, reading)
                if text:
                    yield TextRecord(number, text)
        reader.close()
    except RuntimeError as error:
        raise ValueError(str(error)) from None
