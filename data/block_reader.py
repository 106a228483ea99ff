"""Reads blocks of tokens from shards, with bounded open files and a bounded cache.

A failed read is damage only if the file is absent or differs from its manifest. Any other error is
retried, whatever its message.
"""

import threading
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any, Literal

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from configs.errors import IntegrityError
from data.atomic_files import ABSENT, BYTES_MOVED, digest_file, with_retries

_MAX_READERS = 64
"""Most open shards, with a file handle each; a shuffle reads all shards."""
_MAX_BYTES = 2**30
"""Most bytes of cached blocks, over all shards."""
_OPTIONS = "readahead_buffer_size:0"  # blocks are read in any order
_BUFFER_BYTES = 2**15

_lock = threading.Lock()  # of the state that all shards of this process share
_readers: "OrderedDict[ShardReader, ArrayRecordReader]" = OrderedDict()
_cached: deque[tuple[dict[int, np.ndarray], int, int]] = deque()
_num_cached_bytes = 0


class ShardReader:
    """Reads the blocks of an ArrayRecord file, opened on first use; thread-safe."""

    def __init__(self, folder: Path, entry: dict[str, Any], block_len: int, dtype: np.dtype):
        self.path = folder / entry["file"]
        self.num_blocks = -(-entry["tokens"] // block_len)
        self._entry, self._block_len, self._dtype = entry, block_len, dtype
        self._blocks: dict[int, np.ndarray] = {}

    def block(self, number: int) -> np.ndarray:
        """Returns the tokens of a block, read-only.

        Raises:
            IntegrityError: the file does not match the manifest.
            Unavailable: the file cannot be read now.
        """
        ids = self._blocks.get(number)
        if ids is None:
            ids = with_retries(lambda: self._read(number), f"{self.path} cannot be read")
            _cache(self._blocks, number, ids)
        return ids

    def _read(self, number: int) -> np.ndarray:
        try:
            (content,) = self._reader().read([number])
        except (RuntimeError, OSError) as error:
            with _lock:
                _readers.pop(self, None)  # it would fail forever
            check_file(self.path, self._entry)
            raise OSError(" ".join(str(error).split())) from None
        BYTES_MOVED.add(len(content))
        num_tokens = min(self._block_len, self._entry["tokens"] - number * self._block_len)
        num_found = len(content) / self._dtype.itemsize
        if num_found != num_tokens:
            problem = f"block {number} has {num_found:g} tokens, the manifest says {num_tokens}"
            raise damaged(self.path, f"has changed since it was written: {problem}")
        return np.frombuffer(content, self._dtype)

    def _reader(self) -> ArrayRecordReader:
        """Returns the open file; an evicted one closes after its last use."""
        with _lock:
            reader = _readers.get(self)
        if reader is None:
            reader = ArrayRecordReader(
                str(self.path), options=_OPTIONS, file_reader_buffer_size=_BUFFER_BYTES
            )
            if not reader.ok():
                reader.read([0])  # raises the error that opening did not
            if (found := reader.num_records()) != self.num_blocks:
                raise damaged(self.path, f"has {found} blocks, the manifest says {self.num_blocks}")
        with _lock:
            reader = _readers.setdefault(self, reader)
            _readers.move_to_end(self)
            closing = _readers.popitem(last=False) if len(_readers) > _MAX_READERS else None
        del closing  # outside the lock, as closing takes a while
        return reader


def _cache(blocks: dict[int, np.ndarray], number: int, ids: np.ndarray) -> None:
    global _num_cached_bytes
    with _lock:
        if number in blocks:  # another thread has read it meanwhile
            return
        blocks[number] = ids
        _cached.append((blocks, number, ids.nbytes))
        _num_cached_bytes += ids.nbytes
        while _num_cached_bytes > _MAX_BYTES:
            others, oldest, num_bytes = _cached.popleft()
            del others[oldest]
            _num_cached_bytes -= num_bytes


def check_file(
    path: Path, entry: dict[str, Any], verify: Literal["digests", "sizes"] = "digests"
) -> None:
    """Checks a file against its entry in the manifest.

    Raises:
        IntegrityError: the file is absent, or has another size or digest.
        OSError: the file cannot be read; its content is unknown.
    """
    try:
        size = path.stat().st_size
        found = digest_file(path) if verify == "digests" and size == entry["size"] else None
    except ABSENT as error:
        raise damaged(path, f"cannot be read: {error.strerror}") from None
    if size != entry["size"]:
        raise damaged(path, f"has {size} bytes, the manifest says {entry['size']}")
    if found not in (None, entry["sha256"]):
        raise damaged(path, f"has sha256 {found[:12]}, the manifest says {entry['sha256'][:12]}")


def read_file(path: Path) -> bytes:
    """Returns the bytes of a file; raises IntegrityError if it is absent, or Unavailable."""
    try:
        content = with_retries(path.read_bytes, f"{path} cannot be read")
    except ABSENT as error:
        raise damaged(path, f"cannot be read: {error.strerror}") from None
    BYTES_MOVED.add(len(content))
    return content


def damaged(path: Path, what: str) -> IntegrityError:
    """Returns the error for a file of a prepared folder that does not match the manifest."""
    return IntegrityError(f"{path} {what}; remove {path.parent} and prepare the text again")
