"""Atomic writes, digests and locks of files, retries, and errors of a full disk."""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np

from configs.errors import SettingsError, Unavailable

Result = TypeVar("Result")

MANIFEST = "manifest.json"
"""The list of files of a prepared folder; written last, so a folder without one is incomplete."""


_BUFFER_BYTES = 1 << 20
_WAITS_SEC = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Waits before the retries of an operation that failed with an I/O error."""
ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""Errors about what exists, rather than of a disk or network that does not respond."""


class ByteCounter:
    """Counts bytes that this process reads, hashes, sends or receives, for the watchdog."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.total = 0

    def add(self, num_bytes: int) -> None:
        with self._lock:
            self.total += num_bytes


BYTES_MOVED = ByteCounter()
"""The counter of this process; it only grows."""


def digest_file(path: Path) -> str:
    """Returns the SHA-256 of the bytes of a file, read in blocks."""
    digest, buffer = hashlib.sha256(), bytearray(_BUFFER_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(view[:size])
            BYTES_MOVED.add(size)
    return digest.hexdigest()


def with_retries(work: Callable[[], Result], what: str) -> Result:
    """Returns work(), retried if the disk or network does not respond (EIO, ESTALE, EACCES, ...).

    Args:
        what: the failure for the message, such as "x/manifest.json cannot be read".

    Raises:
        FileNotFoundError: the file is absent, or a folder; a retry would not help.
        Unavailable: every try failed.
    """
    for wait_sec in (*_WAITS_SEC, None):
        try:
            return work()
        except ABSENT:
            raise
        except OSError as error:
            cause = error.strerror or str(error)
            if wait_sec is None:
                raise Unavailable(
                    f"{what}: {cause}, in {len(_WAITS_SEC) + 1} tries within "
                    f"{sum(_WAITS_SEC):.0f} s. Nothing was changed; check the disk or network, "
                    "then start again"
                ) from None
        time.sleep(wait_sec)
    raise AssertionError("the last try returns or raises")


def file_entry(path: Path) -> dict[str, Any]:
    return {"file": path.name, "sha256": digest_file(path), "size": path.stat().st_size}


def stays_inside(name: str) -> bool:
    """Returns whether a name is a normalised relative path that stays below its folder."""
    path = PurePosixPath(name)
    is_plain = str(path) == name != "." and "\0" not in name
    return is_plain and not path.is_absolute() and ".." not in path.parts


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to, and renames it to `path` if no error occurs.

    A reader, or a restart after a kill, sees the complete file or none. A killed process leaves
    PATH.tmp-PID behind.
    """
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with explain_full_disk(path):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Writes a small text atomically, without waiting for the disk."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def save_array(path: Path, array: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, array)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getvalue())  # np.save to a file hides that a disk is full


@contextlib.contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Turns the errors of a full disk into a SettingsError that names the file."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not is_full and "No space left" not in str(error):  # a writer in C++ raises RuntimeError
            raise
        raise _no_space(path) from None


def require_space(folder: Path, num_bytes: int) -> None:
    """Raises SettingsError unless a disk has room for writes that do not report a full disk.

    On a full disk a memory-mapped file kills the process, and numpy writes less without an error.
    """
    if shutil.disk_usage(folder).free < num_bytes:
        raise _no_space(folder)


def _no_space(path: Path) -> SettingsError:
    return SettingsError(
        f"no space is left on the disk while writing {path}: free some and run the same command "
        "again to resume, or write to another disk"
    )


NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Errors of `flock` on a file system without locks."""


def lock_error(path: Path, error: OSError) -> SettingsError:
    return SettingsError(
        f"{path} cannot be locked ({error.strerror}), so two processes could write to "
        f"{path.parent} at once: mount its file system with locks (Lustre with -o flock, NFS with "
        "its lock service), or use a folder on another file system"
    )


@contextlib.contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Holds FOLDER/NAME.lock; other processes of this machine wait for it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno in NO_LOCKS:
                raise lock_error(path, error) from None
            raise
        yield
