"""Tokenizers that others made: what of a .model or tokenizer.json is taken over, and what not."""

import pytest
from small_tokenizers import (
    byte_level,
    content_of,
    open_content,
    settings,
    trained_elsewhere,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from configs.errors import SettingsError
from data.tokenizers.tokenizer import load_tokenizer, lossy_texts, open_tokenizer, tokenizer_digest

TEXT = "def the_cat(sat):\n    return sat  # on </s> <|endoftext|>"


def test_a_file_is_kept_as_it_is_and_makes_the_same_tokenizer(tmp_path):
    files = {"mine.model": trained_elsewhere(), "mine.json": content_of(byte_level("</s>"))}
    for name, content in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        groups = ("masked", "infill")
        opened = open_tokenizer(settings(tokenizer=str(path), special_tokens=groups))
        assert opened is not None
        assert opened.content() == content
        loaded = load_tokenizer(opened.kind, content, opened.special)
        assert tokenizer_digest(loaded) == tokenizer_digest(opened)
        assert loaded.encode(TEXT).tolist() == opened.encode(TEXT).tolist()
        assert (loaded.vocab_size, loaded.separator) == (opened.vocab_size, opened.separator)


@pytest.mark.parametrize("suffix", [".model", ".json"])
def test_a_missing_file_is_refused(suffix, tmp_path):
    path = tmp_path / f"mine{suffix}"
    with pytest.raises(SettingsError) as error:
        open_tokenizer(settings(tokenizer=str(path)))
    assert f"data.tokenizer={path} must be a file, but there is none; pass" in str(error.value)


@pytest.mark.parametrize("suffix", [".model", ".json"])
@pytest.mark.parametrize(
    "content",
    [b"", b"no model", b"\xff" * 100, b"{}", b"[]", b'{"model": {"type": "BPE"}}', b'{"model": 1}'],
)
def test_a_file_that_does_not_parse_is_refused(suffix, content):
    with pytest.raises(SettingsError, match=r"data\.tokenizer=.* does not parse; pass another"):
        open_content(content, suffix)


def test_padding_truncation_dropout_and_framing_are_not_taken_over():
    tokenizer = byte_level("</s>")
    plain = open_content(content_of(tokenizer), ".json").encode(TEXT).tolist()
    tokenizer.enable_padding(length=1000)
    tokenizer.enable_truncation(5)
    tokenizer.model.dropout = 0.5
    tokenizer.post_processor = processors.TemplateProcessing("</s> $A", None, [("</s>", 0)])
    opened = open_content(content_of(tokenizer), ".json")
    assert [ids.tolist() for ids in opened.encode_batch([TEXT, TEXT])] == [plain, plain]
    assert opened.encode(TEXT).tolist() == plain


def test_the_vocabulary_covers_added_tokens():
    tokenizer = byte_level("<|endoftext|>")
    assert open_content(content_of(tokenizer), ".json").vocab_size == 600
    tokenizer.add_tokens(["    "])
    opened = open_content(content_of(tokenizer), ".json")
    assert opened.vocab_size == 601
    assert 600 in opened.encode("a    b")
    assert opened.decode(opened.encode("a    b")) == "a    b"


@pytest.mark.parametrize(
    ("tokens", "usual"),
    [
        (["<|endoftext|>", "</s>"], "<|endoftext|>"),
        (["<|eot_id|>", "<|end_of_text|>"], "<|end_of_text|>"),
        (["<s>", "</s>"], "</s>"),
        (["</s>", "<eos>"], "<eos>"),  # Gemma, whose </s> is a tag of HTML
        (["[CLS]", "[SEP]"], "[SEP]"),
    ],
)
def test_the_usual_end_of_text_separates_unless_another_token_is_chosen(tokens, usual):
    content = content_of(byte_level(*tokens))
    default = open_content(content, ".json")
    assert default.separator == tokens.index(usual)
    named = open_content(content, ".json", separator_token=usual)
    assert tokenizer_digest(named) == tokenizer_digest(default)
    other = next(token for token in tokens if token != usual)
    chosen = open_content(content, ".json", separator_token=other)
    assert chosen.separator == tokens.index(other)
    assert tokenizer_digest(chosen) != tokenizer_digest(default)
    assert load_tokenizer(chosen.kind, content, chosen.special).separator == chosen.separator


def test_the_end_piece_of_a_model_separates_or_else_its_beginning():
    assert open_content(trained_elsewhere(bos_id=1, eos_id=2), ".model").separator == 2
    assert open_content(trained_elsewhere(bos_id=1, eos_id=-1), ".model").separator == 1
    chosen = open_content(
        trained_elsewhere(control_symbols=["<end>"]), ".model", separator_token="<end>"
    )
    assert chosen.separator == 3
    assert load_tokenizer(chosen.kind, chosen.content(), chosen.special).separator == 3


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".model", trained_elsewhere(bos_id=-1, eos_id=-1)),
        (".json", content_of(byte_level("<|im_start|>"))),
    ],
)
def test_a_file_without_a_usual_separator_wants_one_chosen(suffix, content):
    with pytest.raises(SettingsError) as error:
        open_content(content, suffix)
    assert str(error.value).startswith("data.separator_token=None must be given: data.tokenizer ")
    assert "pass --data.separator-token with one of its tokens" in str(error.value)
    if suffix == ".json":
        assert open_content(content, suffix, separator_token="<|im_start|>").separator == 0


@pytest.mark.parametrize(
    ("suffix", "content"),
    [(".model", trained_elsewhere()), (".json", content_of(byte_level("</s>")))],
)
def test_a_separator_that_is_no_token_is_refused(suffix, content):
    with pytest.raises(SettingsError, match=r"data\.separator_token=<end> must be a token of data"):
        open_content(content, suffix, separator_token="<end>")


def test_a_model_without_bytes_writes_no_unknown_piece_for_the_mark_of_a_space():
    opened = open_content(trained_elsewhere(), ".model")
    assert opened.encode("the\u2581cat").tolist() == opened.encode("the cat").tolist()


def test_a_lower_casing_tokenizer_changes_text():
    alphabet = [chr(c) for c in range(33, 127)] + ["\u00e9", "e\u0301"]
    pieces = ["[UNK]", "[SEP]", *alphabet, *("##" + c for c in alphabet)]
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found = lossy_texts(open_content(content_of(tokenizer), ".json"))
    assert {"upper case", "tabs", "double spaces", "composed accents (NFC)", "Chinese"} <= {*found}


def test_a_normalising_model_changes_text():
    content = trained_elsewhere(
        byte_fallback=True, vocab_size=300, normalization_rule_name="nmt_nfkc"
    )
    found = lossy_texts(open_content(content, ".model"))
    assert {"full-width forms", "combining accents (NFD)", "tabs", "double spaces"} <= {*found}
    assert not {"upper case", "Chinese", "composed accents (NFC)"} & {*found}
