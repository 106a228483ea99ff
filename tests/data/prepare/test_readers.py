"""The same text comes out of every format, whatever the parts it is read in."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parts import slowly
from small_corpora import (
    FORMATS,
    corpus_config,
    documents_of,
    jsonl,
    llm_c,
    prepared,
    records_of,
    texts_of,
    write_dataset,
    write_texts,
    zst,
)

import data.prepare.text.source_files
import data.prepare.text.token_files
import data.prepare.text.txt_jsonl
from configs.errors import SettingsError
from data.prepare.text.text_records import ReadReport

TEXTS = ["one\n", "é € 🙂", "\r\ncarriage\rreturns\n", "\0\ufeff\t ", "x" * 5000, "last", '"}\\']

COMPRESS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zst}

quickly = settings(
    max_examples=60,
    deadline=None,
    # A file is written over in each example.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@contextmanager
def ranges_of(num_bytes: int, line_search: int = 2**20) -> Iterator[None]:
    """Has files read in ranges of so many bytes, cut at lines that end within others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.prepare.text.source_files, "RANGE_BYTES", num_bytes)
        patch.setattr(data.prepare.text.txt_jsonl, "RANGE_BYTES", num_bytes)
        patch.setattr(data.prepare.text.txt_jsonl, "_LINE_SEARCH_BYTES", line_search)
        yield


texts = st.text("ab é€🙂\n\r", max_size=80)
sizes = st.integers(1, 24)
line_ends = st.sampled_from(["\n", "\r\n", "  \n"])


@st.composite
def jsonl_files(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, str]]]:
    """Draws a .jsonl and the (number, text) of its lines: blank, short, long, by hand."""
    content, wanted = "", []
    number = draw(st.integers(0, 12))
    for i in range(number):
        text = draw(st.none() | texts)
        if text is not None:
            content += json.dumps({"text": text}, ensure_ascii=draw(st.booleans()))
        if text:
            wanted.append((i, text))
        content += draw(line_ends)
    if draw(st.booleans()):
        content += '{"text": "no end"}'
        wanted.append((number, "no end"))
    return content.encode(), wanted


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_texts_come_out_of_every_format(tmp_path, form):
    assert texts_of(corpus_config(FORMATS[form](tmp_path, TEXTS))) == TEXTS


@pytest.mark.parametrize("form", FORMATS)
def test_a_document_is_named_by_its_file_and_its_line_from_one(tmp_path, form):
    path = FORMATS[form](tmp_path, TEXTS)
    names = [name for name, _ in documents_of(corpus_config(path))]
    if form == "txt":
        assert names == [f"{i:04}.txt" for i in range(7)]
    elif form == "dataset":  # two shards, of four and of three
        shards = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
        assert names == [f"{shards[i // 4]}:{i % 4 + 1}" for i in range(7)]
    else:
        assert names == [f"{path.name}:{i + 1}" for i in range(7)]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_text_file_is_one_document_byte_for_byte_but_for_its_mark(tmp_path, suffix):
    text = "one\r\ntwo\rthree\n\n\0\t end "
    (tmp_path / f"a.txt{suffix}").write_bytes(COMPRESS[suffix](f"\ufeff{text}".encode()))
    config = corpus_config(tmp_path / f"a.txt{suffix}")
    assert documents_of(config) == [(f"a.txt{suffix}", text)]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("form", ["txt", "jsonl"])
def test_files_that_were_compressed_in_pieces_are_read_to_their_end(tmp_path, suffix, form):
    """As pigz, pzstd and cat make them: several members or frames, some of them empty."""
    pieces = [jsonl([str(i)] * 100) for i in range(5)]
    compressed = [COMPRESS[suffix](piece) for piece in [*pieces, b"", pieces[0]]]
    (tmp_path / f"a.{form}{suffix}").write_bytes(b"".join(compressed))
    found = texts_of(corpus_config(tmp_path / f"a.{form}{suffix}"))
    whole = b"".join(pieces) + pieces[0]
    lines = [json.loads(line)["text"] for line in whole.splitlines()]
    assert found == ([whole.decode()] if form == "txt" else lines)


def test_blank_lines_and_empty_texts_are_no_documents_but_count_as_lines(tmp_path):
    lines = ['{"body": "one\\ntwo", "id": 1}', "", '{"body": ""}', ' {"body": "\u00e9\\u00e9"} ']
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    config = corpus_config(tmp_path / "a.jsonl", text_field="body")
    assert documents_of(config) == [("a.jsonl:1", "one\ntwo"), ("a.jsonl:4", "éé")]


@pytest.mark.parametrize("kind", ["large_string", "binary", "dictionary<string>"])
def test_a_column_of_text_may_have_any_of_the_types_of_text(tmp_path, kind):
    column = pyarrow.array(TEXTS)
    if kind == "dictionary<string>":
        column = column.dictionary_encode()
    else:
        column = column.cast({"large_string": "large_string", "binary": "binary"}[kind])
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert texts_of(corpus_config(tmp_path / "a.parquet")) == TEXTS


def test_a_saved_dataset_is_read_without_its_caches_and_older_shards(tmp_path):
    write_dataset(tmp_path, ["of", "an", "earlier", "day"])
    for shard in (tmp_path / "saved").glob("*.arrow"):
        shard.rename(shard.with_name(f"{shard.name[:10]}-of-00003.arrow"))
    path = write_dataset(tmp_path, TEXTS)
    (path / "cache-0123456789abcdef.arrow").write_bytes(b"of a map")
    assert texts_of(corpus_config(path)) == TEXTS


@quickly
@given(text=texts, num_bytes=sizes, line_search=st.integers(5, 24))  # longer than a character
@pytest.mark.parametrize("suffix", COMPRESS)
def test_parts_of_a_text_join_to_the_whole(tmp_path, suffix, text, num_bytes, line_search):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](text.encode()))
    with ranges_of(num_bytes, line_search):
        pieces = [record for _, _, record in records_of(corpus_config(path))]
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.begins for piece in pieces] == [i == 0 for i in range(len(pieces))]
    assert all(piece.text for piece in pieces)


@quickly
@given(
    lines=st.lists(st.text("aé🙂\r", max_size=4), max_size=30),
    num_bytes=st.integers(20, 60),
)
@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_text_of_short_lines_is_cut_only_after_a_line(tmp_path, suffix, lines, num_bytes):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix]("\n".join(lines).encode()))
    with ranges_of(num_bytes):
        *pieces, _ = [None, *(record.text for _, _, record in records_of(corpus_config(path)))]
    assert all(piece.endswith("\n") for piece in pieces[1:] if piece)


@quickly
@given(file=jsonl_files(), num_bytes=sizes, line_search=sizes)
@pytest.mark.parametrize("suffix", COMPRESS)
def test_parts_of_a_jsonl_have_all_its_records_and_their_lines(
    tmp_path, suffix, file, num_bytes, line_search
):
    content, wanted = file
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](content))
    with ranges_of(num_bytes, line_search):
        found = list(records_of(corpus_config(path)))
    assert [(number, record.text) for _, number, record in found] == wanted
    assert all(record.begins for _, _, record in found)


@quickly
@given(
    before=st.lists(st.sampled_from(["good", "é" * 20, ""]), max_size=20),
    after=st.integers(0, 5),
    num_bytes=st.integers(50, 90),  # longer than a line: of a longer one, pieces are left out
)
@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("form", ["txt", "jsonl"])
def test_a_bad_line_is_named_by_its_number_whatever_the_parts(
    tmp_path, form, suffix, before, after, num_bytes
):
    good = [text if form == "txt" or not text else f'{{"text": "{text}"}}' for text in before]
    rest = ["rest" if form == "txt" else '{"text": "rest"}'] * after
    bad = b"bad \xff" if form == "txt" else b"{bad"
    lines = [line.encode() for line in good] + [bad] + [line.encode() for line in rest]
    path = tmp_path / f"a.{form}{suffix}"
    path.write_bytes(COMPRESS[suffix](b"\n".join(lines)))
    place = f"a.{form}{suffix}, line {len(good) + 1} is not {'UTF-8' if form == 'txt' else 'JSON'}"
    with ranges_of(num_bytes):
        with pytest.raises(SettingsError) as error:
            list(records_of(corpus_config(path)))
        assert f"{tmp_path}/{place}" in str(error.value)
        reading = ReadReport(skip=True)
        found = [record.text for _, _, record in records_of(corpus_config(path), reading)]
    assert reading.counts == {path.name: 1}
    (example,) = reading.examples
    assert example.startswith(place)
    if form == "jsonl":
        assert found == [text for text in before if text] + ["rest"] * after
    else:
        left = ["".join(f"{text}\n" for text in before), "\n".join(["rest"] * after)]
        assert "".join(found) == "".join(left)


def test_a_text_begins_a_document_though_its_first_piece_cannot_be_read(tmp_path):
    (tmp_path / "a.txt").write_text("before")
    (tmp_path / "b.txt").write_bytes(b"\xff" + b"b" * 6 + b"\ntext\n")
    with ranges_of(64, line_search=4):
        config = corpus_config(tmp_path, bad_records="skip")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(data.prepare.text.txt_jsonl, "RANGE_BYTES", 8)
            patch.setattr(data.prepare.text.source_files, "RANGE_BYTES", 2**20)
            assert texts_of(config, ReadReport(skip=True)) == ["before", "text\n"]


def test_the_index_of_a_prepared_folder_leads_to_the_lines_of_its_files(tmp_path, monkeypatch):
    """Over parts and tasks, blank lines, and files whose records are not lines."""
    monkeypatch.setattr(data.prepare.text.source_files, "TASK_BYTES", 90)
    folder = tmp_path / "texts"
    folder.mkdir()
    lines = ["", *(json.dumps({"text": f"{i} é" * (i % 5)}) for i in range(40)), "", ""]
    (folder / "a.jsonl").write_text("\n".join(lines * 2))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    write_texts(folder, ["x" * 300, "y"])
    FORMATS["parquet"](folder, [f"row {i}" for i in range(7)])
    with ranges_of(64):
        store = prepared(corpus_config(folder, validation_fraction=0), tmp_path / "out")
    wanted = {
        "0000.txt": {0: "x" * 300},
        "0001.txt": {0: "y"},
        "a.jsonl": dict(enumerate(lines * 2)),
        "a.parquet": {i: json.dumps({"text": f"row {i}"}) for i in range(7)},
        "b.jsonl.gz": dict(enumerate(lines)),
    }
    assert len(store.manifest["splits"]["train"]["shards"]) > 20
    places = []
    for start in store.train.starts.tolist():
        place = store.train.locate(start)
        name = store.files[place.file]["name"]
        line = wanted[name][place.number]
        text = line if name.endswith(".txt") else json.loads(line)["text"]
        assert store.tokenizer.decode(store.train.document(place.document)) == text
        places.append((name, place.number))
    assert len(set(places)) == len(places) == 2 + 32 * 2 + 7 + 32


TOKENS = np.array([3, 256, 0, 7, 7, 255, 256, 1] * 40, "<u2")


@pytest.mark.parametrize("num_bytes", [3, 64, 10_000])
@pytest.mark.parametrize("form", ["nanoGPT", "llm.c u2", "llm.c u4", "npy u2", "npy i8", "npy >u4"])
def test_every_token_of_an_array_is_read_once_and_in_order(tmp_path, monkeypatch, form, num_bytes):
    monkeypatch.setattr(data.prepare.text.token_files, "_TOKENS_AT_ONCE", 50)
    path = tmp_path / ("a.npy" if form.startswith("npy") else "a.bin")
    if form == "nanoGPT":
        TOKENS.tofile(path)
    elif form.startswith("llm.c"):
        path.write_bytes(llm_c(TOKENS.astype(f"<{form[-2:]}")))
    else:
        np.save(path, TOKENS.astype(form.split()[1]))
    with ranges_of(num_bytes):
        found = [record for _, _, record in records_of(corpus_config(path))]
    pieces = [piece.ids for piece in found if piece.ids is not None]
    assert np.concatenate(pieces).tolist() == TOKENS.tolist()
    starts = np.cumsum([0, *map(len, pieces)])[:-1].tolist()
    assert [piece.number for piece in found] == starts
    assert [piece.begins for piece in found] == [start == 0 for start in starts]


MEASURE = """
import itertools, re, sys
from pathlib import Path
from configs.data import PrepareConfig
from data.prepare.text.corpus import open_corpus
from data.prepare.text.readers import read_range
from data.prepare.text.text_records import ReadReport
import pyarrow.parquet

def megabytes():  # not ru_maxrss, which a process inherits from the one that started it
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

config = PrepareConfig(path=sys.argv[1])
corpus = open_corpus(config)
Path("/proc/self/clear_refs").write_text("5")  # forgets what the imports took
before = megabytes()
records = (
    record
    for part in itertools.chain(*corpus.tasks)
    for record in read_range(part, corpus.files[part.file], config, ReadReport(skip=False))
)
print(sum(len(record.text) for record in records), megabytes() - before)
"""
_MB = 10**6


def write_large(path: Path) -> int:
    """Writes 200 MB of text, quickly, and returns its characters."""
    texts = ["word " * 200] * 2000
    if path.name == "a.txt":
        with path.open("wb") as file:
            file.truncate(200 * _MB)  # a hole, read as NUL: one line without an end
        return 200 * _MB
    if path.suffix == ".parquet":
        table = pyarrow.table({"text": [f"{i} {text}" for i, text in enumerate(texts)]})
        with pyarrow.parquet.ParquetWriter(path, table.schema, use_dictionary=False) as writer:
            for _ in range(100):
                writer.write_table(table)
        return 100 * sum(len(text.as_py()) for text in table["text"])
    compressed = COMPRESS[path.suffix](jsonl(texts))
    path.write_bytes(compressed * 100)
    return 200 * _MB if ".jsonl" in path.name else 100 * len(jsonl(texts))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    "name",
    [
        "a.txt",
        "a.jsonl.gz",
        *slowly("a.txt.gz", "a.jsonl.zst", "a.parquet"),
    ],
)
def test_memory_does_not_grow_with_the_corpus(tmp_path, environment, name):
    num_characters = write_large(tmp_path / name)
    command = [sys.executable, "-c", MEASURE, tmp_path / name]
    ran = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found, megabytes = ran.stdout.split()
    assert int(found) == num_characters
    # Up to 96 were seen: a part of 16 MiB as bytes, as copies of them and as characters.
    assert float(megabytes) < 150


def test_the_line_of_a_bad_record_is_that_of_the_file_as_it_is_now(tmp_path):
    path = tmp_path / "a.txt"
    for content, line in ((b"aaaaaaaaa\nbad \xff", 2), (b"aaaa\naaaa\nworse \xff", 3)):
        path.write_bytes(content)
        with ranges_of(10), pytest.raises(SettingsError, match=f"line {line} is not UTF-8"):
            list(records_of(corpus_config(path)))
