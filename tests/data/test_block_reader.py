"""Many shards with few files open and few bytes kept; what may pass is not called damage."""

import functools
import json
import os
import resource
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from faulty_files import run_faulty
from parts import slowly
from small_data import data_config
from small_prepare import prepare_here, small_sizes, write_corpus

import data.atomic_files
import data.block_reader
from configs.errors import IntegrityError, Unavailable
from data.atomic_files import BYTES_MOVED
from data.token_store import MANIFEST, TokenStore, manifest_entries, open_store

SHARD, INDEX = "train-00000.arrayrecord", "train-00000.index.npy"
UNREADABLE = Path("/proc/self/mem")
"""Can be opened; reading it from its beginning is an I/O error."""


@pytest.fixture
def store(tmp_path, monkeypatch) -> TokenStore:
    """Three shards of several blocks that train, and one that validates."""
    small_sizes(monkeypatch)
    write_corpus(tmp_path / "texts", 300)
    return prepare_here(data_config(tmp_path / "texts"), tmp_path / "cache")


@pytest.fixture
def no_waits(monkeypatch):
    monkeypatch.setattr(data.atomic_files, "_WAITS_SEC", (0.0, 0.0))


def num_open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def many_shards(store: TokenStore, folder: Path, number: int) -> None:
    """Writes a prepared folder that has one shard so many times, each under a name of its own."""
    folder.mkdir()
    manifest = json.loads((store.folder / MANIFEST).read_text())
    train = manifest["splits"]["train"]
    shard = train["shards"][0]
    for entry in manifest_entries(manifest):
        os.link(store.folder / entry["file"], folder / entry["file"])

    def copy(i: int) -> dict:
        names = (f"copy-{i}.arrayrecord", f"copy-{i}.index.npy")
        for name, entry in zip(names, (shard, shard["index"]), strict=True):
            os.link(store.folder / entry["file"], folder / name)
        return {**shard, "file": names[0], "index": {**shard["index"], "file": names[1]}}

    train["shards"] = [copy(i) for i in range(number)]
    train["tokens"] = number * shard["tokens"] + 1
    train["documents"] = number * shard["documents"]
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("number", [300, *slowly(10_000)])
def test_any_number_of_shards_is_read_with_few_files_open(tmp_path, store, rng, number):
    many_shards(store, tmp_path / "many", number)
    before = num_open_files()
    stream = open_store(tmp_path / "many").train
    assert num_open_files() - before < 5
    length = store.manifest["splits"]["train"]["shards"][0]["tokens"]
    wanted = store.train.read(0, length).tolist()
    most = 0
    for i in rng.permutation(number).tolist():
        assert stream.read(i * length, (i + 1) * length).tolist() == wanted
        most = max(most, num_open_files())
    assert most - before < 80
    assert len(stream.starts) == stream.num_documents
    assert num_open_files() - before < 80


def keep(monkeypatch, name: str, number: int) -> None:
    """Lets so many open files or blocks be kept, and none at first."""
    function = getattr(data.block_reader, name).__wrapped__
    monkeypatch.setattr(data.block_reader, name, functools.lru_cache(number)(function))


def test_a_shard_that_is_closed_while_other_threads_read_it_reads_the_same(store, rng, monkeypatch):
    keep(monkeypatch, "_open", 1)
    keep(monkeypatch, "_block", 0)
    monkeypatch.setattr(data.atomic_files, "_WAITS_SEC", ())
    wanted = store.train.read(0, store.train.num_tokens)
    starts = rng.integers(0, store.train.num_tokens - 150, 3000).tolist()
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda start: store.train.read(start, start + 150), starts))
    sys.setswitchinterval(usual)
    for start, ids in zip(starts, found, strict=True):
        np.testing.assert_array_equal(ids, wanted[start : start + 150])


def test_what_is_kept_of_all_streams_together_has_one_limit(store, monkeypatch):
    def read(stream) -> int:
        """Returns how many bytes were read from disk to give the tokens of a stream."""
        before = BYTES_MOVED.total
        stream.read(0, stream.num_tokens)
        return BYTES_MOVED.total - before

    first, second = (open_store(store.folder, "sizes").train for _ in range(2))
    num_bytes = 2 * (first.num_tokens - 1)
    block_len, shards = (store.manifest[key] for key in ("block_len", "splits"))
    num_blocks = sum(-(-shard["tokens"] // block_len) for shard in shards["train"]["shards"])
    keep(monkeypatch, "_block", num_blocks + 1)
    assert read(first) == num_bytes
    assert read(first) == 0
    assert read(second) == num_bytes
    assert read(second) == 0
    assert read(first) == num_bytes
    keep(monkeypatch, "_block", 2 * num_blocks)
    assert read(first) == read(second) == num_bytes
    assert read(first) == read(second) == 0


def test_a_shard_with_another_number_of_blocks_than_the_manifest_says_is_named(store):
    manifest = json.loads((store.folder / MANIFEST).read_text())
    manifest["block_len"] = 50
    (store.folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match=rf"{SHARD} has \d+ blocks, the manifest says \d+"):
        open_store(store.folder).train.read(0, 1)


def refusals(folder: Path, num_processes: int) -> list[str]:
    """Returns what the processes say that refuse a folder, of which each checks a part."""
    said = []
    for process in range(num_processes):
        try:
            open_store(folder, process=process, num_processes=num_processes)
        except IntegrityError as error:
            said.append(str(error))
    return said


def test_each_file_is_checked_by_one_of_the_processes(store):
    """And the tokenizer by all, for all use it."""
    for entry in manifest_entries(store.manifest):
        path = store.folder / entry["file"]
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        said = refusals(store.folder, 3)
        assert len(said) == (3 if path.name == "tokenizer" else 1)
        assert all(str(path) in line for line in said)
        path.write_bytes(good)


@pytest.fixture
def no_file_opens() -> Iterator[Callable[[], None]]:
    """From now on this process cannot open a file, until it calls what this gives."""
    data.block_reader._open.cache_clear()  # a failure closes what is open, which frees numbers
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    yield lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_shard_that_cannot_be_opened_for_a_while_is_read_later(store, monkeypatch, no_file_opens):
    monkeypatch.setattr(data.atomic_files.time, "sleep", lambda seconds: no_file_opens())
    assert store.train.read(0, 1).tolist() == [256]


def test_a_shard_that_cannot_be_opened_is_not_called_damaged(store, no_waits, no_file_opens):
    with pytest.raises(Unavailable, match=rf"{SHARD} cannot be read: Too many open files"):
        store.train.read(0, 1)


def replace(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target)


def read_all(folder: Path) -> None:
    """Reads what a process reads whose part of the files to check is empty."""
    stream = open_store(folder, process=999, num_processes=1000).train
    _ = stream.starts, stream.read(0, stream.num_tokens)


@pytest.mark.parametrize("name", [MANIFEST, "tokenizer", INDEX])
def test_a_file_that_gives_an_io_error_is_not_called_damaged(store, no_waits, name):
    replace(store.folder / name, UNREADABLE)
    with pytest.raises(Unavailable, match=rf"{name} cannot be read: Input/output error") as error:
        read_all(store.folder)
    assert error.value.exit_code == 75


@pytest.mark.parametrize("name", [MANIFEST, "tokenizer", INDEX, SHARD])
def test_a_file_that_is_absent_is_damage(store, name):
    (store.folder / name).unlink()
    with pytest.raises(IntegrityError, match=f"{name} cannot be read: No such file") as error:
        read_all(store.folder)
    assert error.value.exit_code == 65


READ = """
import data.atomic_files
data.atomic_files._WAITS_SEC = (0.0,) * 3
from data.token_store import open_store

def read():
    stream = open_store(Path(sys.argv[1]), sys.argv[2]).train
    print(sum(stream.read(0, stream.num_tokens).tolist()))
    return 0

sys.exit(guarded(read))
"""


@pytest.mark.parametrize("verify", ["digests", "sizes"])
@pytest.mark.parametrize("times", [1, 1000])
def test_an_io_error_of_a_shard_is_retried_and_then_ends_with_75(tmp_path, store, verify, times):
    """As the digests are checked, and as the first block is read."""
    ran = run_faulty(tmp_path, READ, store.folder, verify, eio_read=SHARD, eio_times=times)
    if times == 1:
        assert ran.returncode == 0, ran.stderr
        assert int(ran.stdout) == store.train.read(0, store.train.num_tokens).sum()
    else:
        assert ran.returncode == 75, ran.stderr
        assert f"{SHARD} cannot be read: Input/output error" in ran.stderr
