"""The blocks of all shards that a process reads: few files open at a time, few bytes kept.

What a shard cannot give is damage only where the file is absent or has other bytes than its
manifest says. Everything else, whatever its text, may pass.
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
"""Shards that are open at a time, with a file handle each; a shuffle goes through all there are."""
_MAX_BYTES = 2**30
"""Of blocks that are kept, over all shards; a corpus that is smaller takes less."""
_OPTIONS = "readahead_buffer_size:0"  # blocks are read in any order
_BUFFER_BYTES = 2**15

_lock = threading.Lock()  # of what the shards of this process share
_readers: "OrderedDict[Shard, ArrayRecordReader]" = OrderedDict()
_kept: deque[tuple[dict[int, np.ndarray], int, int]] = deque()
_num_kept_bytes = 0


class Shard:
    """The blocks of an ArrayRecord file, which is opened when one is read; any thread may.

    Args:
        said: what the manifest says of the file.
        block_len: tokens in a block; only the last may have fewer.
    """

    def __init__(self, folder: Path, said: dict[str, Any], block_len: int, dtype: np.dtype):
        self.path = folder / said["file"]
        self.num_blocks = -(-said["tokens"] // block_len)
        self._said, self._block_len, self._dtype = said, block_len, dtype
        self._blocks: dict[int, np.ndarray] = {}

    def block(self, number: int) -> np.ndarray:
        """Returns the tokens of a block, which cannot be written to.

        Raises:
            IntegrityError: the file is not as it was written.
            Unavailable: it cannot be read, which may pass.
        """
        ids = self._blocks.get(number)
        if ids is None:
            ids = with_retries(lambda: self._read(number), f"{self.path} cannot be read")
            _keep(self._blocks, number, ids)
        return ids

    def _read(self, number: int) -> np.ndarray:
        try:
            (content,) = self._reader().read([number])
        except (RuntimeError, OSError) as error:
            with _lock:
                _readers.pop(self, None)  # it would fail for ever
            check_file(self.path, self._said)
            raise OSError(" ".join(str(error).split())) from None
        BYTES_MOVED.add(len(content))
        num_tokens = min(self._block_len, self._said["tokens"] - number * self._block_len)
        if len(content) != num_tokens * self._dtype.itemsize:
            num_found = len(content) / self._dtype.itemsize
            raise damaged(
                self.path,
                f"has changed since it was written: block {number} has {num_found:g} tokens, the "
                f"manifest says {num_tokens}",
            )
        return np.frombuffer(content, self._dtype)

    def _reader(self) -> ArrayRecordReader:
        """Returns the open file. One that is no longer among them closes when nobody reads it."""
        with _lock:
            reader = _readers.get(self)
        if reader is None:
            reader = ArrayRecordReader(
                str(self.path), options=_OPTIONS, file_reader_buffer_size=_BUFFER_BYTES
            )
            if not reader.ok():
                reader.read([0])  # raises what opening it did not
            if reader.num_records() != self.num_blocks:
                raise damaged(
                    self.path,
                    f"has {reader.num_records()} blocks, the manifest says {self.num_blocks}",
                )
        with _lock:
            reader = _readers.setdefault(self, reader)
            _readers.move_to_end(self)
            closing = _readers.popitem(last=False) if len(_readers) > _MAX_READERS else None
        del closing  # here, for it takes a while
        return reader


def _keep(blocks: dict[int, np.ndarray], number: int, ids: np.ndarray) -> None:
    """Keeps a block, and lets go of those that came first where all would be too many bytes."""
    global _num_kept_bytes
    with _lock:
        if number in blocks:  # another thread has read it meanwhile
            return
        blocks[number] = ids
        _kept.append((blocks, number, ids.nbytes))
        _num_kept_bytes += ids.nbytes
        while _num_kept_bytes > _MAX_BYTES:
            others, oldest, num_bytes = _kept.popleft()
            del others[oldest]
            _num_kept_bytes -= num_bytes


def check_file(
    path: Path, said: dict[str, Any], verify: Literal["digests", "sizes"] = "digests"
) -> None:
    """Returns if a file is as a manifest says.

    Raises:
        IntegrityError: it is absent, or has another size or other bytes.
        OSError: it cannot be read, which says nothing of what it holds.
    """
    try:
        size = path.stat().st_size
        found = digest_file(path) if verify == "digests" and size == said["size"] else None
    except ABSENT as error:
        raise damaged(path, f"cannot be read: {error.strerror}") from None
    if size != said["size"]:
        raise damaged(path, f"has {size} bytes, the manifest says {said['size']}")
    if found not in (None, said["sha256"]):
        raise damaged(path, f"has sha256 {found[:12]}, the manifest says {said['sha256'][:12]}")


def read_file(path: Path) -> bytes:
    """Returns the bytes of a file of a prepared folder.

    Raises:
        IntegrityError: it is absent.
        Unavailable: it cannot be read, which may pass.
    """
    try:
        content = with_retries(path.read_bytes, f"{path} cannot be read")
    except ABSENT as error:
        raise damaged(path, f"cannot be read: {error.strerror}") from None
    BYTES_MOVED.add(len(content))
    return content


def damaged(path: Path, what: str) -> IntegrityError:
    """Returns what to say of a file of a prepared folder that is not as it was written."""
    return IntegrityError(f"{path} {what}; remove {path.parent} and prepare the text again")
