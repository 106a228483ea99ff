"""Subword vocabularies, each with its library: SentencePiece models and tokenizer.json files."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import sentencepiece

from configs.errors import SettingsError
from data.tokenizers.special_tokens import END_OF_TEXT

SPACE_MARK = "\u2581"  # how SentencePiece writes a space


class SentencePieceModel:
    """A SentencePiece model: a .model file, or one from `train_sentencepiece`.

    Its ids are below `size`; `end_of_text` is the usual separator of documents.
    """

    kind = "sentencepiece"

    def __init__(self, content: bytes):
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(content)
        except RuntimeError as error:
            raise ValueError(str(error)) from None
        self._without_prefix = _without_dummy_prefix(content)
        self.size: int = self._processor.vocab_size()
        ends = [i for i in (self._processor.eos_id(), self._processor.bos_id()) if i >= 0]
        self.end_of_text: int | None = ends[0] if ends else None
        self.unknown: int | None = self._processor.unk_id()
        # The mark would decode to a space, and a space to the mark if no piece has it: both are
        # encoded as bytes.
        characters = SPACE_MARK if self.id_of(SPACE_MARK) is not None else SPACE_MARK + " "
        written = {c: [self.id_of(f"<0x{byte:02X}>") for byte in c.encode()] for c in characters}
        has_bytes = None not in written[SPACE_MARK]
        self._in_bytes = {c: np.array(ids, np.int32) for c, ids in written.items() if has_bytes}
        self._needs_bytes = re.compile(f"([{characters}])") if has_bytes else re.compile("(?!)")
        self._is_plain_ascii = not any(map(str.isascii, self._in_bytes))

    def id_of(self, piece: str) -> int | None:
        # The library returns the unknown id for any other string.
        piece_id = self._processor.piece_to_id(piece)
        return piece_id if self._processor.id_to_piece(piece_id) == piece else None

    def piece(self, piece_id: int) -> str:
        return self._processor.id_to_piece(piece_id)

    def reserve(self, ids: Iterable[int]) -> set[int]:
        return set(ids)  # the library itself keeps control pieces out of text

    def encode_batch(self, texts: Sequence[str], *, mid_document: bool) -> list[np.ndarray]:
        """Returns the ids of each text, int32, read-only; some may still be reserved.

        Args:
            mid_document: the texts continue documents, so no space is prepended.
        """
        return [self._encode(text, mid_document) for text in texts]

    def _encode(self, text: str, mid_document: bool) -> np.ndarray:
        if (text.isascii() and self._is_plain_ascii) or self._needs_bytes.search(text) is None:
            return self._encode_plain(text, mid_document)
        parts = [
            self._in_bytes[part]
            if part in self._in_bytes
            else self._encode_plain(part, mid_document or i > 0)
            for i, part in enumerate(self._needs_bytes.split(text))
        ]
        return np.concatenate(parts)

    def _encode_plain(self, text: str, mid_document: bool) -> np.ndarray:
        # If the model drops leading spaces, the dummy prefix replaces the one of the text.
        processor = self._processor
        if mid_document and self._without_prefix:
            without_prefix, drops_space = self._without_prefix
            if not (drops_space and text.startswith(" ")):
                processor = without_prefix
        return processor.encode(text, return_type="numpy")

    def decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)


def _without_dummy_prefix(content: bytes) -> tuple[Any, bool] | None:
    """Returns the model without its dummy prefix, and whether it drops spaces; None if it has none.

    Source: sentencepiece_model.proto, NormalizerSpec.
    """
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(content)  # type: ignore[attr-defined]
    if not model.normalizer_spec.add_dummy_prefix:
        return None
    model.normalizer_spec.add_dummy_prefix = False
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    return processor, model.normalizer_spec.remove_extra_whitespaces


class HuggingFaceModel:
    """A tokenizer.json without its padding, truncation, BPE dropout and post-processing.

    Its interface is that of SentencePieceModel.
    """

    kind = "huggingface"

    def __init__(self, content: bytes):
        self._tokenizer = _plain_tokenizer(content)
        settings: dict[str, Any] = json.loads(content)
        model = settings["model"]
        steps = {name: settings.get(name) for name in ("normalizer", "pre_tokenizer")}
        without_prefix = {name: _without_prefix(step) for name, step in steps.items()}
        self._without_prefix = self._tokenizer
        if without_prefix != steps:
            content = json.dumps(settings | without_prefix).encode()
            self._without_prefix = _plain_tokenizer(content)
        self.size: int = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        ends = (self.id_of(token) for token in END_OF_TEXT)
        self.end_of_text: int | None = next((end for end in ends if end is not None), None)
        self.unknown: int | None = model.get("unk_id")
        if model.get("unk_token") is not None:
            self.unknown = self.id_of(model["unk_token"])

    def id_of(self, piece: str) -> int | None:
        return self._tokenizer.token_to_id(piece)

    def piece(self, piece_id: int) -> str:
        return self._tokenizer.id_to_token(piece_id) or ""

    def reserve(self, ids: Iterable[int]) -> set[int]:
        """Keeps ids out of text; returns them and those of all tokens marked as special."""
        added = self._tokenizer.get_added_tokens_decoder()
        special = {i for i, token in added.items() if token.special and i != self.unknown}
        reserved = special | set(ids)
        # Qwen does not mark its fill-in-the-middle tokens as special.
        ordinary = [added[piece_id] for piece_id in reserved & added.keys() - special]
        for tokenizer in (self._tokenizer, self._without_prefix):
            tokenizer.add_special_tokens(ordinary)
        return reserved

    def encode_batch(self, texts: Sequence[str], *, mid_document: bool) -> list[np.ndarray]:
        tokenizer = self._without_prefix if mid_document else self._tokenizer
        try:
            encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises nothing narrower
            raise SettingsError(
                f"data.tokenizer cannot encode the text, and has no unknown token: {error}; pass "
                "another --data.tokenizer"
            ) from None
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


def _plain_tokenizer(content: bytes) -> Any:
    """Returns a tokenizer.json without padding, truncation, sampling and special tokens in text."""
    import tokenizers  # here, since most runs do not need it

    # Text is prepared by parallel processes; threads in each of them would slow it down.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = tokenizers.Tokenizer.from_buffer(content)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # as the plain text of their spelling
    if json.loads(content)["model"].get("dropout"):
        tokenizer.model.dropout = None
    return tokenizer


def _without_prefix(step: Any) -> Any:
    """Returns a normalizer or pre-tokenizer that prepends no space, None if nothing is left."""
    if isinstance(step, list):
        return [inner for each in step if (inner := _without_prefix(each)) is not None]
    if not isinstance(step, dict):
        return step
    match step.get("type"):
        case "Prepend":
            return None
        case "Metaspace":
            return step | {"prepend_scheme": "never", "add_prefix_space": False}
        case "ByteLevel":
            return step | {"add_prefix_space": False}
    return {name: _without_prefix(value) for name, value in step.items()}


SubwordModel = SentencePieceModel | HuggingFaceModel


def load_subword_model(kind: str, content: bytes) -> SubwordModel:
    """Returns the model in the content of a file; raises ValueError if it does not parse."""
    models = {"sentencepiece": SentencePieceModel, "huggingface": HuggingFaceModel}
    return models[kind](content)
