"""Documents to tokens, many at a time, and on to the shards of their splits."""

from collections.abc import Iterator

import numpy as np

from data.preparation.documents import Document
from data.preparation.shards import ShardWriter
from data.text.corpus import Split
from data.text.utf8 import utf8_len
from data.tokenizers.tokenizer import Tokenizer

_PIECE_CHARACTERS = 128 * 1024  # a longer text is encoded in pieces, cut after a line where it can
_BATCH_CHARACTERS = 256 * 1024


class Encoder:
    """Hands documents to the writers of their splits, encoded many at a time."""

    def __init__(self, tokenizer: Tokenizer, writers: dict[Split, ShardWriter]):
        self._tokenizer, self._writers = tokenizer, writers
        self._waiting: list[tuple[ShardWriter, tuple[int, int] | None, str]] = []
        self._num_characters = 0

    def add(self, document: Document, file: int, number: int) -> None:
        """Takes a document for the splits that it is in; one that is cut is a document in both."""
        cut = document.num_train
        sides: list[tuple[Split, slice, bool]] = []
        if cut > 0 or cut == document.size:
            sides.append(("train", slice(cut), document.begins))
        if cut < document.size:
            sides.append(("validation", slice(max(0, cut), None), document.begins or cut >= 0))
        for split, side, begins in sides:
            writer = self._writers[split]
            if document.ids is not None:
                self._add_ids(writer, document.ids[side], begins, file, number + (side.start or 0))
                continue
            text = document.text[side]
            for i, piece in enumerate(_pieces(text)):
                self._waiting.append((writer, (file, number) if begins and i == 0 else None, piece))
                self._num_characters += len(piece)
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
        """Adds tokens as they are."""
        if begins:
            writer.begin(file, number)
        text = self._tokenizer.decode(ids)
        writer.add(ids, num_characters=len(text), num_bytes=utf8_len(text))


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _PIECE_CHARACTERS:
        end = text.rfind("\n", start, start + _PIECE_CHARACTERS) + 1
        stop = end if end > start else start + _PIECE_CHARACTERS
        yield text[start:stop]
        start = stop
    if start < len(text):
        yield text[start:]
