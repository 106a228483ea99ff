"""BPE files converted to a tokenizer.json: tiktoken's ranks, and vocab.json with merges.txt."""

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path

from configs.data import PrepareConfig
from configs.require import require
from data.tokenizers.special_tokens import END_OF_TEXT

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
SPLIT_PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k_base": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    "o200k_base": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",
}
"""Regular expressions that split text into words. Source: tiktoken_ext/openai_public.py."""
_ENDS_OF_TEXT = {100_256: 100_257, 199_998: 199_999}  # number of ranks: id of <|endoftext|>


def from_tiktoken(content: bytes, config: PrepareConfig) -> bytes:
    """Returns the tokenizer.json of a .tiktoken file, which has a base64 token and its rank a line.

    tiktoken merges any two neighbours that make up the token of lowest rank, so every split of a
    token into two becomes a merge. <|endoftext|> has its id in tiktoken, else the next free one.
    """
    lines = [line.split() for line in content.splitlines() if line.strip()]
    ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ValueError(f"it has no token for the byte {missing[0]:#04x}")
    pattern = config.split_pattern
    require(
        pattern in SPLIT_PATTERNS or not re.fullmatch(r"[\w-]*", pattern or ""),
        f"data.split_pattern={pattern} must be {', '.join(SPLIT_PATTERNS)} or a regular "
        f"expression that splits text into words: data.tokenizer={config.tokenizer} has none",
    )
    merges = [
        (token[:i], token[i:])
        for token in sorted(ranks, key=ranks.__getitem__)
        for i in range(1, len(token))
        if token[:i] in ranks and token[i:] in ranks
    ]
    characters = bytes_to_unicode()

    def spell(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    vocab = {spell(token): rank for token, rank in ranks.items()}
    vocab.setdefault(END_OF_TEXT[0], _ENDS_OF_TEXT.get(len(ranks), max(ranks.values()) + 1))
    spelled = [(spell(left), spell(right)) for left, right in merges]
    return _tokenizer_json(vocab, spelled, str(config.split_pattern), whole_words=True)


def from_vocab(path: Path, config: PrepareConfig) -> bytes:
    """Returns the tokenizer.json of NAMEvocab.json and NAMEmerges.txt, given the path of either.

    Raises:
        ValueError: they are not those of a byte-level BPE.
        SettingsError: one is missing, or a tokenizer.json beside them also has the split pattern.
    """
    names = [path.name.removesuffix("merges.txt"), path.name.removesuffix("vocab.json")]
    vocab_path, merges_path = (
        path.with_name(min(names, key=len) + end) for end in ("vocab.json", "merges.txt")
    )
    for each in (vocab_path, merges_path):
        require(
            each.is_file(),
            f"data.tokenizer={config.tokenizer} must be a vocab.json beside its merges.txt, but "
            f"{each} is missing; copy both",
        )
    tokenizer_json = path.with_name("tokenizer.json")
    require(
        config.split_pattern is not None or not tokenizer_json.is_file(),
        f"data.tokenizer={config.tokenizer} has no split pattern, and {tokenizer_json} has: pass "
        "that, or --data.split-pattern",
    )
    vocab = json.loads(vocab_path.read_bytes())
    lines = merges_path.read_text(encoding="utf-8").splitlines()
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{merges_path} must have two tokens on each line")
    if not isinstance(vocab, dict) or not set(bytes_to_unicode()) <= vocab.keys():
        raise ValueError(f"{vocab_path} lacks tokens of some bytes: it is not a byte-level BPE")
    merges = [(left, right) for left, right in pairs]
    return _tokenizer_json(vocab, merges, config.split_pattern or "gpt2", whole_words=False)


def _tokenizer_json(
    vocab: Mapping[str, int], merges: list[tuple[str, str]], pattern: str, *, whole_words: bool
) -> bytes:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    try:
        model = models.BPE(dict(vocab), merges, ignore_merges=whole_words)
        split = pre_tokenizers.Split(Regex(SPLIT_PATTERNS.get(pattern, pattern)), "isolated")
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(str(error)) from None
    tokenizer = Tokenizer(model)
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, spell])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer.to_str().encode()


def bytes_to_unicode() -> list[str]:
    """Returns the character that stands for each byte. Source: GPT-2's function of this name."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
