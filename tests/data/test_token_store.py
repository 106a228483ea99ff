"""Reading a prepared folder: the same at every place, whatever shards and pieces it is made of."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_data import data_config, sides
from small_prepare import documents_in, prepare_here, sentences, small_sizes, write_corpus
from small_tokenizers import TEXTS

import data.prepare.encode
import data.prepare.text.token_files
import data.prepare.text.txt_jsonl
from configs.errors import IntegrityError
from data.prepare.shards import ShardWriter
from data.token_store import MANIFEST, DocumentPosition, TokenStore, TokenStream, open_store


@pytest.mark.parametrize("num_characters", [1, 6, 7, 8, 19, 20, 40, 41])
def test_a_stream_reads_the_same_at_every_place(tmp_path, monkeypatch, num_characters):
    """Among them streams that end within a block, with a block and with a shard."""
    small_sizes(monkeypatch, part_bytes=21, task_bytes=42, block_len=7)
    monkeypatch.setattr(data.prepare.text.txt_jsonl, "_LINE_SEARCH_BYTES", 3)
    text = "".join(chr(0x4E00 + i) for i in range(num_characters))
    (tmp_path / "a.txt").write_text(text + text, encoding="utf-8")
    config = data_config(tmp_path / "a.txt", tokenizer="characters", validation_fraction=0.5)
    store = prepare_here(config, tmp_path / "cache")
    stream = [num_characters, *range(num_characters), num_characters]
    assert store.train.num_tokens == len(stream)
    assert len(store.manifest["splits"]["train"]["shards"]) == -(-num_characters * 3 // 42)
    for start in range(len(stream)):
        for stop in range(start + 1, len(stream) + 3):
            ids = store.train.read(start, stop)
            assert ids.dtype == np.uint16
            assert ids.tolist() == stream[start:stop]


def test_every_token_knows_its_document(tmp_path, monkeypatch):
    small_sizes(monkeypatch)
    documents = write_corpus(tmp_path / "texts", 300)
    store = prepare_here(data_config(tmp_path / "texts"), tmp_path / "cache")
    assert [file["name"] for file in store.files] == ["a.jsonl", "b.txt"]
    named = {text: (0, i) for i, text in enumerate(documents["a.jsonl"])}
    named[documents["b.txt"][0]] = 1, 0
    streams = {"train": store.train, "validation": store.validation}
    assert all(len(store.manifest["splits"][name]["shards"]) > 1 for name in ("train",))
    found = {
        name: [stream.locate(i) for i in range(stream.num_tokens - 1)]
        for name, stream in streams.items()
    }
    for side, texts in zip(found.values(), sides(list(named)), strict=True):
        assert side == [
            DocumentPosition(i, *named[text], offset)
            for i, text in enumerate(texts)
            for offset in range(-1, len(text.encode()))
        ]
    for stream in streams.values():
        separators = np.flatnonzero(stream.read(0, stream.num_tokens) == 256)
        assert stream.starts.tolist() == separators[:-1].tolist()
        assert stream.starts.dtype == np.int64
        texts = [bytes(stream.document(i).tolist()) for i in range(stream.num_documents)]
        assert [text.decode() for text in texts] == documents_in(store, stream)
    places = [p.document for p in found["train"]]
    assert places == sorted(places)
    assert set(places) == set(range(store.train.num_documents))


@pytest.mark.parametrize(
    ("text", "piece"), [("ab\ncdé\n\n\nfghijk\nlmnopq\ns\n", 5), ("abcdé世ghijklmn🙂pqrst", 1)]
)
def test_a_text_of_several_parts_is_one_document_at_every_cut(tmp_path, monkeypatch, text, piece):
    """Also where train ends just with a part, a task or a piece; it moves to a line end."""
    small_sizes(monkeypatch, part_bytes=6, task_bytes=12, block_len=3)
    monkeypatch.setattr(data.prepare.text.txt_jsonl, "_LINE_SEARCH_BYTES", 4)
    monkeypatch.setattr(data.prepare.encode, "_CHUNK_CHARACTERS", piece)
    (tmp_path / "a.txt").write_text(text)
    for num_validation in range(len(text)):
        fraction = num_validation / len(text)
        config = data_config(tmp_path / "a.txt", validation_fraction=fraction)
        store = prepare_here(config, tmp_path / "cache")
        found = [
            documents_in(store, s) if s.num_tokens else [] for s in (store.train, store.validation)
        ]
        (train,), validation = found
        assert "".join([train, *validation]) == text
        assert len(validation) == (num_validation > 0)
        early = len(text) - num_validation - len(train)
        assert early == 0 or (0 < early <= num_validation and train.endswith("\n"))
        assert len(store.manifest["splits"]["train"]["shards"]) < 7


def tokens_of_lines(ids: np.ndarray, newline: int) -> list[list[int]]:
    lines = np.split(ids, np.flatnonzero(ids == newline))
    return [sorted(line.tolist()) for line in lines]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_text_encoded_in_pieces_is_that_encoded_whole(tmp_path, monkeypatch, kind):
    """A newline is a token of its own, and pieces end with one.

    A unigram model adds up scores as float32 from the beginning of what it is given: of two ways
    to write a line that are exactly as good, sixteen spaces and four or four and sixteen, it may
    take the other one. So its tokens are compared line by line, in any order.
    """
    monkeypatch.setattr(data.prepare.encode, "_CHUNK_CHARACTERS", 200)
    text = "\n\n  ".join([*sentences(100), *TEXTS]) + "\n" * 500
    (tmp_path / "a.txt").write_text(text)
    settings = {"tokenizer": "sentencepiece", "vocab_size": 500, "sentencepiece_model": kind}
    config = data_config(tmp_path / "a.txt", validation_fraction=0.0, **settings)
    store = prepare_here(config, tmp_path / "cache")
    pieces, whole = store.train.document(0), store.tokenizer.encode(text)
    if kind == "bpe":
        assert pieces.tolist() == whole.tolist()
    (newline,) = store.tokenizer.encode("\n").tolist()
    assert tokens_of_lines(pieces, newline) == tokens_of_lines(whole, newline)
    assert store.tokenizer.decode(pieces.tolist()) == text


@pytest.fixture(scope="module")
def small_store(tmp_path_factory) -> TokenStore:
    """Three blocks in one shard and an index of seven documents, all of one value a document."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as monkeypatch:
        small_sizes(monkeypatch, block_len=40)
        lines = [json.dumps({"text": character * 15}) + "\n" for character in "abcdefg"]
        (folder / "a.jsonl").write_text("".join(lines))
        config = data_config(folder / "a.jsonl", validation_fraction=0.0)
        return prepare_here(config, folder / "cache")


def copy_of(store: TokenStore, folder: Path) -> Path:
    folder.mkdir()
    for path in store.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def read_or_refusal(folder: Path, read: Callable[[TokenStream], np.ndarray]) -> list[int] | str:
    try:
        return read(open_store(folder, "sizes").train).tolist()
    except IntegrityError as error:
        return str(error)


def test_a_flipped_bit_of_a_shard_never_reads_as_other_tokens(tmp_path, small_store):
    """By sizes alone it is found when a block is read; the digests find it as it is opened."""
    folder = copy_of(small_store, tmp_path / "copy")
    path = folder / "train-00000.arrayrecord"
    good = path.read_bytes()
    tokens = small_store.train.read(0, 1000).tolist()
    used = np.flatnonzero(np.frombuffer(good, np.uint8)).tolist()
    assert len(used) > 400
    outcomes = []
    for place in [*used, *range(0, len(good), 5000)]:
        content = bytearray(good)
        content[place] ^= 1 << (place % 8)
        path.write_bytes(content)
        outcomes.append(read_or_refusal(folder, lambda stream: stream.read(0, 1000)))
    refusals = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert all(path.name in refusal for refusal in refusals)
    assert len(refusals) > 300
    assert all(outcome == tokens for outcome in outcomes if not isinstance(outcome, str))
    with pytest.raises(IntegrityError, match=r"train-00000\.arrayrecord has sha256") as error:
        open_store(folder)
    assert error.value.exit_code == 65


def test_a_shard_that_cannot_be_opened_is_named_among_others(tmp_path, monkeypatch):
    small_sizes(monkeypatch)
    write_corpus(tmp_path / "texts", 200)
    folder = prepare_here(data_config(tmp_path / "texts"), tmp_path / "cache").folder
    content = bytearray((folder / "train-00002.arrayrecord").read_bytes())
    content[-65536 + 30] ^= 1  # within the footer
    (folder / "train-00002.arrayrecord").write_bytes(content)
    stream = open_store(folder, "sizes").train
    with pytest.raises(IntegrityError, match=r"train-00002\.arrayrecord has sha256"):
        stream.read(0, stream.num_tokens)


def test_an_index_that_has_changed_is_named_when_it_is_read(tmp_path, small_store):
    folder = copy_of(small_store, tmp_path / "copy")
    path = folder / "train-00000.index.npy"
    good = path.read_bytes()
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 2]) + good[place + 1 :])
        refusal = read_or_refusal(folder, lambda stream: stream.starts)
        assert isinstance(refusal, str)
        assert path.name in refusal


def test_a_block_of_another_length_is_refused(tmp_path, small_store):
    """A manifest that agrees with itself and not with the shard; it used to be read for ever."""
    folder = copy_of(small_store, tmp_path / "copy")
    manifest = json.loads((folder / MANIFEST).read_text())
    train = manifest["splits"]["train"]
    train["tokens"] += 1
    train["shards"][0]["tokens"] += 1
    (folder / MANIFEST).write_text(json.dumps(manifest))
    stream = open_store(folder).train
    with pytest.raises(IntegrityError, match=r"train-00000\.arrayrecord has changed"):
        stream.read(0, stream.num_tokens)


def test_a_shard_has_its_name_when_it_is_whole_and_not_before(tmp_path):
    for is_finished in (False, True):
        writer = ShardWriter(tmp_path, "train-00000", 257, 256)
        writer.begin(0, 0)
        for _ in range(3):
            writer.add(np.zeros(100_000, np.int32), num_characters=100_000, num_bytes=100_000)
            assert all(".tmp-" in path.name for path in tmp_path.iterdir())
        if is_finished:
            writer.close()
        else:
            writer.abandon()
        names = {"train-00000.arrayrecord", "train-00000.index.npy"} if is_finished else set()
        assert {path.name for path in tmp_path.iterdir()} == names


def test_lines_of_a_file_in_several_parts_are_numbered_through(tmp_path, monkeypatch):
    small_sizes(monkeypatch, part_bytes=100, task_bytes=250)
    lines = [json.dumps({"text": f"line {i}"}) + "\n" * (1 + i % 2) for i in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    store = prepare_here(data_config(tmp_path / "a.jsonl"), tmp_path / "cache")
    streams = (store.train, store.validation)
    numbers = [stream.locate(int(start)).number for stream in streams for start in stream.starts]
    assert sorted(numbers) == [i + i // 2 for i in range(60)]
    assert len(store.manifest["splits"]["train"]["shards"]) > 3
