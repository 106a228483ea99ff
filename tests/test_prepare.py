"""A prepared folder holds the text, all of it, and says so when it does not."""

import itertools
import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_data import cut, data_config, prepare_quietly, write_folder

import data.prepare
import data.store
from configs.errors import IntegrityError, SettingsError
from configs.run import STDLIB, DataConfig
from data.store import MANIFEST, TokenStore, open_store


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 7 tokens and shards of 3 blocks."""
    monkeypatch.setattr(data.prepare, "BLOCK_LEN", 7)
    monkeypatch.setattr(data.store, "BLOCK_LEN", 7)
    monkeypatch.setattr(data.prepare, "SHARD_BLOCKS", 3)


@pytest.fixture
def store(tmp_path, small_blocks) -> TokenStore:
    """A folder of six documents as bytes, over many shards."""
    write_folder(tmp_path / "texts")
    return prepare_quietly(data_config(tmp_path / "texts"), tmp_path / "cache")


def documents_in(store: TokenStore, split: str) -> list[str]:
    """Takes the stream of a split apart at its separators."""
    stream = {"train": store.train, "validation": store.validation}[split]
    ids = stream.read(0, stream.num_tokens)
    separators = np.flatnonzero(ids == store.tokenizer.separator)
    assert separators[0] == 0
    assert separators[-1] == len(ids) - 1
    parts = itertools.pairwise(separators)
    return [store.tokenizer.decode(ids[start + 1 : stop]) for start, stop in parts]


def modified(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def change_manifest(folder: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("tokenizer", ["bytes", "characters", "sentencepiece"])
def test_the_stream_is_every_document_between_separators(tmp_path, small_blocks, tokenizer):
    documents = write_folder(tmp_path / "texts")
    config = data_config(tmp_path / "texts", tokenizer=tokenizer, vocab_size=280)
    store = prepare_quietly(config, tmp_path / "cache")
    train, validation = cut(documents, 900)
    assert documents_in(store, "train") == train
    assert documents_in(store, "validation") == validation


def test_the_manifest_counts_what_is_there(tmp_path, store):
    shutil.rmtree(tmp_path / "texts")
    documents = write_folder(tmp_path / "texts")
    for split, texts in zip(("train", "validation"), cut(documents, 900), strict=True):
        said = store.manifest["splits"][split]
        num_bytes = sum(len(text.encode()) for text in texts)
        assert said["documents"] == len(texts)
        assert said["characters"] == sum(map(len, texts))
        assert said["bytes"] == num_bytes
        assert said["tokens"] == num_bytes + len(texts) + 1
        assert [shard["tokens"] for shard in said["shards"][:-1]] == [21] * (
            said["tokens"] // 21 - (said["tokens"] % 21 == 0)
        )
        assert sum(shard["tokens"] for shard in said["shards"]) == said["tokens"]
        for shard in said["shards"]:
            assert (store.folder / shard["file"]).stat().st_size == shard["bytes"]
    said = store.manifest["tokenizer"]
    assert (said["kind"], said["vocab_size"], said["separator"]) == ("bytes", 257, 256)
    assert store.train.num_bytes == store.manifest["splits"]["train"]["bytes"]


@pytest.mark.parametrize("num_characters", [1, 6, 7, 8, 19, 20, 40, 41])
def test_a_stream_reads_the_same_at_every_place(tmp_path, small_blocks, num_characters):
    """Among them streams that end within a block, with a block and with a shard."""
    text = "".join(chr(0x4E00 + i) for i in range(num_characters))
    (tmp_path / "a.txt").write_text(text + text, encoding="utf-8")
    config = data_config(tmp_path / "a.txt", tokenizer="characters", validation_fraction=0.5)
    store = prepare_quietly(config, tmp_path / "cache")
    stream = [num_characters, *range(num_characters), num_characters]
    assert store.train.num_tokens == len(stream)
    for start in range(len(stream)):
        for stop in range(start + 1, len(stream) + 3):
            ids = store.train.read(start, stop)
            assert ids.dtype == np.int32
            assert ids.tolist() == stream[start:stop]


def test_a_large_vocabulary_keeps_its_ids(tmp_path):
    text = "".join(chr(i) for i in range(0x10000, 0x10000 + 70_000))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    store = prepare_quietly(data_config(tmp_path / "a.txt", tokenizer="characters"), tmp_path)
    assert store.train.read(62_990, 63_010).tolist() == [*range(62_989, 63_000), 70_000]
    assert store.validation.read(6_999, 7_010).tolist() == [69_998, 69_999, 70_000]


def test_a_second_preparation_writes_nothing(tmp_path, store):
    before = modified(store.folder)
    lines = []
    config = data_config(tmp_path / "texts", sequence_len=99, num_read_threads=7)
    again = data.prepare.prepare(config, tmp_path / "cache", lines.append)
    assert again.folder == store.folder
    assert modified(store.folder) == before
    assert [line.split()[0] for line in lines] == ["data:"]


def test_a_killed_preparation_is_done_again(tmp_path, store):
    (store.folder / MANIFEST).unlink()
    (store.folder / "train-00000.arrayrecord").write_bytes(b"half of it")
    (store.folder / "train-09999.arrayrecord").write_bytes(b"of another version")
    again = prepare_quietly(data_config(tmp_path / "texts"), tmp_path / "cache")
    assert again.digest == store.digest
    assert not (again.folder / "train-09999.arrayrecord").exists()


PREPARE = """
import os, sys
from pathlib import Path
from configs.run import DataConfig
from data.prepare import prepare
text, cache = map(Path, sys.argv[1:])
config = DataConfig(path=str(text), sequence_len=8, tokenizer="characters")
for _ in range(2):
    if os.fork() == 0:  # a process each, and the imports paid once
        prepare(config, cache, lambda line: os.write(1, f"{line}\\n".encode()))
        os._exit(0)
sys.exit(any([os.wait()[1] for _ in range(2)]))
"""


def test_two_processes_at_once_make_one_good_folder(tmp_path, environment):
    (tmp_path / "a.txt").write_text("".join(chr(i) for i in range(32, 500)) * 10_000)
    command = [sys.executable, "-c", PREPARE, tmp_path / "a.txt", tmp_path / "cache"]
    made = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    lines = made.stdout.splitlines()
    assert sorted(line.split()[0] for line in lines) == [
        "data:",
        "data:",
        "preparing",
        "tokenizer:",
    ]
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    assert open_store(folder).train.num_tokens == 4_680_000 * 9 // 10 + 2


def test_a_prepared_folder_is_a_data_path(tmp_path, store):
    moved = store.folder.rename(tmp_path / "moved")
    opened = prepare_quietly(data_config(moved, tokenizer="characters"), tmp_path / "unused")
    assert opened.digest == store.digest
    assert opened.tokenizer.kind == "bytes"
    assert not (tmp_path / "unused").exists()


def flip(folder: Path) -> None:
    content = bytearray((folder / "train-00001.arrayrecord").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "train-00001.arrayrecord").write_bytes(content)


def truncate(folder: Path) -> None:
    path = folder / "train-00001.arrayrecord"
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a flipped bit": ("train-00001.arrayrecord", flip),
    "a truncated shard": ("train-00001.arrayrecord", truncate),
    "a missing shard": (
        "train-00001.arrayrecord",
        lambda f: (f / "train-00001.arrayrecord").unlink(),
    ),
    "a torn manifest": (MANIFEST, lambda f: (f / MANIFEST).write_text('{"format_ver')),
    "a binary manifest": (MANIFEST, lambda f: (f / MANIFEST).write_bytes(b"\xff\0")),
    "another version": (
        MANIFEST,
        lambda f: change_manifest(f, lambda m: m.update(format_version=2)),
    ),
    "another alphabet": ("tokenizer", lambda f: (f / "tokenizer").write_text('{"alphabet": "ab"}')),
    "a wrong token count": (
        "train",
        lambda f: change_manifest(f, lambda m: m["splits"]["train"].update(tokens=100)),
    ),
    "a manifest without splits": (
        MANIFEST,
        lambda f: change_manifest(f, lambda m: m.pop("splits")),
    ),
    "a manifest that is a list": (MANIFEST, lambda f: (f / MANIFEST).write_text("[]")),
    "a manifest without shards": (
        MANIFEST,
        lambda f: change_manifest(f, lambda m: m["splits"]["train"].update(shards=[])),
    ),
    "a missing tokenizer": ("tokenizer", lambda f: (f / "tokenizer").unlink()),
    "a torn tokenizer": ("tokenizer", lambda f: (f / "tokenizer").write_text('{"alph')),
    "fewer tokens in the last block": (
        MANIFEST,
        lambda f: change_manifest(f, lambda m: m["splits"]["train"].update(tokens=901)),
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_folder_is_refused_with_the_file(tmp_path, small_blocks, what):
    write_folder(tmp_path / "texts")
    config = data_config(tmp_path / "texts", tokenizer="characters")
    folder = prepare_quietly(config, tmp_path / "cache").folder
    name, damage = DAMAGE[what]
    damage(folder)
    for path in (folder, tmp_path / "texts"):
        with pytest.raises(IntegrityError) as error:
            prepare_quietly(data_config(path, tokenizer="characters"), tmp_path / "cache")
        assert error.value.exit_code == 65
        assert str(folder) in str(error.value)
        assert name in str(error.value)
        assert "prepare" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "holds no text"), ("a", "too little text")],
)
def test_too_little_text_is_refused_and_leaves_no_manifest(tmp_path, content, message):
    (tmp_path / "a.txt").write_text(content)
    for _ in range(2):
        with pytest.raises(SettingsError, match=message):
            prepare_quietly(data_config(tmp_path / "a.txt"), tmp_path / "cache")
        assert not list(tmp_path.rglob(MANIFEST))


def test_a_corpus_of_which_nothing_validates_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", {"stdlib": str(tmp_path)}.__getitem__)
    (tmp_path / "m00.py").write_text("# trains\n")
    with pytest.raises(SettingsError, match="none is left for the validation split"):
        prepare_quietly(data_config(STDLIB), tmp_path / "cache")
    assert not list(tmp_path.rglob(MANIFEST))


def test_the_digest_is_of_text_and_tokenizer_alone(tmp_path):
    (tmp_path / "a.txt").write_text("one text " * 100)
    (tmp_path / "elsewhere.txt").write_text("one text " * 100)
    (tmp_path / "other.txt").write_text("one test " * 100)

    def digest(name: str, cache: str, **changes) -> str:
        config: DataConfig = data_config(tmp_path / name, **changes)
        return prepare_quietly(config, tmp_path / cache).digest

    here = digest("a.txt", "cache")
    assert digest("a.txt", "another_cache", sequence_len=3, num_read_threads=1) == here
    assert digest("elsewhere.txt", "cache", vocab_size=300, text_field="body") == here
    assert digest("other.txt", "cache") != here
    assert digest("a.txt", "cache", tokenizer="characters") != here
    assert digest("a.txt", "cache", validation_fraction=0.2) != here


def test_settings_that_change_the_text_are_prepared_apart(tmp_path):
    line = b'{"text": "caf\xe9 au lait", "title": "a longer title"}\n'
    (tmp_path / "a.jsonl").write_bytes(line * 20)

    def prepared(**changes) -> TokenStore:
        return prepare_quietly(data_config(tmp_path / "a.jsonl", **changes), tmp_path / "cache")

    text = prepared(invalid_utf8="replace")
    title = prepared(invalid_utf8="replace", text_field="title")
    assert documents_in(text, "train")[0] == "caf\ufffd au lait"
    assert documents_in(title, "train")[0] == "a longer title"
    with pytest.raises(SettingsError, match="is not UTF-8"):
        prepared()
