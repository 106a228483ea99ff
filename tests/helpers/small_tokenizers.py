"""Small tokenizers made with other libraries, and settings that open them."""

import argparse
import io
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from configs.data import PrepareConfig
from data.tokenizers.tokenizer import Tokenizer, open_tokenizer

TEXTS = [Path(str(module.__file__)).read_text() for module in (argparse, textwrap)]
"""A hundred kilobytes of the standard library."""


def settings(**changes: Any) -> PrepareConfig:
    return PrepareConfig(**changes)


def open_content(content: bytes, suffix: str, **changes: Any) -> Tokenizer:
    """Returns the tokenizer of a file with this content and suffix, .model or .json."""
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        Path(file.name).write_bytes(content)
        tokenizer = open_tokenizer(settings(tokenizer=file.name, **changes))
    assert tokenizer is not None
    return tokenizer


def byte_level(*special: str) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer like GPT-2's, with these special tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(special),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def unigram(*first: str, unknown: str = "<unk>") -> tokenizers.Tokenizer:
    """A Unigram tokenizer like T5's, of letters, with special tokens first."""
    special = [*first, unknown]
    pieces = [(piece, 0.0) for piece in special] + [(c, -5.0) for c in "\u2581abcdefpsx</>"]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, len(first)))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(special)
    return tokenizer


def content_of(tokenizer: tokenizers.Tokenizer) -> bytes:
    return tokenizer.to_str().encode()


def trained_elsewhere(**changes: Any) -> bytes:
    """A .model made as others make them."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        model_writer=model,
        **{
            "sentence_iterator": iter(["the cat sat on the mat"] * 20),
            "vocab_size": 24,
            "hard_vocab_limit": False,
            "minloglevel": 2,
            **changes,
        },
    )
    return model.getvalue()
