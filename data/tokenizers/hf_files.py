"""The tokenizer files of a Hugging Face folder: tokenizers as tokenizer.json, special tokens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from data.atomic_files import write_json
from data.tokenizers.bpe_files import bytes_to_unicode
from data.tokenizers.special_tokens import END_OF_TEXT
from data.tokenizers.tokenizer import CharacterTokenizer, Tokenizer

_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
"""In order of preference."""
TOKEN_ID_KEYS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "cls_token_id",
    "sep_token_id",
)
"""Keys of config.json that hold the ids of special tokens."""
_TEST_TEXTS = (
    "def f(x):\n    return x  # 1234\n\n\tend",
    "The quick  brown fox, jumps over 13 lazy dogs!",
    " leading and trailing ",
)


def find_tokenizer_file(folder: Path) -> Path | None:
    return next((folder / name for name in _FILES if (folder / name).is_file()), None)


def write_tokenizer_files(folder: Path, tokenizer: Tokenizer, max_sequence_len: int) -> None:
    """Writes tokenizer.model or tokenizer.json and tokenizer_config.json, as far as possible."""
    if tokenizer.kind == "sentencepiece":
        (folder / "tokenizer.model").write_bytes(tokenizer.content())
    content = to_tokenizer_json(tokenizer)
    if content is not None:
        (folder / "tokenizer.json").write_bytes(content)
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_sequence_len,
            **special_tokens_map(tokenizer, content),
        }
        write_json(folder / "tokenizer_config.json", settings)


def special_tokens_map(tokenizer: Tokenizer, content: bytes) -> dict[str, str]:
    """Returns the special tokens by their keys in tokenizer_config.json, such as eos_token.

    Args:
        content: tokenizer.json; a token is spelled as there, since another spelling adds a token.
    """
    made = tokenizers.Tokenizer.from_str(content.decode())
    ids = {**config_token_ids(tokenizer), "mask_token_id": tokenizer.special.get("[MASK]")}
    del ids["decoder_start_token_id"]
    tokens = {
        key.removesuffix("_id"): made.id_to_token(i) for key, i in ids.items() if i is not None
    }
    return {key: token for key, token in tokens.items() if token is not None}


def config_token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Returns the ids of special tokens by their keys in config.json.

    The separator is both bos and eos.
    """
    separator, special = tokenizer.separator, tokenizer.special
    pad = special.get("[PAD]", separator)
    cls_sep = (special.get("[CLS]"), special.get("[SEP]"))
    ids = zip(TOKEN_ID_KEYS, (separator, separator, pad, separator, *cls_sep), strict=True)
    return {key: token_id for key, token_id in ids if token_id is not None}


def to_tokenizer_json(tokenizer: Tokenizer) -> bytes | None:
    """Returns a tokenizer.json that gives every text the same ids as the tokenizer.

    None if there is none: it is tested on a few texts, and on all characters of an alphabet.
    """
    given = tokenizer.content() if tokenizer.kind == "huggingface" else None
    exported: Any
    if tokenizer.kind == "bytes":
        exported = _from_bytes()
    elif isinstance(tokenizer, CharacterTokenizer):
        exported = _from_characters(tokenizer.alphabet)
    elif tokenizer.kind == "sentencepiece":
        exported = _from_sentencepiece(tokenizer)
    else:
        exported = tokenizers.Tokenizer.from_str(tokenizer.content().decode())
    if exported is None:
        return None
    names = {token_id: name for name, token_id in tokenizer.special.items() if name != "separator"}
    names.setdefault(tokenizer.separator, END_OF_TEXT[0])
    known = {*exported.get_vocab().values()}
    if given is not None and names.keys() <= known:
        return given
    for token_id, name in sorted(names.items()):
        if token_id in known:
            name = exported.id_to_token(token_id)
        exported.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False)])
        if exported.token_to_id(name) != token_id:
            return None
    texts = _TEST_TEXTS
    if isinstance(tokenizer, CharacterTokenizer):
        texts = (tokenizer.alphabet, tokenizer.alphabet[::-1])
    for text in texts:
        ids = exported.encode(text, add_special_tokens=False).ids
        if not np.array_equal(ids, tokenizer.encode(text)):
            return None
    return exported.to_str().encode()


def _from_bytes() -> Any:
    vocab = {character: byte for byte, character in enumerate(bytes_to_unicode())}
    exported = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    exported.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    exported.decoder = decoders.ByteLevel()
    return exported


def _from_characters(alphabet: str) -> Any:
    vocab = {character: i for i, character in enumerate(alphabet)}
    model = models.WordLevel(vocab=vocab, unk_token=None)  # pyright: ignore[reportArgumentType]
    exported = tokenizers.Tokenizer(model)
    exported.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    exported.decoder = decoders.Fuse()
    return exported


def _from_sentencepiece(tokenizer: Tokenizer) -> Any:
    """Returns a SentencePiece model of the types trained here; None for one that normalizes."""
    proto = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    proto.ParseFromString(tokenizer.content())
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces:
        return None
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    if trainer.model_type == 1:
        model = models.Unigram(pieces, trainer.unk_id, trainer.byte_fallback)
    else:
        vocab = {piece: i for i, (piece, _) in enumerate(pieces)}
        model = models.BPE(
            vocab=vocab,
            merges=_merges(pieces, vocab),
            unk_token=pieces[trainer.unk_id][0],
            fuse_unk=True,
            byte_fallback=trainer.byte_fallback,
        )
    exported = tokenizers.Tokenizer(model)
    prefix = [normalizers.Prepend("\u2581")] if normalizer.add_dummy_prefix else []
    steps = [*prefix, normalizers.Replace(" ", "\u2581")]
    exported.normalizer = normalizers.Sequence(steps)  # pyright: ignore[reportArgumentType]
    exported.pre_tokenizer = pre_tokenizers.Sequence([])
    undo = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if normalizer.add_dummy_prefix:
        undo.append(decoders.Strip(" ", 1, 0))
    exported.decoder = decoders.Sequence(undo)
    return exported


def _merges(pieces: list[tuple[str, float]], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    merges = []
    for piece, score in pieces:
        pairs = [
            (piece[:i], piece[i:])
            for i in range(1, len(piece))
            if piece[:i] in vocab and piece[i:] in vocab
        ]
        pairs.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        merges += [(score, pair) for pair in pairs]
    merges.sort(key=lambda merge: merge[0], reverse=True)
    return [pair for _, pair in merges]
