"""A tokenizer of subwords, whose separator and special tokens no text can contain."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from configs.data import PrepareConfig
from configs.errors import SettingsError
from configs.require import require
from data.prepare.text.streams import utf8
from data.tokenizers.special_tokens import END_OF_TEXT, SEPARATOR, special_token_ids
from data.tokenizers.subword_backends import SPACE_MARK, SubwordModel

_WORD_MARKS = (SPACE_MARK, "\u0120", "\u010a", " ", "\n")
"""How SentencePiece and byte-level vocabularies spell spaces and newlines in pieces."""
_FEW = 8


class SubwordTokenizer:
    """A subword model with a separator and special tokens that no text can contain.

    A vocabulary may hold such a token as an ordinary piece: Unigram models of Hugging Face encode
    "</s>" as </s>. So the ids that a model returns are searched for them and replaced.
    """

    def __init__(self, model: SubwordModel, content: bytes, special: Mapping[str, int]):
        """Wraps a model; special may hold the separator, and tokens that the model lacks."""
        self.kind = model.kind
        self.special = special
        self.separator: int = _separator(model, special)
        self.vocab_size = max(model.size - 1, *special.values(), 0) + 1
        self._model, self._content = model, content
        own = {i for i in (*special.values(), self.separator) if i < model.size}
        self._reserved = np.zeros(model.size, bool)
        self._reserved[list(model.reserve(own))] = True

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], *, mid_document: bool = False) -> list[np.ndarray]:
        for text in texts:
            if not text.isascii():
                utf8(text)
        encoded = self._model.encode_batch(texts, mid_document=mid_document)
        # All texts are searched at once, since hardly any has one.
        if not encoded or not self._has_reserved(np.concatenate(encoded)):
            return encoded
        return [self._spelled_out(ids) if self._has_reserved(ids) else ids for ids in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; skips reserved ones and those beyond the vocabulary."""
        known = np.fromiter(ids, np.int64)
        known = known[known < self._model.size]
        return self._model.decode(known[~self._reserved[known]].tolist())

    def word_starts(self) -> np.ndarray:
        """Returns for each id, [V], whether it begins a word, by the marks in pieces."""
        pieces = [self._model.piece(i) for i in range(self._model.size)]
        starts = np.zeros(self.vocab_size, bool)
        if any(piece.startswith("##") for piece in pieces):  # WordPiece marks continuations
            starts[: len(pieces)] = [not piece.startswith("##") for piece in pieces]
        else:
            starts[: len(pieces)] = [piece.startswith(_WORD_MARKS) for piece in pieces]
        return starts

    def content(self) -> bytes:
        return self._content

    def _has_reserved(self, ids: np.ndarray) -> bool:
        few = np.flatnonzero(self._reserved)
        if len(few) <= _FEW:  # comparing is several times faster than indexing
            return any((ids == one).any() for one in few)
        return bool(self._reserved[ids].any())

    def _spelled_out(self, ids: np.ndarray) -> np.ndarray:
        parts = [self._characters(i) if self._reserved[i] else [i] for i in ids.tolist()]
        return np.array([i for part in parts for i in part], np.int32)

    def _characters(self, piece_id: int) -> list[int]:
        piece = self._model.piece(piece_id)
        characters = [self._character(character) for character in piece]
        # The unknown token cannot encode its own spelling.
        if piece_id == self._model.unknown or not all(characters):
            raise SettingsError(
                f"the text contains {piece}, which is reserved; data.tokenizer cannot spell it "
                "with other tokens: remove it from the text, or pass another "
                "--data.separator-token if it is the separator"
            )
        return [i for character in characters for i in character]

    def _character(self, character: str) -> list[int]:
        """Returns ids that spell a character of a reserved piece, [] if there are none."""
        as_text = character.replace(SPACE_MARK, " ").encode()
        in_bytes = [f"<0x{byte:02X}>" for byte in as_text]
        for spelling in ([character], in_bytes):
            ids = [i for i in map(self._model.id_of, spelling) if i is not None]
            if len(ids) == len(spelling) and not self._reserved[ids].any():
                return ids
        unknown = self._model.unknown
        return [] if unknown is None or self._reserved[unknown] else [unknown]


def open_subword_tokenizer(
    model: SubwordModel, content: bytes, config: PrepareConfig
) -> SubwordTokenizer:
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
    special |= special_token_ids(config.special_tokens, model.size, model.id_of, separator)
    return SubwordTokenizer(model, content, special)


def _separator(model: SubwordModel, special: Mapping[str, int]) -> int:
    separator = special.get(SEPARATOR, model.end_of_text)
    if separator is None:
        usual = (
            "no end piece and no beginning piece (</s>, <s>)"
            if model.kind == "sentencepiece"
            else f"no usual end-of-text token ({' '.join(END_OF_TEXT)})"
        )
        raise SettingsError(
            f"data.separator_token=None must be given: data.tokenizer has {usual} to separate "
            "documents; pass --data.separator-token with one of its tokens"
        )
    return separator
