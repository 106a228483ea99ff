"""Several texts with one tokenizer, and arrays of tokens that others made."""

from pathlib import Path

import numpy as np
import pytest
from small_data import data_config
from small_prepare import documents_in, prepare_here, run, sentences, small_sizes
from small_tokenizers import byte_level, content_of

import data.prepare.text.token_files
import data.prepare.text.txt_jsonl
from configs.data import DataConfig
from configs.errors import SettingsError
from data.mixture import Data
from data.open_data import open_data
from data.prepare.engine import Workers
from data.prepare.work_folder import WORK
from data.token_store import MANIFEST, open_store
from data.tokenizers.tokenizer import tokenizer_digest
from data.tokenizers.train_tokenizer import train_sentencepiece


@pytest.fixture
def texts(tmp_path) -> Path:
    """Three texts of different characters, web.txt with an alphabet of its own among them."""
    (tmp_path / "web.txt").write_text("".join(sentences(400)))
    (tmp_path / "code.txt").write_text("".join(sentences(300, seed=1)).upper())
    (tmp_path / "held_out.txt").write_text("".join(sentences(200, seed=2)).replace("a", "ß"))
    return tmp_path


def opened(folder: Path, config: DataConfig, cache: str = "cache") -> Data:
    return open_data(config, folder / cache, lambda line: None, workers=Workers(1))


def mixed(folder: Path, *names: str, **changes) -> DataConfig:
    entries = tuple(f"{name}={folder / name}.txt" for name in names)
    return data_config(mixture=entries, vocab_size=400, **{"tokenizer": "sentencepiece", **changes})


def test_one_tokenizer_is_learned_from_all_texts_of_a_mixture(texts):
    found = opened(texts, mixed(texts, "web", "code"))
    web, code = (source.store for source in found.sources)
    assert tokenizer_digest(web.tokenizer) == tokenizer_digest(code.tokenizer)
    assert [source.name for source in found.sources] == ["web", "code"]
    for store, name in ((web, "web"), (code, "code")):
        text = (texts / f"{name}.txt").read_text()
        cut = text.rfind("\n", 0, len(text) - round(len(text) * 0.1)) + 1
        assert documents_in(store, store.train) == [text[:cut]]
        assert documents_in(store, store.validation) == [text[cut:]]
    # The lines of the training parts, and those alone, in the order of the digests of the texts.
    training = [documents_in(store, store.train)[0].split("\n") for store in (web, code)]
    models = {
        train_sentencepiece(
            [line for lines in order for line in lines if line], mixed(texts)
        ).content()
        for order in (training, training[::-1])
    }
    assert web.tokenizer.content() in models


def test_the_tokenizer_of_a_mixture_depends_neither_on_order_nor_on_what_was_there(texts):
    here = opened(texts, mixed(texts, "web", "code"), "here")
    there = opened(texts, mixed(texts, "code", "web"), "there")
    opened(texts, mixed(texts, "web", validation=(f"code={texts}/code.txt",)), "third")
    third = opened(texts, mixed(texts, "web", "code"), "third")
    digests = {tokenizer_digest(found.tokenizer) for found in (here, there, third)}
    assert len(digests) == 1
    assert here.sources[0].store.digest == there.sources[1].store.digest
    alone = opened(texts, mixed(texts, "web"), "here")
    assert tokenizer_digest(alone.tokenizer) not in digests


def test_a_text_that_only_validates_teaches_the_tokenizer_nothing(texts):
    held_out = (f"held_out={texts}/held_out.txt",)
    alone = opened(texts, mixed(texts, "web"))
    found = opened(texts, mixed(texts, "web", validation=held_out))
    assert tokenizer_digest(found.tokenizer) == tokenizer_digest(alone.tokenizer)
    sets = found.validation_sets()
    assert list(sets) == ["web", "held_out"]
    store = opened(texts, mixed(texts, "held_out", "web")).sources[0].store
    assert store.tokenizer.vocab_size == 400
    ids = sets["held_out"].document(0).tolist()
    assert found.tokenizer.decode(ids) == (texts / "held_out.txt").read_text()
    assert sets["held_out"].num_documents == 1


def test_a_text_beside_a_prepared_folder_takes_its_tokenizer(texts):
    settings = ["--data.tokenizer", "sentencepiece", "--data.vocab_size", "380"]
    code, said = run(texts, "prepare", "--data.path", "code.txt", *settings, "--out", "code")
    assert code == 0, said
    prepared = open_store(texts / "code")
    entries = (f"web={texts}/web.txt", f"code={texts}/code")
    held_out = (f"held_out={texts}/held_out.txt",)
    # The settings ask for another tokenizer, which is for texts that have none beside them.
    config = data_config(mixture=entries, validation=held_out, tokenizer="bytes")
    found = opened(texts, config)
    digest = tokenizer_digest(prepared.tokenizer)
    assert [tokenizer_digest(s.store.tokenizer) for s in found.sources] == [digest, digest]
    assert found.sources[1].store.digest == prepared.digest
    ids = found.validation_sets()["held_out"].document(0).tolist()
    assert found.tokenizer.decode(ids) == (texts / "held_out.txt").read_text()


def test_a_validation_set_does_not_take_the_place_of_the_path_of_its_name(texts):
    config = data_config(texts / "web.txt", validation=(f"web={texts}/code.txt",))
    with pytest.raises(SettingsError, match=r"data\.validation=web=.*code\.txt must have another"):
        opened(texts, config)


def test_the_same_text_may_be_named_twice(texts):
    entries = (f"one={texts}/web.txt", f"two={texts}/web.txt")
    found = opened(texts, data_config(mixture=entries))
    assert found.sources[0].store.digest == found.sources[1].store.digest
    assert not list(texts.rglob(WORK))


@pytest.fixture
def arrays(tmp_path, monkeypatch) -> tuple[Path, list[int]]:
    """Tokens in two files, and all of them; the first file does not begin with a separator."""
    small_sizes(monkeypatch, part_bytes=1000, task_bytes=2000)
    monkeypatch.setattr(data.prepare.text.token_files, "_TOKENS_AT_ONCE", 300)
    separator = 256
    documents = [list(line.encode()) for line in sentences(120)]
    first = documents[0] + [i for doc in documents[1:50] for i in (separator, *doc)]
    second = [i for doc in documents[50:] for i in (separator, *doc)]
    folder = tmp_path / "arrays"
    folder.mkdir()
    np.array(first, "<u2").tofile(folder / "a.bin")
    np.save(folder / "b.npy", np.array(second, "<i4"))
    return folder, [separator, *first, *second, separator]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.37, 0.9])
def test_every_token_of_an_array_is_there_once(tmp_path, arrays, fraction):
    folder, tokens = arrays
    store = prepare_here(data_config(folder, validation_fraction=fraction), tmp_path / "cache")
    documents = [line.encode() for line in sentences(120)]
    streams = (store.train, store.validation)
    found = [{bytes(x.document(i).tolist()) for i in range(x.num_documents)} for x in streams]
    assert abs(sum(map(len, found[1])) / (len(tokens) - 121) - fraction) < 0.07
    assert found[0] | found[1] == set(documents)
    train, validation = ([i for x in documents if x in f for i in (256, *x)] for f in found)
    assert store.train.read(0, len(tokens)).tolist() == [*train, 256]
    assert store.validation.read(0, len(tokens)).tolist() == [*validation, *[256] * bool(fraction)]
    for stream in streams:
        ids = stream.read(0, stream.num_tokens)
        assert stream.starts.tolist() == np.flatnonzero(ids == 256)[:-1].tolist()
        assert stream.num_documents == len(stream.starts)
    place = store.train.locate(int(store.train.starts[1]))
    assert place.file or tokens[1:][place.number] == 256  # where its separator is in its file
    said = store.manifest["splits"]["train"]
    assert said["tokens"] == len(train) + 1
    assert said["documents"] == train.count(256)
    # A character that is cut where a piece of 300 tokens ends counts as U+FFFD on either side.
    num_bytes = sum(i < 256 for i in train)
    assert 0 <= said["bytes"] - num_bytes <= 5 * (len(train) // 300 + 2)


def test_arrays_keep_their_tokens_with_a_tokenizer_of_others(tmp_path):
    tokenizer = byte_level("<|endoftext|>")
    (tmp_path / "t.json").write_bytes(content_of(tokenizer))
    documents = list(sentences(100))
    end = tokenizer.token_to_id("<|endoftext|>")
    ids = [i for text in documents for i in (*tokenizer.encode(text).ids, end)]
    np.array(ids, "<u2").tofile(tmp_path / "a.bin")
    command = ["prepare", "--data.path", "a.bin", "--data.tokenizer", "t.json", "--out", "out"]
    code, said = run(tmp_path, *command, "--data.validation_fraction", "0")
    assert code == 0, said
    store = open_store(tmp_path / "out")
    # The array ends its documents with the separator, and so does the stream, which adds one.
    assert store.train.read(0, len(ids) + 9).tolist() == [end, *ids, end]
    assert documents_in(store, store.train) == [*documents, ""]
    assert store.manifest["splits"]["train"]["characters"] == sum(map(len, documents))


@pytest.mark.parametrize("token", [257, -1, 2**16 + 65, 2**40])
def test_a_token_outside_the_vocabulary_is_refused_with_its_place(tmp_path, arrays, token):
    folder, _ = arrays
    ids = np.load(folder / "b.npy").astype(np.int64)
    ids[777] = token
    np.save(folder / "b.npy", ids)
    with pytest.raises(SettingsError) as error:
        prepare_here(data_config(folder), tmp_path / "cache")
    assert f"{folder}/b.npy has the token {token} at 777" in str(error.value)
    assert "0 to 256" in str(error.value)
    assert not list(tmp_path.rglob(MANIFEST))


@pytest.mark.parametrize("tokenizer", ["sentencepiece", "characters"])
def test_no_tokenizer_is_learned_from_tokens(tmp_path, arrays, tokenizer):
    with pytest.raises(SettingsError, match=f"data.tokenizer={tokenizer} is trained on text"):
        prepare_here(data_config(arrays[0], tokenizer=tokenizer), tmp_path / "cache")


@pytest.mark.parametrize("step", ["unicode", "exact_duplicates"])
def test_tokens_are_not_cleaned(tmp_path, arrays, step):
    """Without text every document is like every other, and all but one would be dropped."""
    with pytest.raises(SettingsError, match=f"data.clean={step} must not be given"):
        prepare_here(data_config(arrays[0], clean=(step,)), tmp_path / "cache")
