"""Text to ids and back, without loss, with a separator and special tokens that no text can write.

What holds of every tokenizer; those that others made have files of their own beside this one.
"""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from small_tokenizers import TEXTS, byte_level, content_of, open_content, settings

from configs.errors import SettingsError
from data.tokenizers.tokenizer import (
    ByteTokenizer,
    CharacterTokenizer,
    Tokenizer,
    content_digest,
    load_tokenizer,
    lossy_texts,
    open_tokenizer,
    tokenizer_digest,
)
from data.tokenizers.train_tokenizer import (
    SAMPLE_CHARACTERS,
    character_tokenizer,
    lines_of,
    train_sentencepiece,
)

KINDS = ["bytes", "unigram", "bpe", "huggingface"]
GROUPS = ("masked", "span", "infill")
LINES = [line for text in TEXTS for line in lines_of(text)]

anything = st.characters(exclude_categories=["Cs"])
spaces = st.sampled_from(" \u2581\t\r\n\0\u00a0\u2028\ufeff\u200d")
texts = st.text(anything | spaces | st.characters(codec="ascii"))
SPELLED = (
    *("<|endoftext|>", "</s>", "<s>", "<unk>", "<pad>", "<mask>", "<extra_id_0>", "<extra_id_99>"),
    *("[MASK]", "[SEP]", "[CLS]", "[PAD]", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_pad|>"),
    *("<0x0A>", "<", "[", ">", "|", "a", " ", "\n", "\u2581"),
)
spelled = st.lists(st.sampled_from(SPELLED)).map("".join)
checked = hypothesis_settings(max_examples=150, deadline=None, database=None, derandomize=True)


def make(kind: str, **changes) -> Tokenizer:
    match kind:
        case "bytes":
            tokenizer = open_tokenizer(settings(tokenizer="bytes", **changes))
            assert tokenizer is not None
            return tokenizer
        case "unigram" | "bpe":
            config = settings(vocab_size=512, sentencepiece_model=kind, **changes)
            return train_sentencepiece(LINES, config)
    return open_content(content_of(byte_level("<|endoftext|>")), ".json", **changes)


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request) -> Tokenizer:
    """Each tokenizer that takes any text, with every special token."""
    return make(request.param, special_tokens=GROUPS)


@given(text=texts)
@example("  leading, trailing and   inner  ")
@example("\u2581\u2581 \u2581a\u2581")
@example(" \u2581 ")
@example("a\0b\0")
@example("one\r\ntwo\rthree\n\n\n")
@example("\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e8\U0001f1ed \U0001f44d\U0001f3fd")
@example("\u00e9 e\u0301 \ufb01 \uff21 \u00a0\u2028\ufeff\ufffd")  # what normalisation changes
@example("\U0010ffff\x7f\x80\ufffe")
@example("0123456789" * 3)
@checked
def test_any_text_comes_back_as_it_was(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids.dtype == np.int32
    assert ((ids >= 0) & (ids < tokenizer.vocab_size)).all()


@given(text=spelled)
@checked
def test_text_that_spells_a_special_token_is_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert not set(ids.tolist()) & {tokenizer.separator, *tokenizer.special.values()}
    assert tokenizer.decode(ids) == text


@given(batch=st.lists(texts | spelled, max_size=5))
@checked
def test_a_batch_is_encoded_like_each_of_its_texts(tokenizer, batch):
    encoded = tokenizer.encode_batch(batch)
    assert [ids.tolist() for ids in encoded] == [tokenizer.encode(text).tolist() for text in batch]
    assert all(ids.dtype == np.int32 for ids in encoded)


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def spaceless(request) -> Tokenizer:
    """Trained on text without a space, as Chinese may be."""
    config = settings(vocab_size=269, sentencepiece_model=request.param)
    return train_sentencepiece(["thecatsatonthemat"] * 50, config)


@given(text=texts)
@example(" a  b ")
@checked
def test_spaces_come_back_where_none_was_trained_on(spaceless, text):
    assert spaceless.decode(spaceless.encode(text)) == text


@given(text=texts)
@checked
def test_known_characters_come_back_as_they_were(text):
    tokenizer = character_tokenizer([text], settings(tokenizer="characters", special_tokens=GROUPS))
    ids = tokenizer.encode(text)
    assert (ids.dtype, len(ids)) == (np.int32, len(text))
    assert tokenizer.vocab_size == len(set(text)) + 1 + len(set(tokenizer.special.values()))
    assert tokenizer.separator == len(set(text)) < min(tokenizer.special.values())
    assert not set(ids.tolist()) & {tokenizer.separator, *tokenizer.special.values()}
    assert tokenizer.decode(ids) == text
    assert [i.tolist() for i in tokenizer.encode_batch([text, ""])] == [ids.tolist(), []]


def test_special_tokens_have_ids_of_their_own(tokenizer):
    names = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", *(f"<extra_id_{i}>" for i in range(100))]
    names += ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"]
    assert sorted(tokenizer.special) == sorted(names)
    ids = {tokenizer.separator, *tokenizer.special.values()}
    assert len(ids) == 1 + 108
    assert max(ids) < tokenizer.vocab_size


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_come_after_the_vocabulary_and_change_no_other_id(kind):
    plain, special = make(kind), make(kind, special_tokens=("masked",))
    first = plain.vocab_size
    names = ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    assert special.special == {name: first + i for i, name in enumerate(names)}
    assert special.vocab_size == first + 4
    assert (plain.special, plain.separator) == ({}, special.separator)
    assert special.encode(TEXTS[0]).tolist() == plain.encode(TEXTS[0]).tolist()


def test_the_order_of_groups_makes_no_difference():
    orders = [("masked", "infill"), ("infill", "masked")]
    first, second = (make("bytes", special_tokens=groups).special for groups in orders)
    assert first == second


def test_separator_special_tokens_and_padded_vocabulary_decode_to_nothing(tokenizer):
    size = tokenizer.vocab_size
    extra = [tokenizer.separator, *tokenizer.special.values(), size, size + 100]
    ids = tokenizer.encode("one two").tolist()
    assert tokenizer.decode(extra + ids + extra) == "one two"
    assert tokenizer.decode(np.array(ids[:1] + extra + ids[1:], np.uint32)) == "one two"
    assert tokenizer.decode(iter(extra)) == ""


def test_half_a_pair_of_utf16_is_refused_as_a_setting(tokenizer):
    for refusing in (tokenizer, CharacterTokenizer("ab")):
        for encode in (refusing.encode, lambda text, t=refusing: t.encode_batch(["a", text])):
            with pytest.raises(SettingsError, match="at character 1, which UTF-8 cannot encode"):
                encode("a\ud800b")


def test_ids_of_bytes_are_the_bytes_of_utf8():
    assert ByteTokenizer().encode("aé🙂").tolist() == list("aé🙂".encode())
    assert ByteTokenizer().separator == 256


def test_ids_of_characters_are_their_order_by_code_point():
    tokenizer = character_tokenizer(["hello", "👍é", ""], settings(tokenizer="characters"))
    assert [tokenizer.decode([i]) for i in range(7)] == ["e", "h", "l", "o", "é", "👍", ""]
    assert (tokenizer.separator, tokenizer.vocab_size) == (6, 7)


@pytest.mark.parametrize("unknown", ["a", "q", "z", "🙂", "\0"])
def test_an_unknown_character_is_refused_by_name(unknown):
    with pytest.raises(SettingsError) as error:
        CharacterTokenizer("bcy").encode(f"bc{unknown}{unknown}y")
    assert f"the character {unknown!r} is not among the 3" in str(error.value)
    assert "--data.tokenizer bytes" in str(error.value)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_trained_tokenizer_has_the_asked_size_and_is_shorter_than_bytes(kind):
    trained = make(kind)
    assert trained.vocab_size == 512
    # measured: 0.401 and 0.405
    assert len(trained.encode(TEXTS[0])) < 0.45 * len(TEXTS[0].encode())


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_training_twice_gives_the_same_tokenizer(kind):
    assert make(kind).content() == make(kind).content()


def test_the_kinds_of_sentencepiece_differ():
    assert make("unigram").content() != make("bpe").content()


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_trained_tokenizer_joins_neither_newlines_nor_digits(kind):
    config = settings(vocab_size=512, sentencepiece_model=kind)
    trained = train_sentencepiece([*LINES, *["in 2024"] * 900], config)
    assert len(trained.encode("in")) == 1
    assert len(trained.encode("2024")) == 4
    assert trained.encode("\n\n\n").tolist() == [2, 2, 2]


@pytest.mark.parametrize("vocab_size", [100, 258, 50_000])
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_vocabulary_that_does_not_suit_the_text_is_refused(kind, vocab_size):
    """The size that the refusal names is one that works."""
    config = settings(vocab_size=vocab_size, sentencepiece_model=kind)
    lines = ["the cat sat on the mat"] * 50
    with pytest.raises(SettingsError) as error:
        train_sentencepiece(lines, config)
    begin = rf"data\.vocab_size={vocab_size} must be at (most|least) (\d+) for this text of 1"
    (match,) = [re.match(begin, str(error.value))]
    assert match
    assert "--data.tokenizer bytes" in str(error.value)
    usable = train_sentencepiece(lines, replace(config, vocab_size=int(match[2])))
    assert usable.vocab_size == int(match[2])


def test_lines_with_the_character_that_sentencepiece_keeps_for_itself_teach_it_too():
    """It leaves such lines out without a word: the word that is in them alone would have no piece.

    U+2586 is the control.
    """
    for character in "\u2585\u2586":
        lines = [*LINES, *[f"{character} zebra{character}zebra"] * 200]
        assert len(train_sentencepiece(lines, settings(vocab_size=400)).encode("zebra")) == 1


def test_no_line_to_learn_from_is_too_long_for_sentencepiece():
    lines = [*LINES, *lines_of("\U0001f642" * 5000)]
    assert max(len(line.encode()) for line in lines) == 4000
    assert len(train_sentencepiece(lines, settings(vocab_size=400)).encode("\U0001f642")) == 1


def test_lines_to_learn_from_are_cut_at_newlines_and_1000_characters():
    assert list(lines_of("a\r\n\n" + "b" * 2001)) == ["a\r", "b" * 1000, "b" * 1000, "b"]
    assert SAMPLE_CHARACTERS == 4_000_000


@pytest.mark.parametrize("kind", ["characters", "sentencepiece"])
def test_what_is_trained_is_not_opened(kind):
    assert open_tokenizer(settings(tokenizer=kind)) is None


@pytest.mark.parametrize("kind", ["bytes", "characters", "sentencepiece"])
def test_a_separator_is_chosen_only_of_what_others_made(kind):
    with pytest.raises(SettingsError, match=f"separator_token=x must .* data.tokenizer={kind}, .*"):
        open_tokenizer(settings(tokenizer=kind, separator_token="x"))


def test_content_makes_the_same_tokenizer(tokenizer):
    characters = character_tokenizer(TEXTS, settings(special_tokens=GROUPS))
    for made in (tokenizer, characters):
        loaded = load_tokenizer(made.kind, made.content(), made.special)
        assert tokenizer_digest(loaded) == tokenizer_digest(made)
        assert (loaded.vocab_size, loaded.separator) == (made.vocab_size, made.separator)
        assert loaded.special == made.special
        ids = made.encode(TEXTS[1])
        assert loaded.encode(TEXTS[1]).tolist() == ids.tolist()
        assert loaded.decode(ids) == TEXTS[1]


@pytest.mark.parametrize(
    ("kind", "content", "digest"),
    [
        # printf 'bytes\0bytes' | sha256sum
        ("bytes", b"bytes", "74aad33af5012fd298b17a95bff6ec4c32e41775333ba7b361d0b8d4c76b4ceb"),
        # printf 'characters\0{"alphabet": "ab"}' | sha256sum
        (
            "characters",
            CharacterTokenizer("ab").content(),
            "4e1ac5e8eae7284682c719ac8c9acbb271165170781e45b43f485eb3dde25191",
        ),
        # printf 'sentencepiece\0model' | sha256sum
        (
            "sentencepiece",
            b"model",
            "112dbbd2a5708be923bb04c79d81e36a61450e1d0084c2153e365ef22b17d931",
        ),
    ],
)
def test_without_special_tokens_digests_are_of_kind_and_content(kind, content, digest):
    assert content_digest(kind, content, {}) == digest
    assert content_digest(kind, content, {"[PAD]": 300}) != digest


def test_digests_tell_tokenizers_apart():
    kinds, groups = ("bytes", "bpe", "huggingface"), [(), ("masked",), ("span",), ("infill",)]
    made = [make(kind, special_tokens=group) for kind in kinds for group in groups]
    made += [CharacterTokenizer("ab"), CharacterTokenizer("abc")]
    assert len({tokenizer_digest(tokenizer) for tokenizer in made}) == 3 * 4 + 2


def test_tokenizers_made_here_round_trip_any_text(tokenizer):
    assert lossy_texts(tokenizer) == []
    assert lossy_texts(CharacterTokenizer("ab")) == []  # it refuses instead
