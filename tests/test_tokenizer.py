"""Text to ids and back, without loss, and with a separator that no text can write."""

import io
import itertools

import numpy as np
import pytest
import sentencepiece
from small_data import data_config

from configs.errors import SettingsError
from configs.run import STDLIB
from data.corpus import open_corpus
from data.tokenizer import (
    ByteTokenizer,
    CharacterTokenizer,
    Tokenizer,
    load_tokenizer,
    make_tokenizer,
    tokenizer_digest,
)

NASTY = [
    "",
    " ",
    "  leading, trailing and   inner  ",
    "\u2581",
    "\u2581\u2581 \u2581a\u2581",
    " \u2581 ",
    "\0",
    "a\0b\0",
    "one\r\ntwo\rthree\n\n\n",
    "\t\tdef f():\n\t\treturn  1\t",
    "👩\u200d👩\u200d👧 🇨🇭 👍🏽",
    "</s>",
    "<s><unk><pad></s> <0x41> <0x0A>",
    "\u00e9 e\u0301 \ufb01 \uff21 \u00a0\u2028\ufeff\ufffd",  # what a normalisation would change
    "\U0010ffff\x7f\x80\ufffe",
    "0123456789" * 3,
]


def random_texts(rng: np.random.Generator, num_texts: int = 300) -> list[str]:
    """Texts of any code points but surrogates, half of them small ones, some of them spaces."""
    texts = []
    for _ in range(num_texts):
        below = rng.choice([0x80, 0x3000, 0x110000], size=rng.integers(1, 40))
        points = rng.integers(0, below)
        points[rng.random(len(points)) < 0.1] = rng.choice([0x20, 0x2581, 0x0A])
        texts.append("".join(chr(p) for p in points if not 0xD800 <= p < 0xE000))
    return texts


@pytest.fixture(scope="module")
def python_texts() -> list[str]:
    """A few hundred kilobytes of the standard library."""
    texts = (text for _, text in open_corpus(data_config(STDLIB)).texts())
    return list(itertools.islice(texts, 13))


@pytest.fixture(scope="module")
def trained(python_texts) -> Tokenizer:
    return make_tokenizer(data_config(tokenizer="sentencepiece", vocab_size=512), python_texts)


@pytest.fixture(params=["bytes", "sentencepiece"])
def tokenizer(request) -> Tokenizer:
    """Each tokenizer that takes any text."""
    if request.param == "bytes":
        return ByteTokenizer()
    return request.getfixturevalue("trained")


def trained_elsewhere(**settings) -> bytes:
    """A .model made as others make them."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["the cat sat on the mat"] * 20),
        model_writer=model,
        vocab_size=20,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    return model.getvalue()


def test_any_text_comes_back_as_it_was(tokenizer, rng, python_texts):
    for text in NASTY + random_texts(rng) + python_texts[:3]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_no_text_has_the_id_of_the_separator(tokenizer, rng):
    pieces = ["</s>", "<s>", "<pad>", "<unk>", tokenizer.decode([tokenizer.separator])]
    for text in NASTY + random_texts(rng) + pieces:
        assert tokenizer.separator not in tokenizer.encode(text)


def test_ids_are_int32_below_vocab_size(tokenizer, rng):
    assert 0 <= tokenizer.separator < tokenizer.vocab_size
    for text in NASTY + random_texts(rng):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert ((ids >= 0) & (ids < tokenizer.vocab_size)).all()


def test_the_separator_and_ids_of_padded_vocabulary_decode_to_nothing(tokenizer):
    extra = [tokenizer.separator, tokenizer.vocab_size, tokenizer.vocab_size + 100]
    ids = tokenizer.encode("one two").tolist()
    assert tokenizer.decode(extra + ids + extra) == "one two"


def test_a_trained_tokenizer_has_the_asked_size_and_is_shorter_than_bytes(trained, python_texts):
    assert trained.vocab_size == 512
    assert len(trained.encode(python_texts[0])) < 0.7 * len(
        python_texts[0].encode()
    )  # measured: 0.62


def test_training_twice_gives_the_same_tokenizer(trained, python_texts):
    again = make_tokenizer(data_config(tokenizer="sentencepiece", vocab_size=512), python_texts)
    assert again.content() == trained.content()


def test_ids_of_bytes_are_the_bytes_of_utf8():
    assert ByteTokenizer().encode("aé🙂").tolist() == list("aé🙂".encode())
    assert ByteTokenizer().separator == 256


def test_ids_of_characters_are_their_order_by_code_point():
    tokenizer = make_tokenizer(data_config(tokenizer="characters"), ["hello", "👍é", ""])
    assert [tokenizer.decode([i]) for i in range(7)] == ["e", "h", "l", "o", "é", "👍", ""]
    assert (tokenizer.separator, tokenizer.vocab_size) == (6, 7)


def test_known_characters_come_back_as_they_were(rng):
    texts = NASTY + random_texts(rng)
    tokenizer = make_tokenizer(data_config(tokenizer="characters"), texts)
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert len(ids) == len(text)
        assert tokenizer.separator not in ids
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("unknown", ["a", "q", "z", "🙂", "\0"])
def test_an_unknown_character_is_refused_by_name(unknown):
    with pytest.raises(SettingsError) as error:
        CharacterTokenizer("bcy").encode(f"bc{unknown}{unknown}y")
    assert f"the character {unknown!r} is not among the 3" in str(error.value)
    assert "--data.tokenizer bytes" in str(error.value)


def test_a_lone_surrogate_is_refused_as_a_setting():
    for tokenizer in (ByteTokenizer(), CharacterTokenizer("ab")):
        with pytest.raises(SettingsError):
            tokenizer.encode("a\ud800b")


@pytest.mark.parametrize("kind", ["bytes", "characters", "sentencepiece"])
def test_content_makes_the_same_tokenizer(kind, trained, python_texts):
    learned = make_tokenizer(data_config(tokenizer="characters"), python_texts)
    tokenizer = {"bytes": ByteTokenizer(), "characters": learned, "sentencepiece": trained}[kind]
    loaded = load_tokenizer(kind, tokenizer.content())
    assert tokenizer_digest(loaded) == tokenizer_digest(tokenizer)
    assert (loaded.vocab_size, loaded.separator) == (tokenizer.vocab_size, tokenizer.separator)
    ids = tokenizer.encode(python_texts[1])
    np.testing.assert_array_equal(loaded.encode(python_texts[1]), ids)
    assert loaded.decode(ids) == python_texts[1]


def test_digests_tell_tokenizers_apart(trained):
    tokenizers = [ByteTokenizer(), CharacterTokenizer("ab"), CharacterTokenizer("abc"), trained]
    assert len({tokenizer_digest(tokenizer) for tokenizer in tokenizers}) == 4


@pytest.mark.parametrize("vocab_size", [100, 258, 50_000])
def test_a_vocabulary_that_does_not_suit_the_text_is_refused(vocab_size):
    config = data_config(tokenizer="sentencepiece", vocab_size=vocab_size)
    with pytest.raises(SettingsError) as error:
        make_tokenizer(config, ["the cat sat on the mat\n" * 50])
    assert str(error.value).startswith(f"data.vocab_size={vocab_size} does not suit this text")
    assert "--data.tokenizer bytes" in str(error.value)


def test_a_model_file_is_taken_as_it_is(trained, tmp_path):
    path = tmp_path / "mine.model"
    path.write_bytes(trained.content())
    tokenizer = make_tokenizer(data_config(tokenizer=str(path)), ["is not read"])
    assert tokenizer_digest(tokenizer) == tokenizer_digest(trained)


def test_a_missing_model_file_is_refused(tmp_path):
    path = tmp_path / "mine.model"
    with pytest.raises(SettingsError, match=f"data.tokenizer={path} must be a file, but there is"):
        make_tokenizer(data_config(tokenizer=str(path)), [])


@pytest.mark.parametrize("content", [b"", b"no model", b"\xff" * 100])
def test_a_model_file_that_does_not_parse_is_refused(content, tmp_path):
    path = tmp_path / "mine.model"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=f"data.tokenizer={path} .* does not parse"):
        make_tokenizer(data_config(tokenizer=str(path)), [])


def test_the_beginning_piece_separates_where_there_is_no_end_piece():
    model = trained_elsewhere(bos_id=1, eos_id=-1)
    assert load_tokenizer("sentencepiece", model).separator == 1


def test_a_model_file_without_a_piece_to_separate_documents_is_refused():
    model = trained_elsewhere(bos_id=-1, eos_id=-1)
    with pytest.raises(SettingsError, match="neither an end nor a beginning piece"):
        load_tokenizer("sentencepiece", model)
