"""Files that are there whole or not at all, their digests, and a disk that is full."""

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
"""Says what belongs to a prepared folder; written last, so a folder without one is not whole."""


_BUFFER_BYTES = 1 << 20
_WAITS_SEC = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Before an operation that failed by an I/O error is tried again."""
ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""Errors that say what is there, and not that a disk or network has failed to answer."""


class Moved:
    """Bytes that this process has read, hashed, sent or received, of which a watchdog can see that
    something long is still going on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.total = 0

    def add(self, num_bytes: int) -> None:
        """Counts bytes; any thread may call it."""
        with self._lock:
            self.total += num_bytes


BYTES_MOVED = Moved()
"""The count of this process, which only ever grows."""


def digest_file(path: Path) -> str:
    """Returns the SHA-256 of the bytes of a file, read in parts."""
    digest, buffer = hashlib.sha256(), bytearray(_BUFFER_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(view[:size])
            BYTES_MOVED.add(size)
    return digest.hexdigest()


def with_retries(work: Callable[[], Result], what: str) -> Result:
    """Returns work(), which is tried again where the disk or network fails to answer (EIO, ESTALE,
    EACCES, a timeout, ...).

    Args:
        what: a path or URL and what is done to it, such as "x/manifest.json cannot be read".

    Raises:
        FileNotFoundError: it is absent, or a folder; trying again would not help.
        Unavailable: it did not pass.
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
                    f"{what}: {cause}, at {len(_WAITS_SEC) + 1} tries within "
                    f"{sum(_WAITS_SEC):.0f} s. Nothing was changed; see to the disk or network, "
                    "then start again"
                ) from None
        time.sleep(wait_sec)
    raise AssertionError("the last try returns or raises")


def file_entry(path: Path) -> dict[str, Any]:
    """Returns what a manifest says of a file."""
    return {"file": path.name, "sha256": digest_file(path), "size": path.stat().st_size}


def stays_inside(name: str) -> bool:
    """Says whether a name is that of a file below a folder, spelled in the one way there is."""
    path = PurePosixPath(name)
    is_plain = str(path) == name != "." and "\0" not in name
    return is_plain and not path.is_absolute() and ".." not in path.parts


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write to, which becomes `path` at the end, or nothing does.

    A reader, or a restart after a kill, sees all of the file or none. What a killed process left
    behind is named PATH.tmp-PID.

    Raises:
        SettingsError: the disk is full.
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
    """Writes a JSON file, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Writes a small text, whole or not at all, without waiting for the disk."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes an array as .npy, whole or not at all."""
    content = io.BytesIO()
    np.save(content, array)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getvalue())  # numpy's own writing hides that a disk is full


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
    """Raises SettingsError unless a disk has room for what cannot say that it has none.

    A mapped file ends the process where the disk is full, and numpy writes less than it says.
    """
    if shutil.disk_usage(folder).free < num_bytes:
        raise _no_space(folder)


def _no_space(path: Path) -> SettingsError:
    return SettingsError(
        f"no space is left on the disk while writing {path}: free some and give the same "
        "command again, which goes on where it stopped, or write to another place"
    )


NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What `flock` fails with on a file system that has no locks."""


def lock_error(path: Path, error: OSError) -> SettingsError:
    """Returns what to say where a file system has no locks, by one of NO_LOCKS."""
    return SettingsError(
        f"{path} cannot be locked ({error.strerror}), so two processes could write to "
        f"{path.parent} at once: mount its file system with locks (Lustre with -o flock, NFS with "
        "its lock service), or work in a folder of another one"
    )


@contextlib.contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Holds FOLDER/NAME.lock, for which other processes of this machine wait.

    Raises:
        SettingsError: the file system has no locks.
    """
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
