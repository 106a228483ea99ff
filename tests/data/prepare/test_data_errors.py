"""What cannot be read is refused with its place in one line, or on request left out and counted."""

import gzip
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from small_corpora import (
    corpus_config,
    jsonl,
    llm_c,
    records_of,
    stored_documents,
    texts_of,
    write_arrayrecord,
    write_arrow_file,
    write_dataset,
    write_parquet,
    zst,
)

import data.prepare.text.source_files
from configs.data import DataConfig
from configs.errors import SettingsError
from data.prepare.text.text_records import ReadReport
from data.token_store import MANIFEST, open_store
from launch import cli

GOOD = "a good text\n"
MANY = [hashlib.sha512(b"%d" % i).hexdigest() for i in range(6000)]
"""So many, and so hard to compress, that some of it of them are read before what is damaged."""
IDS = np.arange(200, dtype="<u2")


@dataclass(frozen=True)
class Bad:
    """A bad file, what is said of it, and what else is in it."""

    name: str
    content: bytes | Callable[[Path], object]
    says: Sequence[str]
    """Begins right after the path of the file."""
    way_out: str = "or pass --data.bad-records skip to skip and count what cannot be read"
    reads: Sequence[str] = ()
    """The texts of the file that can be read; of many, those before the damage."""

    def write(self, folder: Path) -> None:
        """Writes the file, and beside it a good one."""
        folder.mkdir()
        if callable(self.content):
            self.content(folder)
        else:
            (folder / self.name).write_bytes(self.content)
        if self.is_text:
            (folder / "z.txt").write_text(GOOD)
        else:
            np.save(folder / "z.npy", IDS)

    @property
    def is_text(self) -> bool:
        """Whether it is not an array of tokens."""
        return not self.name.endswith((".npy", ".bin"))


def flipped(content: bytes, place: float) -> bytes:
    """Returns the content with a bit changed, so far into it."""
    changed = bytearray(content)
    changed[int(len(changed) * place)] ^= 4
    return bytes(changed)


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def table(**columns: object) -> Callable[[Path], None]:
    return lambda folder: pyarrow.parquet.write_table(pyarrow.table(columns), folder / "a.parquet")


def damaged(
    write: Callable[[Path, Sequence[str]], Path],
    damage: Callable[[bytes], bytes],
    texts: Sequence[str] = tuple(MANY),
) -> Callable[[Path], None]:
    def write_damaged(folder: Path) -> None:
        path = write(folder, texts)
        if path.is_dir():
            (path,) = path.glob("*.arrow")
        path.write_bytes(damage(path.read_bytes()))

    return write_damaged


def npy(array: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / "a.npy", array, allow_pickle=True)


def write_lying_arrow(folder: Path) -> None:
    """Writes a column of text that says to go on far outside of the file."""
    path = write_arrow_file(folder, ["one", "two"])
    true, lie = (np.array([0, 3, end], "<i4").tobytes() for end in (6, 2**30))
    content = path.read_bytes()
    assert content.count(true) == 1
    path.write_bytes(content.replace(true, lie))


def npz(folder: Path) -> None:
    np.savez(folder / "a", ids=IDS)
    (folder / "a.npz").rename(folder / "a.npy")


LINES = b'{"text": "one"}\n\n%s\n{"text": "four"}\n'
REST = ["one", "four"]
UTF8_WAY_OUT = "convert it, pass --data.invalid-utf8 replace to put U+FFFD there, or pass"
FIELD_WAY_OUT = "name the field that holds the text, or pass --data.bad-records skip"
LATIN = "café au lait".encode("latin-1")
LATIN_LINES = b"o\rne\r\ntwo\n" + LATIN + b"\nfour\n"
NOT_UTF8 = "is not UTF-8 (byte 0xe9 at offset"
MANY_JSONL = jsonl(MANY)

BAD = {
    "a gzip cut short": Bad(
        "a.jsonl.gz", half(gzip.compress(MANY_JSONL)), [" cannot be read as jsonl (Com"], reads=MANY
    ),
    "a gzip with a flipped bit": Bad(
        "a.jsonl.gz",
        flipped(gzip.compress(MANY_JSONL), 0.5),
        [" cannot be read as jsonl ("],
        reads=MANY,
    ),
    "a gzip with a wrong checksum": Bad(
        "a.jsonl.gz",
        gzip.compress(MANY_JSONL)[:-8] + bytes(8),
        [" cannot be read as jsonl (CRC check failed"],
        reads=MANY,
    ),
    "a gzip that is not one": Bad(
        "a.txt.gz", b"plain text", [" cannot be read as text (Not a gzipped file"]
    ),
    "a gzip with something after it": Bad(
        "a.jsonl.gz",
        gzip.compress(jsonl(["one"])) + b"rubbish",
        [" cannot be read as jsonl (Not a gzipped file"],
        reads=["one"],
    ),
    "a zstd cut short": Bad(
        "a.jsonl.zst", half(zst(MANY_JSONL)), [" cannot be read as jsonl (Truncated"], reads=MANY
    ),
    "a zstd without its last bytes": Bad(
        "a.txt.zst", zst(MANY_JSONL)[:-2], [" cannot be read as text (Truncated"]
    ),
    "a zstd with a flipped bit": Bad(
        "a.jsonl.zst",
        flipped(zst(MANY_JSONL), 0.7),
        [" cannot be read as jsonl (ZSTD decompress failed"],
        reads=MANY,
    ),
    "a zstd that is not one": Bad(
        "a.txt.zst", b"plain text", [" cannot be read as text (ZSTD decompress failed"]
    ),
    "a parquet cut short": Bad(
        "a.parquet", damaged(write_parquet, half), [" cannot be read as parquet (after row 0: "]
    ),
    "a parquet with a flipped bit": Bad(
        "a.parquet",
        damaged(
            write_parquet,
            lambda content: content.replace(MANY[3000].encode(), MANY[3001].encode()),
        ),
        [" cannot be read as parquet (after row "],
        reads=MANY,
    ),
    "a parquet that is not one": Bad(
        "a.parquet", b"text,id\none,1\n", [" cannot be read as parquet (after row 0: "]
    ),
    "an empty parquet": Bad("a.parquet", b"", [" cannot be read as parquet (after row 0: "]),
    "a dataset cut short": Bad(
        "saved/data-00000-of-00001.arrow",
        damaged(lambda folder, texts: write_dataset(folder, ["long " * 9999]), half),
        [" cannot be read as arrow (after row 0: "],
    ),
    "a dataset whose offsets lie": Bad(
        "a.arrow",
        write_lying_arrow,
        [" cannot be read as arrow (after row 0: "],
    ),
    "an arrayrecord cut short": Bad(
        "a.arrayrecord",
        damaged(write_arrayrecord, half),
        [" cannot be read as arrayrecord (Corrupted"],
    ),
    "an arrayrecord that is not one": Bad(
        "a.arrayrecord", b"text", [" cannot be read as arrayrecord (ArrayRecord file should be"]
    ),
    "a line that is not JSON": Bad(
        "a.jsonl",
        LINES % b'{"text": two}',
        [", line 3 is not JSON (Expecting value: character 10); repair it, "],
        reads=REST,
    ),
    "a line of JSON that nests without end": Bad(
        "a.jsonl", LINES % (b"[" * 200_000), [", line 3 is not JSON (maximum"], reads=REST
    ),
    "a line of JSON with too large a number": Bad(
        "a.jsonl",
        LINES % (b'{"text": "two", "n": ' + b"7" * 5000 + b"}"),
        [", line 3 is not JSON (Exceeds the limit"],
        reads=REST,
    ),
    "a line without the field": Bad(
        "a.jsonl",
        LINES % b'{"title": "x", "body": "y"}',
        [", line 3 has no data.text_field=text, but has: title, body; "],
        FIELD_WAY_OUT,
        REST,
    ),
    "a line with line ends in the name of a field": Bad(
        "a.jsonl",
        LINES % b'{"a\\nb": "x"}',
        [", line 3 has no data.text_field=text, but has: a b; "],
        FIELD_WAY_OUT,
        REST,
    ),
    "a field that is a number": Bad(
        "a.jsonl",
        LINES % b'{"text": 3}',
        [", line 3 has int in data.text_field=text, not text; "],
        FIELD_WAY_OUT,
        REST,
    ),
    "a field that is null": Bad(
        "a.jsonl",
        LINES % b'{"text": null}',
        [", line 3 has null in data.text_field=text"],
        FIELD_WAY_OUT,
        REST,
    ),
    "a line that is a list": Bad(
        "a.jsonl",
        LINES % b'["text"]',
        [", line 3 has no data.text_field=text, but has: list; "],
        FIELD_WAY_OUT,
        REST,
    ),
    "a column that is missing": Bad(
        "a.parquet",
        table(title=["x"], body=["y"]),
        [" has no data.text_field=text, but has: title, body; "],
        FIELD_WAY_OUT,
    ),
    "a column that is not text": Bad(
        "a.parquet", table(text=[3]), [", row 1 has int in data.text_field="], FIELD_WAY_OUT
    ),
    "a row that is null": Bad(
        "a.parquet",
        table(text=["one", None, "three"]),
        [", row 2 has null in data.text_field=text, not text; "],
        FIELD_WAY_OUT,
        ["one", "three"],
    ),
    "a .txt that is not UTF-8": Bad(
        "a.txt",
        LATIN_LINES,
        [f", line 3 {NOT_UTF8} 3); "],
        UTF8_WAY_OUT,
        ["o\rne\r\ntwo\nfour\n"],
    ),
    "a .txt.gz that is not UTF-8": Bad(
        "a.txt.gz",
        gzip.compress(LATIN_LINES),
        [f", line 3 {NOT_UTF8} 3); "],
        UTF8_WAY_OUT,
        ["o\rne\r\ntwo\nfour\n"],
    ),
    "a .jsonl that is not UTF-8": Bad(
        "a.jsonl",
        LINES % (b'{"text": "%s"}' % LATIN),
        [f", line 3 {NOT_UTF8} 13); "],
        UTF8_WAY_OUT,
        REST,
    ),
    "a .jsonl.zst that is not UTF-8": Bad(
        "a.jsonl.zst",
        zst(LINES % (b'{"text": "%s"}' % LATIN)),
        [f", line 3 {NOT_UTF8} 13); "],
        UTF8_WAY_OUT,
        REST,
    ),
    "a .jsonl with half a character in it": Bad(
        "a.jsonl",
        LINES % b'{"text": "ab\\ud83d"}',
        [", line 3 is not UTF-8 (byte 0xed at offset 2); "],
        UTF8_WAY_OUT,
        REST,
    ),
    **{
        f"a parquet that is not UTF-8, of {kind}": Bad(
            "a.parquet",
            table(text=pyarrow.array([b"one", LATIN, b"three"], raw).view(kind)),
            [f", row 2 {NOT_UTF8} 3); "],
            UTF8_WAY_OUT,
            ["one", "three"],
        )
        for kind, raw in (
            ("string", "binary"),
            ("large_string", "large_binary"),
            ("binary", "binary"),
        )
    },
    "an arrayrecord that is not UTF-8": Bad(
        "a.arrayrecord",
        lambda folder: write_arrayrecord(folder, ["one", LATIN, "three"]),
        [f", record 2 {NOT_UTF8} 3); "],
        UTF8_WAY_OUT,
        ["one", "three"],
    ),
    "a .npy of floats": Bad(
        "a.npy",
        npy(np.ones(5)),
        [" cannot be read as tokens (it holds float64 of shape (5,), not integers on one axis); "],
    ),
    "a .npy of two axes": Bad(
        "a.npy", npy(np.ones((2, 3), int)), [" cannot be read as tokens (it holds int64 of shape"]
    ),
    "a .npy of pickled objects": Bad(
        "a.npy",
        npy(np.array([{}, []], object)),
        [" cannot be read as tokens (Array can't be memory-mapped: Python objects in dtype.); "],
    ),
    "a .npy that is a .npz": Bad("a.npy", npz, [" cannot be read as tokens ("]),
    "a .npy with a damaged header": Bad(
        "a.npy",
        damaged(
            lambda folder, texts: (np.save(folder / "a.npy", IDS), folder / "a.npy")[1],
            lambda content: content.replace(b"}", b"("),
        ),
        [" cannot be read as tokens ("],
    ),
    "an empty .npy": Bad("a.npy", b"", [" cannot be read as tokens ("]),
    "a .bin of odd length": Bad("a.bin", bytes(7), [" cannot be read as tokens (Size of"]),
    "an empty .bin": Bad("a.bin", b"", [" cannot be read as tokens (cannot mmap an empty"]),
    "a .bin of llm.c cut short": Bad(
        "a.bin",
        llm_c(IDS)[:-20],
        [" cannot be read as tokens (it holds 190 tokens, its header says 200); "],
    ),
}


def prepare(capsys, path: Path | str, out: Path, *options: str) -> tuple[int, str]:
    """Runs `./tessera prepare` in this process; returns its exit code and what is on stderr."""
    words = ["prepare", "--data.path", str(path), "--out", str(out), "--data.tokenizer", "bytes"]
    code = cli.main([*words, "--num-workers", "1", *options])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_read_stops_with_its_place_and_a_way_out(tmp_path, capsys, what):
    bad = BAD[what]
    bad.write(tmp_path / "texts")
    code, said = prepare(capsys, tmp_path / "texts", tmp_path / "out")
    assert code == 2, said
    assert said.startswith(f"tessera: data.path: {tmp_path}/texts/{bad.name}")
    assert said.count("\n") == 1
    assert said.endswith("\n")
    for words in bad.says:
        assert f"{tmp_path}/texts/{bad.name}{words}" in said
    assert bad.way_out in said
    assert not (tmp_path / "out" / MANIFEST).exists()


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_read_is_left_out_and_counted_on_request(tmp_path, capsys, what):
    bad = BAD[what]
    bad.write(tmp_path / "texts")
    options = ["--data.bad-records", "skip", "--data.validation-fraction", "0"]
    code, said = prepare(capsys, tmp_path / "texts", tmp_path / "out", *options)
    assert (code, said) == (0, "")
    store = open_store(tmp_path / "out")
    assert store.report["unread"] == {bad.name: 1}
    (example,) = store.report["unread_examples"]
    for words in bad.says:
        assert example in f"{bad.name}{words}" or f"{bad.name}{words.split(';')[0]}" in example
    assert "1 records or files skipped" in store.describe()
    if not bad.is_text:
        ids = store.train.read(0, store.train.num_tokens)
        assert ids.tolist() == [256, *range(200), 256]
        return
    *found, good = stored_documents(store, "train")
    assert good == GOOD
    if bad.reads is MANY:  # what is damaged may be read altered before a checksum tells
        assert found[:2000] == MANY[:2000]
    else:
        assert found == list(bad.reads)


def test_invalid_utf8_is_replaced_on_request_in_every_format(tmp_path):
    wanted = "caf\ufffd au lait"
    (tmp_path / "a.txt").write_bytes(LATIN)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(LATIN))
    (tmp_path / "c.jsonl").write_bytes(b'{"text": "%s"}' % LATIN)
    table(text=pyarrow.array([LATIN]))(tmp_path)
    (tmp_path / "a.parquet").rename(tmp_path / "d.parquet")
    write_arrayrecord(tmp_path, [LATIN]).rename(tmp_path / "e.arrayrecord")
    (tmp_path / "f.jsonl").write_text('{"text": "\\ud83d"}')
    *found, surrogate = texts_of(corpus_config(tmp_path, invalid_utf8="replace"))
    assert found == [wanted] * 5
    assert set(surrogate) == {"\ufffd"}


def test_all_that_is_left_out_is_counted_and_some_of_it_is_shown(tmp_path):
    lines = ["{"] * 30 + ['{"text": "good"}'] + ['{"text": 1}'] * 30
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.txt").write_bytes(b"\xff\nrest\n\xff\n")
    reading = ReadReport(skip=True)
    found = [record.text for _, _, record in records_of(corpus_config(tmp_path), reading)]
    assert found == ["good", "rest\n"]
    assert reading.counts == {"a.jsonl": 60, "b.txt": 2}
    assert len(reading.examples) == 20
    assert reading.examples[19].startswith("a.jsonl, line 20 is not JSON")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.gz", "a.parquet"])
@pytest.mark.parametrize("bad_records", ["stop", "skip"])
def test_a_source_without_text_is_refused(tmp_path, capsys, name, bad_records):
    if name.endswith(".parquet"):
        table(text=pyarrow.array([], pyarrow.string()))(tmp_path)
    else:
        (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    options = ["--data.bad-records", bad_records]
    code, said = prepare(capsys, tmp_path / name, tmp_path / "out", *options)
    assert code == 2
    assert said.startswith(f"tessera: data.path={tmp_path}/{name} holds no text; give one that is")
    assert said.count("\n") == 1
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_a_source_of_which_nothing_can_be_read_is_refused(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text("{\n")
    options = ["--data.bad-records", "skip"]
    code, said = prepare(capsys, tmp_path / "a.jsonl", tmp_path / "out", *options)
    assert code == 2
    assert "holds no text" in said


@pytest.mark.parametrize("ids", [[1, 2, 257], [1, 2, -1], [70_000, 1, 2]])
@pytest.mark.parametrize("bad_records", ["stop", "skip"])
def test_a_token_that_is_not_in_the_vocabulary_is_refused(tmp_path, capsys, ids, bad_records):
    np.save(tmp_path / "a.npy", np.array([*range(100), *ids]))
    options = ["--data.bad-records", bad_records]
    code, said = prepare(capsys, tmp_path / "a.npy", tmp_path / "out", *options)
    assert code == 2, said
    assert f"{tmp_path}/a.npy" in said
    wrong, place = next((id_, i) for i, id_ in enumerate(ids) if not 0 <= id_ < 257)
    assert f"has the token {wrong} at {100 + place}, but ids of the tokenizer are 0 to 256" in said
    assert "give --data.tokenizer the one that made the file" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_a_bad_line_found_by_a_worker_process_has_its_place(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data.prepare.text.source_files, "RANGE_BYTES", 100)
    monkeypatch.setattr(data.prepare.text.source_files, "TASK_BYTES", 400)
    lines = [json.dumps({"text": "é" * (i % 7)}) for i in range(100)]
    lines[77] = "{"
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    options = ["--num-workers", "2"]
    code, said = prepare(capsys, tmp_path / "a.jsonl", tmp_path / "out", *options)
    assert code == 2
    assert f"{tmp_path}/a.jsonl, line 78 is not JSON" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_after_a_refusal_the_same_folder_can_be_made_with_other_settings(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_bytes(LINES % b"{" * 3)
    words = (capsys, tmp_path / "a.jsonl", tmp_path / "out")
    assert prepare(*words)[0] == 2
    assert prepare(*words, "--data.bad-records", "skip") == (0, "")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["unread"] == {"a.jsonl": 3}


def test_the_command_ends_with_2_and_one_line_that_says_where(tmp_path, environment):
    (tmp_path / "a.jsonl").write_bytes(LINES % b"{")
    words = ["--data.path", tmp_path / "a.jsonl", "--out", tmp_path / "out"]
    command = [sys.executable, "-m", "launch", "prepare", *words, "--data.tokenizer", "bytes"]
    ran = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert ran.returncode == 2
    (said,) = ran.stderr.splitlines()
    assert f"{tmp_path}/a.jsonl, line 3 is not JSON" in said
    assert not (tmp_path / "out" / MANIFEST).exists()


SOURCES = {"sequence_len": 8, "mixture": ("web=a.txt", "code=b.txt")}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"weights": (1.0, 0.0)},
            "data.weights=1.0 0.0 must all be above zero, but code=b.txt has 0.0; leave it out of",
        ),
        ({"weights": (-1.0, 1.0)}, "must all be above zero, but web=a.txt has -1.0; leave it out"),
        ({"weights": (float("nan"), 1.0)}, "must all be above zero, but web=a.txt has nan"),
        ({"weights": (1.0, float("inf"))}, "but code=b.txt has inf"),
        (
            {"weights": (1.0,)},
            "data.weights=1.0 must have one weight for each of data.mixture=web=a.txt code=b.txt",
        ),
        ({"weights": (1.0, 2.0, 3.0)}, "data.weights=1.0 2.0 3.0 must have one weight for each of"),
        ({"mixture": (), "weights": (1.0,)}, "data.weights=1.0 must have one weight for each of"),
        ({"phases": ("9",)}, "data.phases=9 must be STEP:WEIGHT,WEIGHT,..."),
        ({"phases": ("x:1,2",)}, "data.phases=x:1,2 must be STEP:WEIGHT,WEIGHT,..."),
        ({"phases": ("9:1,b",)}, "data.phases=9:1,b must be STEP:WEIGHT,WEIGHT,..."),
        ({"phases": ("9:1",)}, "data.phases=1.0 must have one weight for each of data.mixture=web"),
        ({"phases": ("9:1,0",)}, "data.phases=1.0 0.0 must all be above zero, but code=b.txt has"),
        ({"phases": ("0:1,1",)}, "data.phases=0 must be at least 1"),
        ({"phases": ("-5:1,1",)}, "data.phases=-5 must be at least 1"),
        ({"phases": ("9:1,2", "5:2,1")}, "data.phases=9:1,2 5:2,1 must be in the order of their"),
        ({"phases": ("9:1,2", "9:2,1")}, "data.phases=9:1,2 9:2,1 must be in the order of their"),
        ({"path": "c.txt"}, "data.path=c.txt and data.mixture=web=a.txt code=b.txt must not both"),
        ({"mixture": ("a.txt",)}, "data.mixture=a.txt must be NAME=PATH, the name of letters"),
        ({"mixture": ("web=",)}, "data.mixture=web= must be NAME=PATH"),
        ({"mixture": ("a/b=c",)}, "data.mixture=a/b=c must be NAME=PATH"),
        ({"mixture": ("a=b", "a=c")}, "data.mixture=a=b a=c must not use a twice"),
        ({"validation": ("web=c.txt",)}, "must not use a name twice: web code web"),
        ({"validation": ("c.txt",)}, "data.validation=c.txt must be NAME=PATH"),
    ],
)
def test_sources_that_do_not_fit_are_refused_with_both_values(changes, says):
    with pytest.raises(SettingsError) as error:
        DataConfig(**{**SOURCES, **changes})
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_phases_are_the_first_weights_and_then_those_of_each_step():
    config = DataConfig(**SOURCES, weights=(3.0, 1.0), phases=("100:1,1", "2000:.5,2e1"))
    wanted = [(0, (3.0, 1.0)), (100, (1.0, 1.0)), (2000, (0.5, 20.0))]
    assert config.weight_phases() == wanted
