"""Documents to tokens, many at a time, and on to the shards of their splits."""

from collections.abc import Iterator

import numpy as np

from data.prepare.documents import Document
from data.prepare.shards import ShardWriter
from data.prepare.text.corpus import Split
from data.prepare.text.utf8 import utf8_len
from data.tokenizers.tokenizer import Tokenizer

_PIECE_CHARACTERS = 128 * 1024  # a longer text is encoded in pieces, cut between words
_BATCH_CHARACTERS = 256 * 1024


class Encoder:
    """Hands documents to the writers of their splits, encoded many at a time."""

    def __init__(self, tokenizer: Tokenizer, writers: dict[Split, ShardWriter]):
        self._tokenizer, self._writers = tokenizer, writers
        self._waiting: list[tuple[ShardWriter, tuple[int, int] | None, str]] = []
        # The end of the last text, with which what comes next may go on.
        self._held: tuple[ShardWriter, tuple[int, int] | None, str] | None = None
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
            if text:
                self._take(writer, (file, number) if begins else None, text)

    def flush(self) -> None:
        """Encodes and writes what waits."""
        if self._held is not None:
            self._waiting.append(self._held)
        self._held = None
        self._encode()

    def _take(self, writer: ShardWriter, begins: tuple[int, int] | None, text: str) -> None:
        """Cuts a text, with what is held of its beginning, into pieces; the last one is held."""
        if self._held is not None and begins is None and self._held[0] is writer:
            (_, begins, before), self._held = self._held, None
            text = before + text
        for piece in _pieces(text):
            if self._held is not None:
                self._wait(self._held)
            self._held, begins = (writer, begins, piece), None

    def _wait(self, piece: tuple[ShardWriter, tuple[int, int] | None, str]) -> None:
        """Lets a piece wait until there are enough of them."""
        self._waiting.append(piece)
        self._num_characters += len(piece[-1])
        if self._num_characters >= _BATCH_CHARACTERS:
            self._encode()

    def _encode(self) -> None:
        """Encodes and writes all but what is held."""
        first = [text for _, begins, text in self._waiting if begins]
        later = [text for _, begins, text in self._waiting if not begins]
        first_ids = iter(self._tokenizer.encode_batch(first))
        later_ids = iter(self._tokenizer.encode_batch(later, mid_document=True))
        for writer, begins, text in self._waiting:
            if begins:
                writer.begin(*begins)
            ids = next(first_ids if begins else later_ids)
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
        stop = _cut(text, start, start + _PIECE_CHARACTERS)
        yield text[start:stop]
        start = stop
    yield text[start:]


def _cut(text: str, start: int, stop: int) -> int:
    """Returns where a piece ends: before the last single space, else after a line, else at stop.

    Tokenizers of words begin one with such a space, so that both sides have the ids of the whole.
    """
    place = stop
    while (place := text.rfind(" ", start + 1, place)) > 0:
        if not (text[place - 1].isspace() or text[place + 1].isspace()):
            return place
    end = text.rfind("\n", start, stop) + 1
    return end if end > start else stop
