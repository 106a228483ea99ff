"""Documents to tokens, many at a time, and on to the shards of their splits."""

from collections.abc import Iterator

import numpy as np

from configs.errors import SettingsError
from data.preparation.documents import Document
from data.preparation.shards import ShardWriter
from data.text.corpus import Corpus, Split
from data.text.utf8 import utf8_len
from data.tokenizers.tokenizer import Tokenizer

_PIECE_CHARACTERS = 128 * 1024  # a longer text is encoded in pieces, cut between words
_BATCH_CHARACTERS = 256 * 1024


class Encoder:
    """Hands documents to the writers of their splits, encoded many at a time."""

    def __init__(self, tokenizer: Tokenizer, writers: dict[Split, ShardWriter], corpus: Corpus):
        self._tokenizer, self._writers, self._corpus = tokenizer, writers, corpus
        self._waiting: list[tuple[ShardWriter, tuple[int, int] | None, str]] = []
        # The end of the last text, with which what comes next may go on.
        self._held: tuple[ShardWriter, tuple[int, int] | None, str] | None = None
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
            self._take(writer, (file, number) if begins else None, text)
        if self._num_characters >= _BATCH_CHARACTERS:
            self._encode()

    def flush(self) -> None:
        """Encodes and writes what waits."""
        if self._held is not None:
            self._waiting.append(self._held)
        self._held = None
        self._encode()

    def _take(self, writer: ShardWriter, begins: tuple[int, int] | None, text: str) -> None:
        """Cuts a text, with what is held of its beginning, into pieces; the last one is held."""
        if self._held is not None and begins is None and self._held[0] is writer:
            _, begins, before = self._held
            text = before + text
        elif self._held is not None:
            self._waiting.append(self._held)
        *pieces, last = _pieces(text)
        for piece in pieces:
            self._waiting.append((writer, begins, piece))
            begins = None
        self._held = (writer, begins, last)

    def _encode(self) -> None:
        """Encodes and writes all but what is held."""
        first = [text for _, begins, text in self._waiting if begins]
        later = [text for _, begins, text in self._waiting if not begins]
        first_ids = iter(self._tokenizer.encode_batch(first))
        later_ids = iter(self._tokenizer.encode_batch(later, within=True))
        for writer, begins, text in self._waiting:
            if begins:
                writer.begin(*begins)
            ids = next(first_ids if begins else later_ids)
            writer.add(ids, num_characters=len(text), num_bytes=utf8_len(text))
        self._waiting, self._num_characters = [], 0

    def _add_ids(
        self, writer: ShardWriter, ids: np.ndarray, begins: bool, file: int, number: int
    ) -> None:
        """Adds tokens as they are; a separator among them begins a document."""
        separator, vocab_size = self._tokenizer.separator, self._tokenizer.vocab_size
        is_row = self._corpus.files[file].kind == "token_rows"
        unknown = np.flatnonzero((ids < 0) | (ids >= vocab_size))
        if len(unknown):
            raise SettingsError(
                f"data.path: {self._corpus.files[file].path} has the token {ids[unknown[0]]} at "
                f"{number + unknown[0]}, but ids of the tokenizer are 0 to {vocab_size - 1}: give "
                "--data.tokenizer the one that made them"
            )
        while is_row and len(ids) and ids[-1] == separator:  # the next row begins with its own
            ids = ids[:-1]
        marks = np.flatnonzero(ids == separator)
        if len(ids) and begins and ids[0] != separator:
            writer.begin(file, number)
        for start, stop in zip([0, *(marks + 1)], [*marks, len(ids)], strict=True):
            if start:
                writer.begin(file, number if is_row else number + int(start) - 1)
            piece = ids[start:stop]
            text = self._tokenizer.decode(piece)
            writer.add(piece, num_characters=len(text), num_bytes=utf8_len(text))


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
