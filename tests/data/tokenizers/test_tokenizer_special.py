"""Special tokens of tokenizers that others made: found under their names, and never text."""

import json

import pytest
from small_tokenizers import byte_level, content_of, open_content, trained_elsewhere, unigram
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from configs.errors import SettingsError
from data.tokenizers.tokenizer import load_tokenizer

MASKED = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
INFILL = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>")


def with_pieces(*control: str, **changes) -> bytes:
    """A .model that has these pieces, which text cannot write, at 3 and on."""
    return trained_elsewhere(control_symbols=list(control), **changes)


def words(*vocabulary: str, unknown: str) -> bytes:
    """A tokenizer.json that knows whole words between spaces."""
    ids = {word: i for i, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return content_of(tokenizer)


@pytest.mark.parametrize(
    ("suffix", "names", "tokens"),
    [
        (".json", MASKED, ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]),
        (".json", MASKED, ["<pad>", "<cls>", "<sep>", "<mask>"]),
        (".json", MASKED, ["<pad>", "<s>", "</s>", "<mask>"]),  # RoBERTa's
        (".json", INFILL, ["<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>"]),
        (".json", INFILL, ["<fim-prefix>", "<fim-middle>", "<fim-suffix>", "<fim-pad>"]),
        (
            ".json",
            INFILL,
            ["<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581end\uff5c>"],
        ),  # DeepSeek's
        (".json", INFILL, ["[PREFIX]", "[MIDDLE]", "[SUFFIX]"]),
        (".model", MASKED, ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]),
        (".model", INFILL, ["\u2581<PRE>", "\u2581<MID>", "\u2581<SUF>"]),  # Code Llama's
    ],
)
def test_a_token_under_a_usual_name_is_not_added_again(suffix, names, tokens):
    is_json = suffix == ".json"
    content = content_of(byte_level(*tokens, "</s>")) if is_json else with_pieces(*tokens)
    opened = open_content(content, suffix, special_tokens=("masked", "infill"))
    found = [opened.special[name] for name in names[: len(tokens)]]
    assert found == [(0 if is_json else 3) + i for i in range(len(tokens))]
    assert len(set(opened.special.values())) == 8


def test_a_lone_end_of_text_is_no_end_of_sentence_for_masking():
    opened = open_content(
        content_of(byte_level("</s>", "<pad>")), ".json", special_tokens=("masked",)
    )
    assert opened.special == {"[PAD]": 1, "[CLS]": 600, "[SEP]": 601, "[MASK]": 602}
    assert (opened.separator, opened.vocab_size) == (0, 603)


def test_html_tags_beside_an_end_of_text_are_not_special():
    content = content_of(byte_level("<eos>", "<s>", "</s>"))
    opened = open_content(content, ".json", special_tokens=("masked",))
    assert opened.special == {"[PAD]": 600, "[CLS]": 601, "[SEP]": 602, "[MASK]": 603}


def test_only_the_separating_token_of_masking_may_be_the_separator():
    content = content_of(byte_level("<pad>", "[SEP]"))
    opened = open_content(content, ".json", special_tokens=("masked",), separator_token="<pad>")
    assert opened.special == {"separator": 0, "[PAD]": 600, "[CLS]": 601, "[SEP]": 1, "[MASK]": 602}
    usual = open_content(content, ".json", special_tokens=("masked",))
    assert usual.special["[SEP]"] == usual.separator == 1


def test_sentinels_of_mt5_are_found():
    opened = open_content(with_pieces("\u2581<extra_id_1>"), ".model", special_tokens=("span",))
    assert opened.special["<extra_id_1>"] == 3
    assert opened.special["<extra_id_0>"] == opened.vocab_size - 99


def spells(tokenizer, token: str) -> None:
    """Asserts that text which spells a token comes back, without the ids of special ones."""
    for text in (token, f"a {token}b", f"{token}{token}"):
        ids = tokenizer.encode(text)
        assert not set(ids.tolist()) & {tokenizer.separator, *tokenizer.special.values()}
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode([tokenizer.separator, *ids]) == text


def test_a_special_token_that_a_file_calls_ordinary_is_no_text():
    tokenizer = byte_level("<|endoftext|>")
    tokenizer.add_tokens([AddedToken("<|fim_prefix|>", special=False)])  # as Qwen has it
    opened = open_content(content_of(tokenizer), ".json", special_tokens=("infill",))
    assert opened.special["<|fim_prefix|>"] == 600
    spells(opened, "<|fim_prefix|>")


def test_special_tokens_in_text_are_cut_into_pieces_like_other_text():
    tokenizer = byte_level("<|endoftext|>", "<|return|>")
    tokenizer.add_tokens([AddedToken("<|fim_prefix|>", special=False)])
    opened = open_content(content_of(tokenizer), ".json", special_tokens=("infill",))
    for token in ("<|return|>", "<|fim_prefix|>"):
        assert len(opened.encode(token)) < len(token)


def test_unknown_text_has_the_id_of_the_unknown_token():
    opened = open_content(content_of(unigram("</s>")), ".json")
    assert opened.encode("q").tolist()[1:] == [1]
    assert opened.decode(opened.encode("a q")) == "a <unk>"


def letters(token: str) -> list[int]:
    return [3 + "\u2581abcdefpsx</>".index(c) for c in token]


def test_a_special_token_that_is_a_piece_like_any_other_is_no_text():
    opened = open_content(content_of(unigram("<pad>", "</s>")), ".json")
    for token in ("</s>", "<pad>"):
        ids = [*opened.encode("a ").tolist(), *letters(token)]
        assert opened.encode(f"a {token}").tolist() == ids


@pytest.mark.parametrize("sentence", ["the cat", "thecat"])  # the second makes no piece of a space
def test_a_piece_that_text_can_write_may_be_special(sentence):
    content = trained_elsewhere(
        sentence_iterator=iter([sentence] * 20),
        user_defined_symbols=["<mask>", "\u2581<PRE>"],
        byte_fallback=True,
        vocab_size=300,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
    )
    opened = open_content(content, ".model", special_tokens=("masked", "infill"))
    assert [opened.special[name] for name in ("[MASK]", "<|fim_prefix|>")] == [3, 4]
    for token in ("<mask>", " <PRE>"):
        spells(opened, token)


def test_an_ordinary_word_may_separate():
    content = content_of(byte_level())
    opened = open_content(content, ".json", separator_token="\u0120the")
    otherwise = load_tokenizer("huggingface", content, {"separator": 0})
    assert otherwise.encode(" the").tolist() == [opened.separator]
    spells(opened, " the")


@pytest.mark.parametrize(
    ("content", "separator", "fine", "needing"),
    [
        (content_of(byte_level()), "a", "be", "a"),
        (content_of(byte_level()), "\u010a", "be", "\n"),
        (words("<eos>", "the", *"<eos>", unknown="<eos>"), None, "the s >", "dog"),
        (words("the", "t", "e", unknown="<unk>"), "the", "t e", "the"),  # no h, and no <unk>
    ],
)
def test_a_separator_that_text_needs_is_refused_by_name(content, separator, fine, needing):
    opened = open_content(content, ".json", separator_token=separator)
    assert opened.separator not in opened.encode(fine)
    with pytest.raises(SettingsError) as error:
        opened.encode(needing)
    assert str(error.value).startswith(
        f"the text contains {separator or '<eos>'}, which is reserved"
    )
    assert "pass another --data.separator-token" in str(error.value)


def test_a_special_token_is_not_written_with_an_unknown_one_that_separates():
    content = words("<eos>", "<pad>", unknown="<eos>")
    opened = open_content(content, ".json", special_tokens=("masked",))
    with pytest.raises(SettingsError, match="the text contains <pad>, which is reserved"):
        opened.encode("<pad>")


def test_a_space_that_separates_is_written_in_bytes():
    content = trained_elsewhere(byte_fallback=True, vocab_size=300, add_dummy_prefix=False)
    opened = open_content(content, ".model", separator_token="\u2581")
    assert opened.separator not in opened.encode("t t")
    assert opened.decode(opened.encode("t t")) == "t t"


def test_text_that_a_file_has_no_token_for_is_refused():
    opened = open_content(words("</s>", "the", unknown="<unk>"), ".json")
    with pytest.raises(SettingsError, match=r"data\.tokenizer cannot encode the text"):
        opened.encode("the dog")


def test_a_separator_that_is_only_in_the_vocabulary_is_no_text():
    document = json.loads(content_of(byte_level("</s>")))
    document["added_tokens"] = []
    opened = open_content(json.dumps(document).encode(), ".json")
    assert opened.separator == 0
    spells(opened, "</s>")
