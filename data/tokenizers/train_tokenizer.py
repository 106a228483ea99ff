"""Tokenizers that are learned from one's own text: its characters, or SentencePiece models."""

import io
import re
from collections.abc import Iterable, Iterator

import sentencepiece

from configs.data import PrepareConfig
from configs.errors import SettingsError
from data.tokenizers.special_tokens import special_ids
from data.tokenizers.subwords import SentencePieceModel, SubwordTokenizer
from data.tokenizers.tokenizer import CharacterTokenizer

SAMPLE_CHARACTERS = 4_000_000
"""As much text as a tokenizer learns from; more changes little and takes long."""

_LINE_CHARACTERS = 1000  # 4000 bytes at most: SentencePiece leaves out a line of more than 4192
_NUM_SPECIAL = 2 + 256  # <unk>, </s> and the bytes
RESERVED = "\u2585"
"""SentencePiece leaves out a line that has this character, which stands for <unk> in it."""
_LIMITS = {"at most": r"set it to a value <= (\d+)", "at least": r"required_chars\. \d+ vs (\d+)"}


def lines_of(text: str) -> Iterator[str]:
    """Yields the lines of a text without their ends, long ones in parts of 1000 characters."""
    begin = 0
    while begin < len(text):
        end = text.find("\n", begin)
        end = len(text) if end < 0 else end
        for start in range(begin, end, _LINE_CHARACTERS):
            yield text[start : min(start + _LINE_CHARACTERS, end)]
        begin = end + 1


def learn_characters(alphabet: Iterable[str], config: PrepareConfig) -> CharacterTokenizer:
    """Returns the tokenizer of all characters in some strings, whatever their order."""
    characters = "".join(sorted({character for part in alphabet for character in part}))
    special = special_ids(config.special_tokens, len(characters) + 1)
    return CharacterTokenizer(characters, special)


def learn_sentencepiece(lines: Iterable[str], config: PrepareConfig) -> SubwordTokenizer:
    """Returns a SentencePiece model trained on lines, which gives back any text exactly.

    Bytes stand in for what is rare. The same lines give the same model, on any machine of one
    architecture. It has vocab_size pieces; special tokens come after them. Lines are split at
    RESERVED, so that it learns from what is beside it.

    Raises:
        SettingsError: data.vocab_size does not suit the lines.
    """
    lines = [part for line in lines for part in line.split(RESERVED) if part]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=config.vocab_size,
            model_type=config.sentencepiece_model,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            user_defined_symbols=["\n"],
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            num_threads=2,  # whatever the machine has: another number gives another model
            minloglevel=2,
        )
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        found = ((way, re.search(limit, said)) for way, limit in _LIMITS.items())
        limit = next((f"{way} {match[1]}" for way, match in found if match), "another")
        raise SettingsError(
            f"data.vocab_size={config.vocab_size} must be {limit} for this text of "
            f"{sum(map(len, lines))} characters ({_NUM_SPECIAL} pieces are special, and each "
            "character has one): pass such a --data.vocab_size, or --data.tokenizer bytes. "
            f"SentencePiece says: {said}"
        ) from None
    content = model.getvalue()
    special = special_ids(config.special_tokens, config.vocab_size)
    return SubwordTokenizer(SentencePieceModel(content), content, special)
