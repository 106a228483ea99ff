"""Reads blocks of tokens from shards, with bounded open files and a bounded cache.

A failed read is damage only if the file is absent or differs from its manifest. Any other error is
retried, whatever its message.
"""

import functools
from pathlib import Path
from typing import Any, Literal

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from configs.errors import IntegrityError
from data.atomic_files import ABSENT, BYTES_MOVED, digest_file, with_retries
from data.prepare.shards import BLOCK_LEN

_MAX_READERS = 64  # open shards, with a file handle each; a shuffle reads all shards
_MAX_BLOCKS = 2**30 // (4 * BLOCK_LEN)  # cached blocks of all shards: 1 GiB at most
_OPTIONS = "readahead_buffer_size:0"  # blocks are read in any order
_BUFFER_BYTES = 2**15


class ShardReader:
    """Reads the blocks of an ArrayRecord file, opened on first use; thread-safe."""

    def __init__(self, folder: Path, entry: dict[str, Any], block_len: int, dtype: np.dtype):
        self.path = folder / entry["file"]
        self.num_blocks = -(-entry["tokens"] // block_len)
        self._entry, self._block_len, self._dtype = entry, block_len, dtype

    def block(self, number: int) -> np.ndarray:
        """Returns the tokens of a block, read-only.

        Raises:
            IntegrityError: the file does not match the manifest.
            Unavailable: the file cannot be read now.
        """
        return _block(self, number)

    def read(self, number: int) -> np.ndarray:
        """Returns a block without the cache; raises OSError if a retry may help."""
        try:
            (content,) = _open(self).read([number])
        except (RuntimeError, OSError) as error:
            _open.cache_clear()  # a reader that failed would fail forever
            check_file(self.path, self._entry)
            raise OSError(" ".join(str(error).split())) from None
        BYTES_MOVED.add(len(content))
        num_tokens = min(self._block_len, self._entry["tokens"] - number * self._block_len)
        num_found = len(content) / self._dtype.itemsize
        if num_found != num_tokens:
            problem = f"block {number} has {num_found:g} tokens, the manifest says {num_tokens}"
            raise damaged(self.path, f"has changed since it was written: {problem}")
        return np.frombuffer(content, self._dtype)


@functools.lru_cache(_MAX_BLOCKS)
def _block(shard: ShardReader, number: int) -> np.ndarray:
    return with_retries(lambda: shard.read(number), f"{shard.path} cannot be read")


@functools.lru_cache(_MAX_READERS)
def _open(shard: ShardReader) -> ArrayRecordReader:
    """Returns the open file; an evicted one closes after its last use."""
    reader = ArrayRecordReader(
        str(shard.path), options=_OPTIONS, file_reader_buffer_size=_BUFFER_BYTES
    )
    if not reader.ok():
        reader.read([0])  # raises the error that opening did not
    if (found := reader.num_records()) != shard.num_blocks:
        raise damaged(shard.path, f"has {found} blocks, the manifest says {shard.num_blocks}")
    return reader


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
