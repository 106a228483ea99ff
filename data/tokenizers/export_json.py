"""Our tokenizers as a tokenizer.json, which `transformers` opens."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from sentencepiece import sentencepiece_model_pb2

from data.tokenizers.tokenizer import CharacterTokenizer, Tokenizer

SEPARATOR = "<|endoftext|>"
"""How a separator is spelled that had no spelling so far."""
_PROBES = (
    "def f(x):\n    return x  # 1234\n\n\tend",
    "The quick  brown fox, jumps over 13 lazy dogs!",
    " leading and trailing ",
)


def as_tokenizer_json(tokenizer: Tokenizer) -> bytes | None:
    """Returns a tokenizer.json that gives every text the ids that the tokenizer gives it.

    None where there is none: it is tried on a few texts, and on all characters that it has.
    """
    import tokenizers

    given = tokenizer.content() if tokenizer.kind == "huggingface" else None
    made = {
        "bytes": _of_bytes,
        "characters": _of_characters,
        "sentencepiece": _of_sentencepiece,
        "huggingface": _as_given,
    }[tokenizer.kind](tokenizer)
    if made is None:
        return None
    named = {index: name for name, index in tokenizer.special.items() if name != "separator"}
    named.setdefault(tokenizer.separator, SEPARATOR)
    have = {*made.get_vocab().values()}
    if given is not None and named.keys() <= have:
        return given
    for index, name in sorted(named.items()):
        if index in have:
            name = made.id_to_token(index)
        made.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False)])
        if made.token_to_id(name) != index:
            return None
    probes = _PROBES
    if isinstance(tokenizer, CharacterTokenizer):
        probes = (tokenizer.alphabet, tokenizer.alphabet[::-1])
    for text in probes:
        ids = made.encode(text, add_special_tokens=False).ids
        if not np.array_equal(ids, tokenizer.encode(text)):
            return None
    return made.to_str().encode()


def named_tokens(tokenizer: Tokenizer, content: bytes) -> dict[str, str]:
    """Returns the tokens with a meaning by their names in tokenizer_config.json.

    Args:
        content: the tokenizer.json, whose spelling they have: another would be a token more.
    """
    import tokenizers

    end, special = tokenizer.separator, tokenizer.special
    ids = {
        "bos_token": end,
        "eos_token": end,
        "pad_token": special.get("[PAD]", end),
        "cls_token": special.get("[CLS]"),
        "sep_token": special.get("[SEP]"),
        "mask_token": special.get("[MASK]"),
    }
    made = tokenizers.Tokenizer.from_str(content.decode())
    spelled = {name: made.id_to_token(index) for name, index in ids.items() if index is not None}
    return {name: token for name, token in spelled.items() if token is not None}


def _as_given(tokenizer: Tokenizer) -> Any:
    from tokenizers import Tokenizer as Made

    return Made.from_str(tokenizer.content().decode())


def _of_bytes(tokenizer: Tokenizer) -> Any:
    from tokenizers import Tokenizer as Made
    from tokenizers import decoders, models, pre_tokenizers

    del tokenizer
    made = Made(models.BPE(vocab=_letters_of_bytes(), merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return made


def _letters_of_bytes() -> dict[str, int]:
    """Returns the letter that byte-level vocabularies write for each byte.

    Source: Radford et al. 2019, the code of GPT-2, bytes_to_unicode.
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def _of_characters(tokenizer: Tokenizer) -> Any:
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Made

    assert isinstance(tokenizer, CharacterTokenizer)
    vocab = {character: i for i, character in enumerate(tokenizer.alphabet)}
    made = Made(models.WordLevel(vocab=vocab, unk_token=None))  # pyright: ignore[reportArgumentType]
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    made.decoder = decoders.Fuse()
    return made


def _of_sentencepiece(tokenizer: Tokenizer) -> Any:
    """Returns what a SentencePiece model of the kinds that are trained here is there."""
    from tokenizers import Tokenizer as Made
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    proto = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    proto.ParseFromString(tokenizer.content())
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces:
        return None
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    if trainer.model_type == 1:
        made = Made(models.Unigram(pieces, trainer.unk_id, trainer.byte_fallback))
    else:
        vocab = {piece: i for i, (piece, _) in enumerate(pieces)}
        made = Made(
            models.BPE(
                vocab=vocab,
                merges=_merges(pieces, vocab),
                unk_token=pieces[trainer.unk_id][0],
                fuse_unk=True,
                byte_fallback=trainer.byte_fallback,
            )
        )
    begin = [normalizers.Prepend("\u2581")] if normalizer.add_dummy_prefix else []
    steps = [*begin, normalizers.Replace(" ", "\u2581")]
    made.normalizer = normalizers.Sequence(steps)  # pyright: ignore[reportArgumentType]
    made.pre_tokenizer = pre_tokenizers.Sequence([])
    undo = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if normalizer.add_dummy_prefix:
        undo.append(decoders.Strip(" ", 1, 0))
    made.decoder = decoders.Sequence(undo)
    return made


def _merges(pieces: list[tuple[str, float]], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """Returns the pairs that make up pieces, those of the best pieces first."""
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
