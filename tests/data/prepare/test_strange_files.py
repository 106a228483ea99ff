"""Files that are damaged, hostile or foreign: told, never a traceback, and no text of them lost."""

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from small_corpora import corpus_config, texts_of
from small_prepare import small_sizes

import data.prepare.text.json_csv
import data.prepare.text.txt_jsonl
from configs.errors import SettingsError
from data.prepare.text.corpus import open_corpus
from data.prepare.text.text_records import ReadReport

MAGIC = b"MMIDIDX\0\0" + struct.pack("<QB", 1, 4)


def refusal(path: Path, **settings) -> str:
    with pytest.raises(SettingsError) as error:
        texts_of(corpus_config(path, **settings))
    return str(error.value)


def skipped(path: Path, **settings) -> tuple[list[str], dict[str, int]]:
    """Returns the texts, and what was left out of each file."""
    reading = ReadReport(skip=True)
    return texts_of(corpus_config(path, bad_records="skip", **settings), reading), reading.counts


@pytest.mark.parametrize(
    "index",
    [b"thirty bytes that are no index", b"TNTIDX\0\0" + struct.pack("<6q", 1, 4, 4, *[9] * 3)],
)
def test_an_idx_of_another_program_says_nothing(tmp_path, index):
    (tmp_path / "a.bin").write_bytes(np.arange(99, dtype="<u2").tobytes())
    (tmp_path / "a.idx").write_bytes(index)
    assert open_corpus(corpus_config(tmp_path)).files[0].dtype == "uint16"


@pytest.mark.parametrize(
    "index",
    [
        MAGIC[:12],
        MAGIC + struct.pack("<qq", -1, 1),
        MAGIC + struct.pack("<qq", 2**40, 1),
        MAGIC + struct.pack("<qqi", 2, 1, 40) + b"\0\0",
    ],
)
def test_an_idx_that_is_damaged_is_refused_or_left_aside(tmp_path, index):
    path = tmp_path / "a.bin"
    path.write_bytes(np.arange(40, dtype="<i4").tobytes())
    (tmp_path / "a.idx").write_bytes(index)
    assert f"{tmp_path}/a.idx must be the index of {path}" in refusal(path)
    assert open_corpus(corpus_config(path, token_dtype="int32")).files[0].dtype == "int32"


def damaged(content: bytes) -> bytes:
    """Returns a .gz whose header is whole and whose first block is not."""
    return content[:10] + b"\xff" * 20 + content[30:]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b'"te"xt\nrow\n', "line 1 is not CSV"),
        ("a.json.gz", damaged(gzip.compress(b"[]" * 99, mtime=0)), "cannot be read as jsonl"),
        ("a.json", b'{"a":' + b"[" * 100_000 + b"\n", "must hold a JSON array"),
    ],
)
def test_what_cannot_be_parsed_is_refused_and_spoils_no_folder(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    assert says in refusal(tmp_path / name)
    (tmp_path / "b.txt").write_text("good")
    assert skipped(tmp_path)[0] == ["good"]


def test_a_table_of_text_among_tables_of_ids_is_told(tmp_path):
    for name, column in (("a", [[1, 2]]), ("b", ["text"])):
        pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / f"{name}.parquet")
    assert "b.parquet cannot be read as token_rows" in refusal(tmp_path)
    assert skipped(tmp_path)[1] == {"b.parquet": 1}


@pytest.mark.parametrize("seed", [-1, 2**64, 10**70])
def test_a_seed_of_more_than_64_bits_is_refused(seed):
    with pytest.raises(SettingsError, match=rf"data\.validation_seed={seed} must be"):
        corpus_config(None, validation_seed=seed)


MARK = "<|é|>"


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("gap", ["", "\n", "\n\n\n", "\r\n \n\t\n"])
def test_a_document_begins_at_each_mark_wherever_a_part_ends(tmp_path, monkeypatch, gap, suffix):
    """The texts have no end of a line, so that a part ends within them, or within a mark."""
    monkeypatch.setattr(data.prepare.text.txt_jsonl, "_LINE_SEARCH_BYTES", 4)
    texts = ["a" * 13, "é" * 9, "b" * 16, "c" * 5]
    content = f"{MARK}{gap}".join(texts).encode()
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    for part_bytes in range(8, 40):
        small_sizes(monkeypatch, part_bytes=part_bytes)
        found = texts_of(corpus_config(path, document_separator=MARK))
        assert [text.strip() for text in found] == texts, part_bytes


def test_nothing_is_read_behind_a_row_of_csv_that_cannot_be(tmp_path):
    (tmp_path / "a.csv").write_text('text\none\n"a "b" c\nsecond half"\nlast\n')
    assert skipped(tmp_path) == (["one"], {"a.csv": 1})


def test_a_line_of_csv_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(data.prepare.text.json_csv, "_RECORD_CHARACTERS", 100)
    (tmp_path / "a.csv").write_text("text,b\none,1\n" + "a," * 100 + "\n")
    assert "line 3 is longer than 100 characters" in refusal(tmp_path)
    assert skipped(tmp_path) == (["one"], {"a.csv": 1})


@pytest.mark.parametrize("space", [0, 1, 60])
def test_a_second_array_is_found_behind_any_space(tmp_path, monkeypatch, space):
    first = json.dumps([{"text": "a"}])
    monkeypatch.setattr(data.prepare.text.json_csv, "_BLOCK_CHARACTERS", len(first) - 1)
    (tmp_path / "a.json").write_text(first + "\n" * space + first)
    assert "text follows the closing ] of the array" in refusal(tmp_path)


def test_two_columns_of_the_name_that_is_read_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text,id,id,text\na,1,2,b\n")
    assert "has 2 columns named text" in refusal(tmp_path)
    assert skipped(tmp_path) == ([], {"a.csv": 1})


def test_files_named_train_that_validate_are_said_to(tmp_path):
    for name in ("train.txt", "test.txt"):
        (tmp_path / name).write_text(name)
    corpus = open_corpus(corpus_config(tmp_path, validation_fraction=1))
    assert [file.name for file in corpus.files] == ["train.txt"]
    assert "1 (train.txt) to validate on, 1 (test.txt) excluded" in corpus.notes[0]
