"""Documents written down in every format that is read, and how tests read them back."""

import csv
import gzip
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import zstandard
from array_record.python.array_record_module import ArrayRecordWriter

from configs.data import PrepareConfig
from data.prepare.corpus_preparation import Preparation, prepare
from data.prepare.engine import Workers
from data.prepare.text.corpus import open_corpus
from data.prepare.text.readers import read_range
from data.prepare.text.text_records import ReadReport, TextRecord
from data.token_store import TokenStore, open_store
from data.tokenizers.tokenizer import open_tokenizer


def corpus_config(path: Path | str | None, **changes: Any) -> PrepareConfig:
    settings = {"tokenizer": "bytes", **changes}
    return PrepareConfig(path=None if path is None else str(path), **settings)


def records_of(
    config: PrepareConfig, reading: ReadReport | None = None
) -> Iterator[tuple[int, int, TextRecord]]:
    """Yields (file, line or row of the file from 0, record) of a whole corpus."""
    corpus = open_corpus(config)
    reading = reading or ReadReport(skip=False)
    lines_before = [0] * len(corpus.files)
    for part in itertools.chain(*corpus.tasks):
        reading.num_lines = 0
        for record in read_range(part, corpus.files[part.file], config, reading):
            yield part.file, lines_before[part.file] + record.number, record
        lines_before[part.file] += reading.num_lines


def documents_of(config: PrepareConfig, reading: ReadReport | None = None) -> list[tuple[str, str]]:
    """Returns (name, text) of every document, its pieces joined."""
    corpus = open_corpus(config)
    documents: list[tuple[str, str]] = []
    for file, number, record in records_of(config, reading):
        if record.begins:
            documents.append((corpus.document_name(file, number), record.text))
        else:
            name, text = documents[-1]
            documents[-1] = (name, text + record.text)
    return documents


def texts_of(config: PrepareConfig, reading: ReadReport | None = None) -> list[str]:
    return [text for _, text in documents_of(config, reading)]


def prepared(config: PrepareConfig, folder: Path) -> TokenStore:
    """Returns what `./tessera prepare` makes, made in this process."""
    preparation = Preparation(config, folder, Workers(1), lambda stage, done, total: None)
    prepare([preparation], open_tokenizer(config), lambda line: None)
    return open_store(folder)


def stored_documents(store: TokenStore, split: str) -> list[str]:
    """Takes the stream of a split apart at its separators."""
    stream = {"train": store.train, "validation": store.validation}[split]
    ids = stream.read(0, stream.num_tokens)
    separators = np.flatnonzero(ids == store.tokenizer.separator)
    assert separators[0] == 0
    assert separators[-1] == len(ids) - 1
    return [store.tokenizer.decode(ids[a + 1 : b]) for a, b in itertools.pairwise(separators)]


def jsonl(texts: Sequence[str]) -> bytes:
    return b"".join(json.dumps({"id": 1, "text": text}).encode() + b"\n" for text in texts)


def zst(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


def write_texts(folder: Path, texts: Sequence[str]) -> Path:
    for i, text in enumerate(texts):
        (folder / f"{i:04}.txt").write_bytes(text.encode())
    return folder


def _write_as(name: str, encode: Callable[[bytes], bytes]) -> Callable[[Path, Sequence[str]], Path]:
    def write(folder: Path, texts: Sequence[str]) -> Path:
        (folder / name).write_bytes(encode(jsonl(texts)))
        return folder / name

    return write


def _table(texts: Sequence[str]) -> pyarrow.Table:
    return pyarrow.table({"id": list(range(len(texts))), "text": list(texts)})


def write_parquet(folder: Path, texts: Sequence[str]) -> Path:
    path = folder / "a.parquet"
    options: dict[str, Any] = {"row_group_size": 3, "write_page_checksum": True}
    pyarrow.parquet.write_table(_table(texts), path, **options)
    return path


def write_arrow_file(folder: Path, texts: Sequence[str]) -> Path:
    path = folder / "a.arrow"
    table = _table(texts)
    with pyarrow.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return path


def write_dataset(folder: Path, texts: Sequence[str]) -> Path:
    """Saves what the library `datasets` calls a dataset, in two shards."""
    import datasets

    datasets.disable_progress_bars()
    saved = datasets.Dataset.from_dict({"text": list(texts)})
    saved.save_to_disk(folder / "saved", num_shards=min(2, len(texts)))
    return folder / "saved"


def write_arrayrecord(folder: Path, texts: Sequence[str | bytes]) -> Path:
    path = folder / "a.arrayrecord"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for text in texts:
        writer.write(text.encode() if isinstance(text, str) else text)
    writer.close()
    return path


def write_csv(folder: Path, texts: Sequence[str], suffix: str = ".csv") -> Path:
    path = folder / f"a{suffix}"
    with path.open("w", newline="") as file:
        rows = csv.writer(file, "excel" if suffix == ".csv" else "excel-tab")
        rows.writerows([("id", "text"), *enumerate(texts)])
    return path


def json_array(content: bytes) -> bytes:
    return json.dumps([json.loads(line) for line in content.splitlines()], indent=1).encode()


FORMATS: dict[str, Callable[[Path, Sequence[str]], Path]] = {
    "txt": write_texts,
    "jsonl": _write_as("a.jsonl", bytes),
    "jsonl.gz": _write_as("a.jsonl.gz", gzip.compress),
    "jsonl.zst": _write_as("a.jsonl.zst", zst),
    "json": _write_as("a.json", json_array),
    "json.gz": _write_as("a.json.gz", lambda content: gzip.compress(json_array(content))),
    "lines named json": _write_as("a.json", bytes),
    "csv": write_csv,
    "tsv": lambda folder, texts: write_csv(folder, texts, ".tsv"),
    "parquet": write_parquet,
    "arrow": write_arrow_file,
    "dataset": write_dataset,
    "arrayrecord": write_arrayrecord,
}
"""Each writes texts below a folder and returns the data.path to them."""

LLM_C_MAGIC = {np.dtype("<u2"): 20240520, np.dtype("<u4"): 20240801}


def llm_c(ids: np.ndarray, num_tokens: int | None = None) -> bytes:
    """Returns the .bin of llm.c: 256 int32, of which three say what follows."""
    header = np.zeros(256, "<i4")
    header[:3] = LLM_C_MAGIC[ids.dtype], 1, len(ids) if num_tokens is None else num_tokens
    return header.tobytes() + ids.tobytes()
