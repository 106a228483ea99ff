"""Tokenizers trained on the prepared text: its characters, or a SentencePiece model."""

import io
import re
from collections.abc import Iterable, Iterator

import sentencepiece

from configs.data import PrepareConfig
from configs.errors import SettingsError
from data.tokenizers.special_tokens import special_token_ids
from data.tokenizers.subword_backends import SentencePieceModel
from data.tokenizers.subword_tokenizer import SubwordTokenizer
from data.tokenizers.tokenizer import CharacterTokenizer

SAMPLE_CHARACTERS = 4_000_000
"""Characters that a tokenizer is trained on; more changes little and takes long."""

_LINE_CHARACTERS = 1000  # at most 4000 bytes: SentencePiece skips lines above 4192
_NUM_SPECIAL = 2 + 256  # <unk>, </s> and the bytes
UNK_CHARACTER = "\u2585"
"""SentencePiece uses it for <unk> and skips training lines that contain it."""
_LIMITS = {"at most": r"set it to a value <= (\d+)", "at least": r"required_chars\. \d+ vs (\d+)"}


def lines_of(text: str) -> Iterator[str]:
    """Yields the lines of a text without newlines, long ones in parts of 1000 characters."""
    begin = 0
    while begin < len(text):
        end = text.find("\n", begin)
        end = len(text) if end < 0 else end
        for start in range(begin, end, _LINE_CHARACTERS):
            yield text[start : min(start + _LINE_CHARACTERS, end)]
        begin = end + 1


def character_tokenizer(alphabet: Iterable[str], config: PrepareConfig) -> CharacterTokenizer:
    characters = "".join(sorted({character for part in alphabet for character in part}))
    special = special_token_ids(config.special_tokens, len(characters) + 1)
    return CharacterTokenizer(characters, special)


def train_sentencepiece(lines: Iterable[str], config: PrepareConfig) -> SubwordTokenizer:
    """Returns a SentencePiece model trained on lines, which decodes any text to itself.

    Rare characters are encoded as bytes. The same lines give the same model on any machine of one
    architecture. It has vocab_size pieces; special tokens come after them. Lines are split at
    UNK_CHARACTER, so that the rest of such a line is trained on.

    Raises:
        SettingsError: data.vocab_size does not fit the lines.
    """
    lines = [part for line in lines for part in line.split(UNK_CHARACTER) if part]
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
            num_threads=2,  # fixed, since another number gives another model
            minloglevel=2,
        )
    except RuntimeError as error:
        message = str(error).splitlines()[0]
        found = ((way, re.search(limit, message)) for way, limit in _LIMITS.items())
        limit = next((f"{way} {match[1]}" for way, match in found if match), "another")
        raise SettingsError(
            f"data.vocab_size={config.vocab_size} must be {limit} for this text of "
            f"{sum(map(len, lines))} characters ({_NUM_SPECIAL} special and byte pieces, one "
            "for each character): pass such a --data.vocab-size, or --data.tokenizer bytes. "
            f"SentencePiece reports: {message}"
        ) from None
    content = model.getvalue()
    special = special_token_ids(config.special_tokens, config.vocab_size)
    return SubwordTokenizer(SentencePieceModel(content), content, special)
