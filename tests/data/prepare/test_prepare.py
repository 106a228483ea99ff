"""A prepared folder holds the text, all of it, and says so when it does not."""

import json
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from small_data import data_config, prepare_quietly, sides, write_folder
from small_prepare import (
    RANGE_BYTES,
    TASK_BYTES,
    documents_in,
    prepare_here,
    run,
    sentences,
    small_sizes,
    stamps_of,
    write_corpus,
)
from small_runs import content_of

import data.prepare.text.source_files
from configs.data import STDLIB
from configs.errors import IntegrityError, SettingsError
from data.open_data import open_data
from data.prepare.engine import Workers
from data.prepare.work_folder import WORK
from data.token_store import MANIFEST, TokenStore, open_store


@pytest.fixture
def store(tmp_path, monkeypatch) -> TokenStore:
    """A folder of six documents as bytes, over several shards of small blocks."""
    small_sizes(monkeypatch, part_bytes=40, task_bytes=100, block_len=7)
    write_folder(tmp_path / "texts")
    return prepare_here(data_config(tmp_path / "texts"), tmp_path / "cache")


@pytest.mark.parametrize("tokenizer", ["bytes", "characters", "sentencepiece"])
@pytest.mark.parametrize("task_bytes", [1, 100, 10_000])
def test_the_stream_is_every_document_between_separators(
    tmp_path, monkeypatch, tokenizer, task_bytes
):
    small_sizes(monkeypatch, part_bytes=40, task_bytes=task_bytes, block_len=7)
    documents = write_folder(tmp_path / "texts")
    config = data_config(tmp_path / "texts", tokenizer=tokenizer, vocab_size=275)
    store = prepare_here(config, tmp_path / "cache")
    train, validation = sides(documents)
    assert documents_in(store, store.train) == train
    assert documents_in(store, store.validation) == validation


def test_the_manifest_counts_what_is_there(tmp_path, store):
    documents = write_folder(tmp_path / "again")
    for split, texts in zip(("train", "validation"), sides(documents), strict=True):
        said = store.manifest["splits"][split]
        num_bytes = sum(len(text.encode()) for text in texts)
        assert said["documents"] == len(texts)
        assert said["characters"] == sum(map(len, texts))
        assert said["bytes"] == num_bytes
        assert said["tokens"] == num_bytes + len(texts) + 1
        for count in ("documents", "characters", "bytes"):
            assert sum(shard[count] for shard in said["shards"]) == said[count]
        # The separator that ends the stream is in no shard.
        assert sum(shard["tokens"] for shard in said["shards"]) == said["tokens"] - 1
        for shard in said["shards"]:
            assert (store.folder / shard["file"]).stat().st_size == shard["size"]
    assert len(store.manifest["splits"]["train"]["shards"]) > 3
    said = store.manifest["tokenizer"]
    assert (said["kind"], said["vocab_size"], said["separator"]) == ("bytes", 257, 256)
    assert store.train.num_bytes == store.manifest["splits"]["train"]["bytes"]


def test_a_large_vocabulary_keeps_its_ids(tmp_path):
    text = "".join(chr(i) for i in range(0x10000, 0x10000 + 70_000))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    store = prepare_quietly(data_config(tmp_path / "a.txt", tokenizer="characters"), tmp_path)
    assert store.train.read(62_990, 63_010).tolist() == [*range(62_989, 63_000), 70_000]
    assert store.validation.read(6_999, 7_010).tolist() == [69_998, 69_999, 70_000]


def test_any_number_of_workers_makes_the_same_bytes(tmp_path, monkeypatch):
    write_corpus(tmp_path / "texts")
    settings = ["--data.path", "texts", "--data.tokenizer", "characters"]
    made = []
    for number in "123":
        code, said = run(tmp_path, "prepare", *settings, "--out", number, "--num_workers", number)
        assert code == 0, said
        made.append(content_of(tmp_path / number))
    assert made[0] == made[1] == made[2]
    assert sum(name.endswith(".arrayrecord") for name in made[0]) > 10

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data.prepare.text.source_files, "RANGE_BYTES", RANGE_BYTES)
    monkeypatch.setattr(data.prepare.text.source_files, "TASK_BYTES", TASK_BYTES)
    config = data_config("texts", tokenizer="characters")
    implicit = prepare_here(config, tmp_path / "cache")
    assert implicit.digest == open_store(tmp_path / "1").digest
    assert content_of(implicit.folder) == made[0]


@pytest.mark.slow
def test_any_number_of_workers_makes_the_same_bytes_of_a_large_corpus(tmp_path, environment):
    """Four tasks of the product's own size, by the command itself."""
    lines = "".join(json.dumps({"text": line * 20}) + "\n" for line in sentences(2000))
    with (tmp_path / "a.jsonl").open("w") as file:
        while file.tell() < 3 * 64 * 2**20:
            file.write(lines)
    (tmp_path / "b.txt").write_text("".join(sentences(300_000)))
    command = [sys.executable, "-m", "launch", "prepare", "--data.path", "*.*[lt]"]
    command += ["--data.tokenizer", "bytes", "--num_workers"]
    made = []
    for number in "123":
        options = {"cwd": tmp_path, "env": environment, "check": True}
        subprocess.run([*command, number, "--out", f"out/{number}"], **options)
        made.append(content_of(tmp_path / "out" / number))
    assert made[0] == made[1] == made[2]
    assert sum(name.endswith(".arrayrecord") for name in made[0]) == 8
    assert open_store(tmp_path / "out/1").train.num_tokens > 100 * 2**20


def test_a_second_preparation_writes_nothing(tmp_path, store):
    before = stamps_of(store.folder)
    lines = []
    config = data_config(tmp_path / "texts", sequence_len=99, num_read_threads=7)
    again = open_data(config, tmp_path / "cache", lines.append, workers=Workers(1))
    assert again.sources[0].store.folder == store.folder
    assert stamps_of(store.folder) == before
    assert [line.split()[0] for line in lines] == ["data:"]


PREPARE = """
import os, sys
from pathlib import Path
from configs.data import DataConfig
from data.open_data import open_data
text, cache = map(Path, sys.argv[1:])
config = DataConfig(path=str(text), sequence_len=8, tokenizer="characters")
for _ in range(2):
    if os.fork() == 0:  # a process each, and the imports paid once
        open_data(config, cache, lambda line: os.write(1, f"{line}\\n".encode()))
        os._exit(0)
sys.exit(any([os.wait()[1] for _ in range(2)]))
"""


def test_two_processes_at_once_make_one_good_folder(tmp_path, environment):
    (tmp_path / "a.txt").write_text("".join(chr(i) for i in range(32, 500)) * 10_000)
    command = [sys.executable, "-c", PREPARE, tmp_path / "a.txt", tmp_path / "cache"]
    made = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    said = sorted(line.split()[0] for line in made.stdout.splitlines())
    assert said == ["data:", "data:", "preparing", "tokenizer:", "validation:"]
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    assert open_store(folder).train.num_tokens == 4_680_000 * 9 // 10 + 2


def test_a_prepared_folder_is_a_data_path(tmp_path, store):
    moved = store.folder.rename(tmp_path / "moved")
    opened = prepare_here(data_config(moved, tokenizer="characters"), tmp_path / "unused")
    assert opened.digest == store.digest
    assert opened.tokenizer.kind == "bytes"
    assert not (tmp_path / "unused").exists()


def change_manifest(folder: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def change_train(**changes: object) -> Callable[[Path], None]:
    return lambda folder: change_manifest(folder, lambda m: m["splits"]["train"].update(changes))


def flip(name: str) -> Callable[[Path], None]:
    def flip_a_bit(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return flip_a_bit


SHARD, INDEX = "train-00004.arrayrecord", "train-00004.index.npy"
DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a flipped bit": (SHARD, flip(SHARD)),
    "a flipped bit in an index": (INDEX, flip(INDEX)),
    "a flipped bit in the report": ("report.json", flip("report.json")),
    "a truncated shard": (SHARD, lambda f: (f / SHARD).write_bytes((f / SHARD).read_bytes()[:-1])),
    "a missing shard": (SHARD, lambda f: (f / SHARD).unlink()),
    "a missing index": (INDEX, lambda f: (f / INDEX).unlink()),
    "a torn manifest": (MANIFEST, lambda f: (f / MANIFEST).write_text('{"format_ver')),
    "a binary manifest": (MANIFEST, lambda f: (f / MANIFEST).write_bytes(b"\xff\0")),
    "a manifest that is a list": (MANIFEST, lambda f: (f / MANIFEST).write_text("[]")),
    "another version": (
        MANIFEST,
        lambda f: change_manifest(f, lambda m: m.update(format_version=1)),
    ),
    "a manifest without splits": (
        MANIFEST,
        lambda f: change_manifest(f, lambda m: m.pop("splits")),
    ),
    "a manifest without shards": ("train", change_train(shards=[])),
    "a wrong token count": ("train", change_train(tokens=100)),
    "a name that leaves the folder": (
        "'../report.json'",
        lambda f: change_manifest(f, lambda m: m["files"][1].update(file="../report.json")),
    ),
    "a shard that leaves the folder": (
        "'/etc/passwd'",
        lambda f: change_manifest(
            f, lambda m: m["splits"]["train"]["shards"][0].update(file="/etc/passwd")
        ),
    ),
    "another alphabet": ("tokenizer", lambda f: (f / "tokenizer").write_text('{"alphabet": "ab"}')),
    "a missing tokenizer": ("tokenizer", lambda f: (f / "tokenizer").unlink()),
    "a torn tokenizer": ("tokenizer", lambda f: (f / "tokenizer").write_text('{"alph')),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_folder_is_refused_with_the_file(tmp_path, monkeypatch, what):
    small_sizes(monkeypatch, part_bytes=40, task_bytes=100, block_len=7)
    write_folder(tmp_path / "texts")
    config = data_config(tmp_path / "texts", tokenizer="characters")
    folder = prepare_here(config, tmp_path / "cache").folder
    (folder.parent / "report.json").write_bytes((folder / "report.json").read_bytes())
    name, damage = DAMAGE[what]
    damage(folder)
    for path in (folder, tmp_path / "texts"):
        with pytest.raises(IntegrityError) as error:
            prepare_here(data_config(path, tokenizer="characters"), tmp_path / "cache")
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
            prepare_here(data_config(tmp_path / "a.txt"), tmp_path / "cache")
        assert not list(tmp_path.rglob(MANIFEST))


def test_a_corpus_of_which_nothing_validates_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", {"stdlib": str(tmp_path)}.__getitem__)
    (tmp_path / "m00.py").write_text("# trains\n")
    with pytest.raises(SettingsError, match="none is left for the validation split"):
        prepare_here(data_config(STDLIB), tmp_path / "cache")
    assert not list(tmp_path.rglob(MANIFEST))


@pytest.mark.parametrize(("fraction", "split"), [(0.0, "train"), (1.0, "validation")])
def test_all_of_a_text_may_be_one_split(tmp_path, monkeypatch, fraction, split):
    small_sizes(monkeypatch)
    documents = write_corpus(tmp_path / "texts", 300)
    settings = ["--data.path", "texts", "--data.tokenizer", "characters", "--out", "out"]
    code, said = run(tmp_path, "prepare", *settings, "--data.validation_fraction", f"{fraction}")
    assert code == 0, said
    store = open_store(tmp_path / "out")
    assert documents_in(store, store.split(split)) == [*documents["a.jsonl"], *documents["b.txt"]]
    other = store.split("validation" if split == "train" else "train")
    assert (other.num_tokens, other.num_documents, other.read(0, 9).tolist()) == (0, 0, [])
    assert not list((tmp_path / "out").glob(f"{'validation' if split == 'train' else 'train'}*"))


def test_the_digest_is_of_text_and_tokenizer_alone(tmp_path):
    for name, text in (("a.txt", "one text "), ("other.txt", "one test ")):
        (tmp_path / name).write_text(text * 100)
    (tmp_path / "elsewhere.txt").write_text("one text " * 100)

    def digest(name: str, cache: str, **changes) -> str:
        return prepare_here(data_config(tmp_path / name, **changes), tmp_path / cache).digest

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
        return prepare_here(data_config(tmp_path / "a.jsonl", **changes), tmp_path / "cache")

    text = prepared(invalid_utf8="replace")
    title = prepared(invalid_utf8="replace", text_field="title")
    assert documents_in(text, text.train)[0] == "caf\ufffd au lait"
    assert documents_in(title, title.train)[0] == "a longer title"
    with pytest.raises(SettingsError, match="is not UTF-8"):
        prepared()


def test_nothing_is_left_but_the_prepared_folder(tmp_path, store):
    names = set(stamps_of(store.folder))
    listed = {entry["file"] for entry in store.manifest["files"]}
    for split in store.manifest["splits"].values():
        for shard in split["shards"]:
            listed |= {shard["file"], shard["index"]["file"]}
    assert names == {MANIFEST, *listed}
    assert not (store.folder / WORK).exists()
