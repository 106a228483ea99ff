"""Tokenizers of pieces of words: SentencePiece models and Hugging Face's tokenizer.json."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import sentencepiece

from configs.check import require
from configs.data import PrepareConfig
from configs.errors import SettingsError
from data.prepare.text.utf8 import utf8
from data.tokenizers.special_tokens import END_OF_TEXT, SEPARATOR, special_ids

_SPACE_MARK = "\u2581"  # how SentencePiece writes a space
_WORD_MARKS = (_SPACE_MARK, "\u0120", "\u010a", " ", "\n")
"""Spaces and ends of lines as pieces of SentencePiece and byte-level vocabularies spell them."""
_FEW = 8


class PieceModel(Protocol):
    """A vocabulary, and the library that cuts text into pieces of it."""

    kind: str
    size: int
    """Ids are below it."""
    end_of_text: int | None
    """What usually stands between documents here."""
    unknown: int | None
    """Stands for text that no piece can write."""

    def id_of(self, piece: str) -> int | None:
        """Returns the id of a piece, None where there is no such piece."""
        ...

    def piece(self, piece_id: int) -> str:
        """Returns how the piece of an id is spelled."""
        ...

    def reserve(self, ids: Iterable[int]) -> set[int]:
        """Returns ids and all others that no text should have, after telling the library so."""
        ...

    def encode_batch(self, texts: Sequence[str], *, within: bool) -> list[np.ndarray]:
        """Returns the ids of each text, int32; a reserved one only where the library insists.

        Args:
            within: the texts go on within documents, so that no space is put before them.
        """
        ...

    def decode(self, ids: list[int]) -> str:
        """Returns the text of ids, none of them reserved."""
        ...


class SentencePieceModel:
    """A SentencePiece model: a .model, or what `learn_sentencepiece` trained."""

    kind = "sentencepiece"

    def __init__(self, content: bytes):
        """Reads a model; ValueError where it is none."""
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(content)
        except RuntimeError as error:
            raise ValueError(str(error)) from None
        self._within = _without_dummy_prefix(content)
        self.size: int = self._processor.vocab_size()
        ends = [i for i in (self._processor.eos_id(), self._processor.bos_id()) if i >= 0]
        self.end_of_text: int | None = ends[0] if ends else None
        self.unknown: int | None = self._processor.unk_id()
        # The mark itself would come back as a space, and a space as the mark where no piece has it.
        odd = _SPACE_MARK if self.id_of(_SPACE_MARK) is not None else _SPACE_MARK + " "
        written = {c: [self.id_of(f"<0x{byte:02X}>") for byte in c.encode()] for c in odd}
        has_bytes = None not in written[_SPACE_MARK]
        self._in_bytes = {c: np.array(ids, np.int32) for c, ids in written.items() if has_bytes}
        self._odd = re.compile(f"([{odd}])") if has_bytes else re.compile("(?!)")
        self._is_plain_ascii = not any(map(str.isascii, self._in_bytes))

    def id_of(self, piece: str) -> int | None:
        """Returns the id of a piece; the library answers with the unknown one for any other."""
        piece_id = self._processor.piece_to_id(piece)
        return piece_id if self._processor.id_to_piece(piece_id) == piece else None

    def piece(self, piece_id: int) -> str:
        """Returns how a piece is spelled, with U+2581 for a space."""
        return self._processor.id_to_piece(piece_id)

    def reserve(self, ids: Iterable[int]) -> set[int]:
        """Returns the ids: the library itself keeps control pieces out of text."""
        return set(ids)

    def encode_batch(self, texts: Sequence[str], *, within: bool) -> list[np.ndarray]:
        """Returns the ids of each text; the arrays cannot be written to."""
        return [self._encode(text, within) for text in texts]

    def _encode(self, text: str, within: bool) -> np.ndarray:
        if (text.isascii() and self._is_plain_ascii) or self._odd.search(text) is None:
            return self._encode_plain(text, within)
        parts = [
            self._in_bytes[part]
            if part in self._in_bytes
            else self._encode_plain(part, within or i > 0)
            for i, part in enumerate(self._odd.split(text))
        ]
        return np.concatenate(parts)

    def _encode_plain(self, text: str, within: bool) -> np.ndarray:
        # A model that drops spaces at the beginning has the dummy prefix stand for the space.
        in_place = within and self._within and not (self._within[1] and text.startswith(" "))
        processor = self._within[0] if self._within and in_place else self._processor
        return processor.encode(text, return_type="numpy")

    def decode(self, ids: list[int]) -> str:
        """Returns the text of ids, without control pieces."""
        return self._processor.decode(ids)


def _without_dummy_prefix(content: bytes) -> tuple[Any, bool] | None:
    """Returns a model that puts no space before text, and whether it drops one; None if as given.

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
    """A tokenizer.json; how it pads, truncates, samples or frames text is not taken over."""

    kind = "huggingface"

    def __init__(self, content: bytes):
        """Reads a tokenizer.json; ValueError where it is none."""
        self._tokenizer = _plain_tokenizer(content)
        said: dict[str, Any] = json.loads(content)
        model = said["model"]
        steps = {name: said.get(name) for name in ("normalizer", "pre_tokenizer")}
        inner = {name: _without_prefix(step) for name, step in steps.items()}
        self._within = self._tokenizer
        if inner != steps:
            self._within = _plain_tokenizer(json.dumps(said | inner).encode())
        self.size: int = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        ends = (self.id_of(token) for token in END_OF_TEXT)
        self.end_of_text: int | None = next((end for end in ends if end is not None), None)
        self.unknown: int | None = model.get("unk_id")
        if model.get("unk_token") is not None:
            self.unknown = self.id_of(model["unk_token"])

    def id_of(self, piece: str) -> int | None:
        """Returns the id of a piece or an added token."""
        return self._tokenizer.token_to_id(piece)

    def piece(self, piece_id: int) -> str:
        """Returns how a piece is spelled in the alphabet of the vocabulary."""
        return self._tokenizer.id_to_token(piece_id) or ""

    def reserve(self, ids: Iterable[int]) -> set[int]:
        """Returns ids and those of all tokens that the file calls special."""
        added = self._tokenizer.get_added_tokens_decoder()
        special = {i for i, token in added.items() if token.special and i != self.unknown}
        reserved = special | set(ids)
        # Qwen does not call its fill-in-the-middle tokens special.
        ordinary = [added[piece_id] for piece_id in reserved & added.keys() - special]
        for tokenizer in (self._tokenizer, self._within):
            tokenizer.add_special_tokens(ordinary)
        return reserved

    def encode_batch(self, texts: Sequence[str], *, within: bool) -> list[np.ndarray]:
        """Returns the ids of each text, without the places that the library could tell too."""
        tokenizer = self._within if within else self._tokenizer
        try:
            encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises nothing narrower
            raise SettingsError(
                f"data.tokenizer cannot write the text, and has no unknown token: {error}; pass "
                "another --data.tokenizer"
            ) from None
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: list[int]) -> str:
        """Returns the text of ids, the unknown token as it is spelled."""
        return self._tokenizer.decode(ids, skip_special_tokens=False)


def _plain_tokenizer(content: bytes) -> Any:
    """Returns a tokenizer.json without padding, truncation, sampling and special tokens in text."""
    import tokenizers  # here, as most runs do without it

    # Parallel are the processes that prepare text; threads within them would be in the way.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = tokenizers.Tokenizer.from_buffer(content)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # as the plain text they are spelled with
    if json.loads(content)["model"].get("dropout"):
        tokenizer.model.dropout = None
    return tokenizer


def _without_prefix(step: Any) -> Any:
    """Returns a normalizer or pre-tokenizer that puts no space before a text, None for nothing."""
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


class SubwordTokenizer:
    """A model of pieces with a separator and special tokens that no text can have.

    A vocabulary may hold such a token as a piece like any other, which text can then spell:
    Unigram models of Hugging Face make </s> of "</s>". So what a model returns is looked through.
    """

    def __init__(self, model: PieceModel, content: bytes, special: Mapping[str, int]):
        """Takes over a model; special may name the separator, and tokens that the model lacks.

        Raises:
            SettingsError: special names no separator, and the model has no usual one.
        """
        self.kind = model.kind
        self.special = special
        self.separator: int = _separator(model, special)
        self.vocab_size = max(model.size - 1, *special.values(), 0) + 1
        self._model, self._content = model, content
        own = {i for i in (*special.values(), self.separator) if i < model.size}
        self._reserved = np.zeros(model.size, bool)
        self._reserved[list(model.reserve(own))] = True

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], *, within: bool = False) -> list[np.ndarray]:
        """Returns the ids of each text; one thread does all of it."""
        for text in texts:
            if not text.isascii():
                utf8(text)
        found = self._model.encode_batch(texts, within=within)
        # One look at all of them, for hardly any text has one.
        if not found or not self._has_reserved(np.concatenate(found)):
            return found
        return [self._spelled_out(ids) if self._has_reserved(ids) else ids for ids in found]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids without reserved ones and those beyond the vocabulary."""
        known = np.fromiter(ids, np.int64)
        known = known[known < self._model.size]
        return self._model.decode(known[~self._reserved[known]].tolist())

    def word_starts(self) -> np.ndarray:
        """Returns for each id, [V], whether a word begins with it, by the marks of pieces."""
        pieces = [self._model.piece(i) for i in range(self._model.size)]
        starts = np.zeros(self.vocab_size, bool)
        if any(piece.startswith("##") for piece in pieces):  # WordPiece marks what goes on
            starts[: len(pieces)] = [not piece.startswith("##") for piece in pieces]
        else:
            starts[: len(pieces)] = [piece.startswith(_WORD_MARKS) for piece in pieces]
        return starts

    def content(self) -> bytes:
        """Returns the file as it was read or trained."""
        return self._content

    def _has_reserved(self, ids: np.ndarray) -> bool:
        few = np.flatnonzero(self._reserved)
        if len(few) <= _FEW:  # to compare is several times quicker than to look up
            return any((ids == one).any() for one in few)
        return bool(self._reserved[ids].any())

    def _spelled_out(self, ids: np.ndarray) -> np.ndarray:
        """Returns ids with the characters of each reserved piece in its place."""
        parts = [self._characters(i) if self._reserved[i] else [i] for i in ids.tolist()]
        return np.array([i for part in parts for i in part], np.int32)

    def _characters(self, piece_id: int) -> list[int]:
        """Returns ids that write a reserved piece as text."""
        piece = self._model.piece(piece_id)
        characters = [self._character(character) for character in piece]
        # The unknown token does not stand for its own name.
        if piece_id == self._model.unknown or not all(characters):
            raise SettingsError(
                f"the text needs {piece}, which data.tokenizer keeps for other things and cannot "
                "write otherwise: leave it out, or, if it is that, pass another "
                "--data.separator_token"
            )
        return [i for character in characters for i in character]

    def _character(self, character: str) -> list[int]:
        """Returns ids that write a character of a reserved piece, none if there are none."""
        as_text = character.replace(_SPACE_MARK, " ").encode()
        in_bytes = [f"<0x{byte:02X}>" for byte in as_text]
        for spelling in ([character], in_bytes):
            ids = [i for i in map(self._model.id_of, spelling) if i is not None]
            if len(ids) == len(spelling) and not self._reserved[ids].any():
                return ids
        unknown = self._model.unknown
        return [] if unknown is None or self._reserved[unknown] else [unknown]


def read_model(kind: str, content: bytes) -> PieceModel:
    """Returns the model that the content of a file holds; ValueError where it holds none."""
    models = {"sentencepiece": SentencePieceModel, "huggingface": HuggingFaceModel}
    return models[kind](content)


def open_subwords(model: PieceModel, content: bytes, config: PrepareConfig) -> SubwordTokenizer:
    """Returns a tokenizer that others made, with the separator and special tokens of a config.

    Raises:
        SettingsError: the model has no separator_token, or none is given and it has no usual one.
    """
    special = {}
    if config.separator_token is not None:
        chosen = model.id_of(config.separator_token)
        require(
            chosen is not None,
            f"data.separator_token={config.separator_token} must be a token of "
            f"data.tokenizer={config.tokenizer}; pass one that is, or leave it out",
        )
        if chosen is not None and chosen != model.end_of_text:
            special[SEPARATOR] = chosen
    separator = _separator(model, special)
    special |= special_ids(config.special_tokens, model.size, model.id_of, separator)
    return SubwordTokenizer(model, content, special)


def _separator(model: PieceModel, special: Mapping[str, int]) -> int:
    separator = special.get(SEPARATOR, model.end_of_text)
    if separator is None:
        usual = (
            "neither an end nor a beginning piece (</s>, <s>)"
            if model.kind == "sentencepiece"
            else f"no usual end of text ({' '.join(END_OF_TEXT)})"
        )
        raise SettingsError(
            f"data.separator_token=None must be given: data.tokenizer has {usual} to stand between "
            "documents; pass --data.separator_token with one of its tokens"
        )
    return separator
