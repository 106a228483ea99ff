"""Encodes documents, many at a time, and writes them to the shards of their splits."""

from collections.abc import Iterator

from data.prepare.documents import Document
from data.prepare.shards import ShardWriter
from data.prepare.text.corpus import Split
from data.prepare.text.streams import utf8_len
from data.tokenizers.tokenizer import Tokenizer

_CHUNK_CHARACTERS = 128 * 1024  # a longer text is encoded in chunks, cut between words
_BATCH_CHARACTERS = 256 * 1024

_Chunk = tuple[ShardWriter, tuple[int, int] | None, str]
"""The shard of a chunk, the (file, number) of a document that begins with it, and its text."""


class Encoder:
    """Encodes documents in batches and passes them to the writers of their splits."""

    def __init__(self, tokenizer: Tokenizer, writers: dict[Split, ShardWriter]):
        self._tokenizer, self._writers = tokenizer, writers
        self._pending: list[_Chunk] = []
        self._last: _Chunk | None = None  # the end of the last text, which the next may continue
        self._num_characters = 0

    def add(self, document: Document, file: int, number: int) -> None:
        """Adds a document to its split; one that is cut is a document in both splits."""
        cut = document.num_train
        sides: list[tuple[Split, slice, bool]] = []
        if cut > 0 or cut == document.size:
            sides.append(("train", slice(cut), document.begins))
        if cut < document.size:
            sides.append(("validation", slice(max(0, cut), None), document.begins or cut >= 0))
        for split, side, begins in sides:
            writer = self._writers[split]
            if document.ids is not None:
                if begins:
                    writer.begin(file, number + (side.start or 0))
                ids = document.ids[side]
                text = self._tokenizer.decode(ids)
                writer.add(ids, num_characters=len(text), num_bytes=utf8_len(text))
            elif text := document.text[side]:
                self._add_text(writer, (file, number) if begins else None, text)

    def flush(self) -> None:
        if self._last is not None:
            self._pending.append(self._last)
        self._last = None
        self._encode()

    def _add_text(self, writer: ShardWriter, begins: tuple[int, int] | None, text: str) -> None:
        """Cuts a text, after the last chunk if it continues it, into chunks; keeps the last."""
        if self._last is not None and begins is None and self._last[0] is writer:
            (_, begins, before), self._last = self._last, None
            text = before + text
        for chunk in _chunks(text):
            if self._last is not None:
                self._add_chunk(self._last)
            self._last, begins = (writer, begins, chunk), None

    def _add_chunk(self, chunk: _Chunk) -> None:
        self._pending.append(chunk)
        self._num_characters += len(chunk[-1])
        if self._num_characters >= _BATCH_CHARACTERS:
            self._encode()

    def _encode(self) -> None:
        """Encodes and writes all chunks but the last, which the next text may continue."""
        first = [text for _, begins, text in self._pending if begins]
        later = [text for _, begins, text in self._pending if not begins]
        first_ids = iter(self._tokenizer.encode_batch(first))
        later_ids = iter(self._tokenizer.encode_batch(later, mid_document=True))
        for writer, begins, text in self._pending:
            if begins:
                writer.begin(*begins)
            ids = next(first_ids if begins else later_ids)
            writer.add(ids, num_characters=len(text), num_bytes=utf8_len(text))
        self._pending, self._num_characters = [], 0


def _chunks(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _CHUNK_CHARACTERS:
        stop = _cut(text, start, start + _CHUNK_CHARACTERS)
        yield text[start:stop]
        start = stop
    yield text[start:]


def _cut(text: str, start: int, stop: int) -> int:
    """Returns where to end a chunk: before the last single space, else after a line, else at stop.

    Word tokenizers begin a word with such a space, so both sides have the ids of the whole text.
    """
    cut = stop
    while (cut := text.rfind(" ", start + 1, cut)) > 0:
        if not (text[cut - 1].isspace() or text[cut + 1].isspace()):
            return cut
    end = text.rfind("\n", start, stop) + 1
    return end if end > start else stop
