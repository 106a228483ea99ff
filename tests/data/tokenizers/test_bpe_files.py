"""Vocabularies without a tokenizer.json: tiktoken's ranks, and a vocab.json beside its merges."""

import base64
import itertools
import json
import random
from pathlib import Path

import pytest
from small_corpora import corpus_config, prepared, stored_documents
from small_tokenizers import TEXTS, byte_level, settings
from tokenizers import Regex, pre_tokenizers

from configs.errors import SettingsError
from data.tokenizers.bpe_files import SPLIT_PATTERNS, bytes_to_unicode
from data.tokenizers.tokenizer import Tokenizer, open_tokenizer

WORDS = "The cat's 12345 caféS, 世界!\r\n\n  indented   MixedCase I'LL <|endoftext|> 🙂\0 aaaaaaa"


def ranks_of(num_merges: int = 300) -> dict[bytes, int]:
    """Ranks of a byte-level BPE, bytes first in an order of their own."""
    model = json.loads(byte_level().to_str())["model"]
    byte_of = {character: byte for byte, character in enumerate(bytes_to_unicode())}
    tokens = [bytes(byte_of[c] for c in token) for token in model["vocab"]]
    return {token: rank for rank, token in enumerate(tokens[: 256 + num_merges])}


def write_ranks(path: Path, ranks: dict[bytes, int]) -> Path:
    lines = (f"{base64.b64encode(token).decode()} {rank}" for token, rank in ranks.items())
    path.write_text("\n".join(lines) + "\n")
    return path


def words_of(text: str, pattern: str) -> list[str]:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return [word for word, _ in split.pre_tokenize_str(text)]


def tiktoken_ids(text: str, ranks: dict[bytes, int], pattern: str) -> list[int]:
    """The algorithm of tiktoken: of neighbours that make a token, the lowest rank, leftmost."""
    ids = []
    for word in map(str.encode, words_of(text, pattern)):
        parts = [word] if word in ranks else [word[i : i + 1] for i in range(len(word))]
        while len(parts) > 1:
            joined = [ranks.get(a + b, len(ranks)) for a, b in itertools.pairwise(parts)]
            place = min(range(len(joined)), key=joined.__getitem__)
            if joined[place] == len(ranks):
                break
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        ids += [ranks[part] for part in parts]
    return ids


def opened(path: Path, **changes: object) -> Tokenizer:
    tokenizer = open_tokenizer(settings(tokenizer=str(path), **changes))
    assert tokenizer is not None
    return tokenizer


@pytest.mark.parametrize("name", [*SPLIT_PATTERNS, r"\w+|\W"])
@pytest.mark.parametrize("alphabet", ["trained", "of two letters"])
def test_ranks_give_the_ids_of_the_algorithm_of_tiktoken(tmp_path, name, alphabet):
    ranks = ranks_of()
    draw = random.Random(0)
    if alphabet == "of two letters":  # so that tokens can be made in many ways
        ranks = {bytes([byte]): byte for byte in range(256)}
        while len(ranks) < 600:
            left, right = (draw.choice([*ranks][97:99] + [*ranks][256:]) for _ in range(2))
            ranks.setdefault(left + right, len(ranks))
    tokenizer = opened(write_ranks(tmp_path / "x.tiktoken", ranks), split_pattern=name)
    pattern = str(SPLIT_PATTERNS.get(name, name))
    texts = [WORDS, *(text[:3000] for text in TEXTS)]
    texts += ["".join(draw.choices("aab b'S1\n é世", k=40)) for _ in range(500)]
    texts += ["".join(draw.choices("ab", k=60)) for _ in range(500)]
    for text in texts:
        ids = tokenizer.encode(text).tolist()
        assert tokenizer.decode(ids) == text
        assert ids == tiktoken_ids(text, ranks, pattern), text
    assert tokenizer.separator == len(ranks)


def test_a_word_that_is_a_token_is_it_though_no_merges_lead_there(tmp_path):
    ranks = {**{bytes([byte]): byte for byte in range(256)}, b" hello": 256}
    tokenizer = opened(write_ranks(tmp_path / "x.tiktoken", ranks), split_pattern="gpt2")
    assert tokenizer.encode("a hello").tolist() == [ord("a"), 256]


def test_known_encodings_cut_words_as_tiktoken_does():
    """As tiktoken 0.14 cuts them by the same names."""
    text = "It's 12345 IT'LL\r\n\n  fooBar//\n x"
    cut = {name: "|".join(words_of(text, pattern)) for name, pattern in SPLIT_PATTERNS.items()}
    assert cut == {
        "gpt2": "It|'s| 12345| IT|'|LL|\r\n\n | fooBar|//|\n| x",
        "cl100k_base": "It|'s| |123|45| IT|'LL|\r\n\n| | fooBar|//\n| x",
        "o200k_base": "It's| |123|45| IT'LL|\r\n\n| | foo|Bar|//\n| x",
    }


def test_the_end_of_text_has_the_id_that_it_has_in_a_known_encoding(tmp_path):
    ranks = ranks_of(0)
    ranks |= {b"\xff" + i.to_bytes(3, "big"): i for i in range(256, 100_256)}
    path = write_ranks(tmp_path / "x.tiktoken", ranks)
    tokenizer = opened(path, split_pattern="cl100k_base")
    assert (tokenizer.separator, tokenizer.vocab_size) == (100_257, 100_258)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "gpt2-vocab.json", "gpt2-merges.txt"])
def test_a_vocabulary_beside_its_merges_is_a_tokenizer(tmp_path, name):
    made = byte_level("<|endoftext|>")
    stem = name.removesuffix("vocab.json").removesuffix("merges.txt")
    model = json.loads(made.to_str())["model"]
    (tmp_path / f"{stem}vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (tmp_path / f"{stem}merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    tokenizer = opened(tmp_path / name)
    for text in (WORDS.replace("<|endoftext|>", ""), *TEXTS):
        assert tokenizer.encode(text).tolist() == made.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(WORDS)) == WORDS
    assert tokenizer.separator == 0
    (tmp_path / "tokenizer.json").write_text(made.to_str())
    with pytest.raises(SettingsError, match=r"tokenizer\.json has: pass that, or --data\.split-p"):
        opened(tmp_path / name)
    assert opened(tmp_path / name, split_pattern="gpt2").vocab_size == tokenizer.vocab_size
    (tmp_path / f"{stem}merges.txt").unlink()
    if name.endswith("vocab.json"):
        with pytest.raises(SettingsError, match=r"merges\.txt is missing; copy both"):
            opened(tmp_path / name, split_pattern="gpt2")


@pytest.mark.parametrize(
    ("content", "pattern", "message"),
    [
        (None, None, "data.split_pattern=None must be gpt2"),
        (None, "cl200k", "data.split_pattern=cl200k must be gpt2"),
        (None, "(", "does not parse"),
        (b"no ranks", "gpt2", "does not parse"),
        (b"IQ== 0\n", "gpt2", "it has no token for the byte 0x00"),
    ],
)
def test_ranks_that_cannot_be_used_are_refused(tmp_path, content, pattern, message):
    path = write_ranks(tmp_path / "x.tiktoken", ranks_of())
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError) as error:
        opened(path, split_pattern=pattern)
    assert message in str(error.value)
    with pytest.raises(SettingsError, match=r"data\.split_pattern=gpt2 must not be given with"):
        open_tokenizer(settings(tokenizer="bytes", split_pattern="gpt2"))


def test_text_is_prepared_with_ranks(tmp_path):
    path = write_ranks(tmp_path / "x.tiktoken", ranks_of())
    (tmp_path / "a.txt").write_text(WORDS)
    config = corpus_config(
        tmp_path / "a.txt", tokenizer=str(path), split_pattern="gpt2", validation_fraction=0
    )
    store = prepared(config, tmp_path / "out")
    assert stored_documents(store, "train") == [WORDS]
