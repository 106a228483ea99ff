"""A tokenizer that leaves as a tokenizer.json is the same one, down to its special tokens."""

import pytest
import tokenizers
from small_families import TOKENIZER
from small_tokenizers import TEXTS, byte_level, content_of, open_content, settings

from data.tokenizers.hf_files import special_tokens_map, to_tokenizer_json
from data.tokenizers.special_tokens import special_token_ids
from data.tokenizers.tokenizer import ByteTokenizer, Tokenizer
from data.tokenizers.train_tokenizer import train_sentencepiece

GROUPS = ("masked", "span")


def of_kind(kind: str) -> Tokenizer:
    match kind:
        case "bytes":
            return ByteTokenizer(special_token_ids(GROUPS, 257))
        case "characters":
            return TOKENIZER
        case "sentencepiece":
            lines = TEXTS[0].splitlines()
            return train_sentencepiece(lines, settings(vocab_size=500, special_tokens=GROUPS))
    return open_content(
        content_of(byte_level("<|endoftext|>", "<mask>")), ".json", special_tokens=GROUPS
    )


@pytest.mark.parametrize("kind", ["bytes", "characters", "sentencepiece", "huggingface"])
def test_every_token_with_a_meaning_has_the_spelling_and_the_id_that_it_has_here(kind):
    tokenizer = of_kind(kind)
    content = to_tokenizer_json(tokenizer)
    assert content is not None
    made = tokenizers.Tokenizer.from_str(content.decode())
    assert made.get_vocab_size() <= tokenizer.vocab_size
    ids = {
        name: made.token_to_id(token)
        for name, token in special_tokens_map(tokenizer, content).items()
    }
    special = tokenizer.special
    assert ids == {
        "bos_token": tokenizer.separator,
        "eos_token": tokenizer.separator,
        "pad_token": special["[PAD]"],
        "cls_token": special["[CLS]"],
        "sep_token": special["[SEP]"],
        "mask_token": special["[MASK]"],
    }
    assert made.token_to_id("<extra_id_7>") == special["<extra_id_7>"]
    text = TEXTS[0][:500] if kind != "characters" else "0123ABC"
    assert made.encode(text, add_special_tokens=False).ids == tokenizer.encode(text).tolist()


def test_what_was_given_leaves_as_it_came():
    tokenizer = open_content(content_of(byte_level("<|endoftext|>")), ".json")
    assert to_tokenizer_json(tokenizer) == tokenizer.content()
    assert special_tokens_map(tokenizer, tokenizer.content())["eos_token"] == "<|endoftext|>"
