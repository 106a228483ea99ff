"""Shards: the tokens of one task and split as ArrayRecord blocks, and an index of its documents."""

import contextlib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from data.atomic_files import explain_full_disk, file_entry, save_array

FORMAT_VERSION = 3
"""Of prepared folders; unfinished work of another version is not resumed.

Format 2 has the same layout, but cuts the text at one position: its end validates.
"""
BLOCK_LEN = 8192
"""Tokens in a record of a shard; only the last may have fewer."""
_NUM_PENDING_BLOCKS = 16
# Compression would save over a third of the disk, and add a fifth to the time of tokenizing.
_OPTIONS = "group_size:1,uncompressed"
INDEX_DTYPE = np.dtype([("start", "<u8"), ("number", "<u8"), ("file", "<u4")])
"""Of each document: its separator's index in the shard, its line or row from 0, and its file."""


def token_dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class ShardWriter:
    """Writes the documents of a shard in order: of each its separator, then its tokens.

    The files have temporary names until `close`.
    """

    def __init__(self, folder: Path, name: str, vocab_size: int, separator: int):
        self._folder, self._name = folder, name
        self._dtype = token_dtype(vocab_size)
        self._separator = np.array([separator], self._dtype)
        self._path = folder / f"{name}.arrayrecord"
        self._temporary = self._path.with_name(f"{self._path.name}.tmp-{os.getpid()}")
        self._writer: ArrayRecordWriter | None = None
        self._pending: list[np.ndarray] = []
        self._num_pending = 0
        self._index: list[tuple[int, int, int]] = []
        self.counts = {"tokens": 0, "documents": 0, "characters": 0, "bytes": 0}

    def begin(self, file: int, number: int) -> None:
        self._index.append((self.counts["tokens"], number, file))
        self.counts["documents"] += 1
        self._append(self._separator)

    def add(self, ids: np.ndarray, *, num_characters: int, num_bytes: int) -> None:
        """Continues the current document, or the last one of the shard before."""
        self.counts["characters"] += num_characters
        self.counts["bytes"] += num_bytes
        self._append(ids)

    def close(self) -> dict[str, Any] | None:
        """Renames the files and returns their entry of the manifest; None if empty."""
        if not self.counts["tokens"]:
            return None
        self._write_pending(BLOCK_LEN * math.ceil(self._num_pending / BLOCK_LEN))
        assert self._writer is not None
        with explain_full_disk(self._path):
            self._writer.close()
        self._writer = None
        index_path = self._folder / f"{self._name}.index.npy"
        save_array(index_path, np.array(self._index, INDEX_DTYPE))
        with self._temporary.open("rb+") as file, explain_full_disk(self._path):
            os.fsync(file.fileno())
        os.replace(self._temporary, self._path)
        return {**file_entry(self._path), **self.counts, "index": file_entry(index_path)}

    def abandon(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(Exception):
                self._writer.close()
        self._temporary.unlink(missing_ok=True)

    def _append(self, ids: np.ndarray) -> None:
        self.counts["tokens"] += len(ids)
        self._pending.append(ids)
        self._num_pending += len(ids)
        if self._num_pending >= _NUM_PENDING_BLOCKS * BLOCK_LEN:
            self._write_pending(self._num_pending // BLOCK_LEN * BLOCK_LEN)

    def _write_pending(self, num_tokens: int) -> None:
        """Writes so many pending tokens in blocks, or all if there are fewer."""
        if not self._pending:
            return
        stream = np.concatenate(self._pending, dtype=self._dtype, casting="unsafe")
        with explain_full_disk(self._path):
            writer = self._writer or ArrayRecordWriter(str(self._temporary), _OPTIONS)
            self._writer = writer
            for start in range(0, min(num_tokens, len(stream)), BLOCK_LEN):
                writer.write(stream[start : min(start + BLOCK_LEN, num_tokens)].tobytes())
        self._pending = [stream[num_tokens:]]
        self._num_pending = len(self._pending[0])
