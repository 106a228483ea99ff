"""Documents to tokens, many at a time, and on to the shards of their splits."""

from collections.abc import Iterator

import numpy as np

from configs.errors import SettingsError
from data.preparation.documents import Document
from data.preparation.shards import ShardWriter
from data.text.corpus import Corpus, Split
from data.text.utf8 import utf8_len
from data.tokenizers.tokenizer import Tokenizer

_PIECE_CHARACTERS = 128 * 1024  # a longer text is encoded in pieces, cut after a line where it can
_BATCH_CHARACTERS = 256 * 1024


class Encoder:
    """Hands documents to the writers of their splits, encoded many at a time."""

    def __init__(self, tokenizer: Tokenizer, writers: dict[Split, ShardWriter], corpus: Corpus):
        self._tokenizer, self._writers, self._corpus = tokenizer, writers, corpus
        self._waiting: list[tuple[ShardWriter, tuple[int, int] | None, str]] = []
        self._num_characters = 0

    def add(
        self, document: Document, cut: int, begins_to_validate: bool, file: int, number: int
    ) -> None:
        """Takes a document; what is before the cut trains, the rest validates.

        Args:
            begins_to_validate: says that no piece of the same text validated before.
        """
        sides: tuple[tuple[Split, slice], ...] = (
            ("train", slice(cut)),
            ("validation", slice(cut, None)),
        )
        for split, side in sides:
            writer = self._writers[split]
            begins = document.begins or (split == "validation" and begins_to_validate)
            if document.ids is not None:
                self._add_ids(writer, document.ids[side], begins, file, number + (side.start or 0))
                continue
            text = document.text[side]
            if not text:
                continue
            self._num_characters += len(text)
            first, *others = [text] if len(text) <= _PIECE_CHARACTERS else _pieces(text)
            self._waiting.append((writer, (file, number) if begins else None, first))
            self._waiting += [(writer, None, piece) for piece in others]
        if self._num_characters >= _BATCH_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        """Encodes and writes what waits."""
        encoded = self._tokenizer.encode_batch([text for _, _, text in self._waiting])
        for (writer, begins, text), ids in zip(self._waiting, encoded, strict=True):
            if begins:
                writer.begin(*begins)
            writer.add(ids, num_characters=len(text), num_bytes=utf8_len(text))
        self._waiting, self._num_characters = [], 0

    def _add_ids(
        self, writer: ShardWriter, ids: np.ndarray, begins: bool, file: int, number: int
    ) -> None:
        """Adds tokens as they are; a separator among them begins a document."""
        separator, vocab_size = self._tokenizer.separator, self._tokenizer.vocab_size
        unknown = np.flatnonzero((ids < 0) | (ids >= vocab_size))
        if len(unknown):
            raise SettingsError(
                f"data.path: {self._corpus.files[file].path} has the token {ids[unknown[0]]} at "
                f"{number + unknown[0]}, but ids of the tokenizer are 0 to {vocab_size - 1}: give "
                "--data.tokenizer the one that made them"
            )
        marks = np.flatnonzero(ids == separator)
        if len(ids) and begins and ids[0] != separator:
            writer.begin(file, number)
        for start, stop in zip([0, *(marks + 1)], [*marks, len(ids)], strict=True):
            if start:
                writer.begin(file, number + int(start) - 1)
            piece = ids[start:stop]
            text = self._tokenizer.decode(piece)
            writer.add(piece, num_characters=len(text), num_bytes=utf8_len(text))


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _PIECE_CHARACTERS:
        end = text.rfind("\n", start, start + _PIECE_CHARACTERS) + 1
        stop = end if end > start else start + _PIECE_CHARACTERS
        yield text[start:stop]
        start = stop
    if start < len(text):
        yield text[start:]
