"""A text of each format from its file to a run that is resumed and evaluated."""

import csv
import gzip
import io
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from commands import call
from parts import slowly
from small_corpora import write_arrayrecord, write_dataset, zst
from small_prepare import sentences
from small_runs import tiny_run

TEXTS = [f"{line} And {i} more of them.\n" for i, line in enumerate(sentences(300))]
"""One text a document; of a file that is one document they follow one another."""
WHOLE = "".join(TEXTS).encode()
IDS = [token for text in TEXTS for token in (256, *text.encode())]
"""Of the tokenizer of bytes, a separator before each document."""


def write(folder: Path, name: str, content: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def lines_of(records: Sequence[object]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def rows_of(delimiter: str) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerows([("id", "text"), *((str(i), text) for i, text in enumerate(TEXTS))])
    return out.getvalue().encode()


def megatron(folder: Path) -> Path:
    lengths = np.array([1 + len(text.encode()) for text in TEXTS], "<i4")
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 4, len(lengths), 1)
    write(folder, "a.idx", head + lengths.tobytes())
    return write(folder, "a.bin", np.array(IDS, "<i4").tobytes())


def llm_c(folder: Path) -> Path:
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, len(IDS)
    return write(folder, "a.bin", header.tobytes() + np.array(IDS, "<u2").tobytes())


def table(folder: Path, column: str, values: list) -> Path:
    folder.mkdir()
    pyarrow.parquet.write_table(pyarrow.table({column: values}), folder / "a.parquet")
    return folder / "a.parquet"


def splits(folder: Path) -> Path:
    write(folder, "train-0.txt", b"".join(text.encode() for text in TEXTS[:250]))
    write(folder, "validation-0.txt", b"".join(text.encode() for text in TEXTS[250:]))
    write(folder, "test-0.txt", b"not to be read")
    return folder


def npy(folder: Path) -> Path:
    folder.mkdir()
    np.save(folder / "a.npy", np.array(IDS, np.uint16))
    return folder / "a.npy"


RECORDS = [{"text": text} for text in TEXTS]
NESTED = [{"data": {"title": str(i), "text": text}} for i, text in enumerate(TEXTS)]
FORMATS: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "txt": (lambda f: write(f, "a.txt", WHOLE), ()),
    "txt, marked": (
        lambda f: write(f, "a.txt", b"\xef\xbb\xbf" + WHOLE.replace(b"\n", b"\n<|endoftext|>\n")),
        ("--data.document_separator", "<|endoftext|>"),
    ),
    "txt.gz": (lambda f: write(f, "a.txt.gz", gzip.compress(WHOLE)), ()),
    "txt.zst": (lambda f: write(f, "a.txt.zst", zst(WHOLE)), ()),
    "md": (lambda f: write(f, "a.md", WHOLE), ()),
    "source": (lambda f: write(f, "a.rs", WHOLE), ()),
    "jsonl": (lambda f: write(f, "a.jsonl", lines_of(RECORDS)), ()),
    "jsonl.gz": (lambda f: write(f, "a.jsonl.gz", gzip.compress(lines_of(RECORDS))), ()),
    "jsonl, nested": (
        lambda f: write(f, "a.jsonl", lines_of(NESTED)),
        ("--data.text_field", "data.text"),
    ),
    "jsonl, template": (
        lambda f: write(f, "a.jsonl", lines_of(NESTED)),
        ("--data.text_template", "{data.title}: {data.text}"),
    ),
    "json": (lambda f: write(f, "a.json", json.dumps(RECORDS).encode()), ()),
    "csv": (lambda f: write(f, "a.csv", rows_of(",")), ()),
    "tsv": (lambda f: write(f, "a.tsv", rows_of("\t")), ()),
    "parquet": (lambda f: table(f, "text", TEXTS), ()),
    "parquet of ids": (
        lambda f: table(f, "input_ids", [list(text.encode()) for text in TEXTS]),
        ("--data.text_field", "input_ids"),
    ),
    "dataset": (lambda f: write_dataset(f, TEXTS), ()),
    "arrayrecord": (lambda f: (f.mkdir(), write_arrayrecord(f, TEXTS))[1], ()),
    "npy": (npy, ()),
    "bin": (lambda f: write(f, "a.bin", np.array(IDS, "<u2").tobytes()), ()),
    "bin, 32 bits": (
        lambda f: write(f, "a.bin", np.array(IDS, "<u4").tobytes()),
        ("--data.token_dtype", "uint32"),
    ),
    "bin of Megatron": (megatron, ()),
    "bin of llm.c": (llm_c, ()),
    "named splits": (splits, ()),
}
QUICK = "csv"


@pytest.mark.parametrize(
    "name",
    [QUICK, *slowly(*(name for name in FORMATS if name != QUICK))],
)
def test_a_text_of_each_format_is_prepared_trained_on_resumed_and_evaluated(
    tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    write_format, settings = FORMATS[name]
    path = write_format(tmp_path / "texts")
    tokenizer = ("--data.tokenizer", "bytes")
    given = ("--data.path", str(path), *settings, *tokenizer)
    code, output = call("prepare", *given, "--out", "data", "--num_workers", "1")
    assert code == 0, output
    code, output = call("inspect", "data", "--json")
    assert code == 0, output
    found = json.loads(output)["splits"]
    assert all(found[split]["tokens"] > 100 for split in ("train", "validation"))
    # Whatever the format, what is there is the same text: some 300 sentences of it.
    num_bytes = sum(found[split]["bytes"] for split in ("train", "validation"))
    extra = {"jsonl, template": sum(len(f"{i}: ") for i in range(len(TEXTS)))}.get(name, 0)
    assert num_bytes == len(WHOLE) + extra
    run = ("--data.path", "data", *tokenizer, "--run-dir", "run", "--optim.schedule", "constant")
    for num_steps in ("2", "4"):
        code, output = call("train", *tiny_run(*run, "--train.num_steps", num_steps))
        assert code == 0, output
    assert "resuming at step 2 of 4" in output
    code, output = call("eval", "run", "--json")
    assert code == 0, output
    assert 0 < json.loads(output.splitlines()[-1])["loss"] < 7
