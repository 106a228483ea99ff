"""Reads Parquet, Arrow and ArrayRecord files."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from configs.data import PrepareConfig
from data.prepare.text.source_files import SourceFile
from data.prepare.text.text_records import RangeReading, TextRecord

_TABLE_ROWS = 64  # rows may be whole books


def read_table(reading: RangeReading) -> Iterator[TextRecord]:
    import pyarrow

    number = 0
    try:
        names, columns, batches = _open_table(reading)
        if not set(columns) <= set(names):
            reading.text_of(dict.fromkeys(names, ""), "")
            return
        for batch in batches:
            contents = [_contents(batch.column(column)) for column in columns]
            for values in zip(*contents, strict=True):
                if reading.file.kind == "token_rows":
                    yield TextRecord(number, ids=_ids_of(values[0], number))
                else:
                    record = dict(zip(columns, values, strict=True))
                    if text := reading.text_of(record, f", row {number + 1}"):
                        yield TextRecord(number, text)
                number += 1
    except (pyarrow.ArrowException, KeyError, OSError) as error:
        raise ValueError(f"after row {number}: {error}") from None


def _ids_of(values: Any, number: int) -> np.ndarray:
    ids = np.array([] if values is None else values)
    if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
        raise ValueError(f"row {number + 1} is not a list of token ids")
    return ids.astype(np.int64)


def has_token_rows(file: SourceFile, config: PrepareConfig) -> bool:
    import pyarrow

    try:
        kind = _schema(file.path).field(config.text_field).type
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


def _schema(path: str) -> Any:
    import pyarrow.parquet

    if path.lower().endswith(".parquet"):
        return pyarrow.parquet.read_schema(path)
    return _open_arrow(path)[0]


def _open_table(reading: RangeReading) -> tuple[list[str], list[str], Iterator[Any]]:
    """Returns the names of all columns, those that the text is made of, and the rows in batches."""
    import pyarrow.parquet

    path, table, batches = reading.file.path, None, iter(())
    if path.lower().endswith(".parquet"):
        table = pyarrow.parquet.ParquetFile(
            path, pre_buffer=False, buffer_size=2**20, page_checksum_verification=True
        )
        names = table.schema_arrow.names
    else:
        schema, batches = _open_arrow(path)
        names = schema.names
    # Of a dotted name the part before the dot.
    wanted = (n if n in names else n.split(".")[0] for n in reading.field_names)
    columns = list(dict.fromkeys(wanted))
    if table is not None:
        batches = table.iter_batches(_TABLE_ROWS, columns=columns, use_threads=False)
    return names, columns, batches


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


def read_arrayrecord(reading: RangeReading) -> Iterator[TextRecord]:
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(reading.file.path, "")
        for first in range(0, reader.num_records(), _TABLE_ROWS):
            stop = min(first + _TABLE_ROWS, reader.num_records())
            for number, content in enumerate(reader.read(first, stop), first):
                if text := reading.decode(content, f", record {number + 1}"):
                    yield TextRecord(number, text)
        reader.close()
    except RuntimeError as error:
        raise ValueError(str(error)) from None
