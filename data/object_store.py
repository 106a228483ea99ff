"""Reads and writes files in object stores (s3:// gs:// ...) or folders, through fsspec."""

import contextlib
import errno
import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec

from configs.errors import IntegrityError, SettingsError, TesseraError, Unavailable
from configs.require import require
from configs.suggested_commands import pip_install
from data.atomic_files import BYTES_MOVED, explain_full_disk, stays_inside
from data.prepare.text.source_files import before_wildcard

_NUM_STREAMS = 4  # files at a time; s3fs also splits large files into parts
_COPIED_BYTES = 2**20
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
_VERSION_KEYS = ("ETag", "etag", "LastModified", "mtime", "updated", "created")

_TEMPORARY = {
    *("ConnectionError", "TimeoutError", "HTTPClientError", "ClientConnectionError"),
    *("ClientPayloadError", "IncompleteRead", "ResponseParserError", "TransportError"),
}
"""Classes of Python, botocore, aiohttp, requests and google.auth for network errors."""
_TEMPORARY_STATUS = (408, 409, 429)
"""And all from 500 on: HTTP statuses after which the same request may succeed later."""
_TEMPORARY_ERRNO = {
    *("EIO", "EREMOTEIO", "ESTALE", "EBUSY", "ENOMEM", "EMFILE", "ENFILE", "ENETDOWN"),
    *("ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "ENOTCONN"),
}


def is_remote(path: str) -> bool:
    """Returns whether a path is a URL, SCHEME://..., with a scheme other than file."""
    return re.match(r"(?!file:)[a-z][a-z0-9+.-]*://", path, re.IGNORECASE) is not None


@contextlib.contextmanager
def explain_store_errors(url: str, done: str) -> Iterator[None]:
    """Turns errors of an object store into one line with the URL.

    Raises:
        SettingsError: the store does not have the file, or refuses the request.
        Unavailable: the store does not respond; a retry may help.
    """
    try:
        yield
    except TesseraError:
        raise
    except Exception as error:  # each package of a store raises its own classes
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        way_out = "check the address, the credentials and the endpoint"
        kind = Unavailable if _is_temporary(error) else SettingsError
        raise kind(f"{url} cannot be {done}: {reason}; {way_out}") from error


def _is_temporary(error: Exception) -> bool:
    """Returns whether an error is of the network, a disk or a busy store, not of the request.

    s3fs turns error codes of a store into Python errors, all unknown ones into EIO: so the HTTP
    status decides, if there is one.
    """
    if _TEMPORARY.intersection(kind.__name__ for kind in type(error).__mro__):
        return True
    status = _http_status(error)
    if status is not None:
        return status >= 500 or status in _TEMPORARY_STATUS
    number = error.errno if isinstance(error, OSError) else None
    return errno.errorcode.get(number or 0) in _TEMPORARY_ERRNO


def _http_status(error: BaseException) -> int | None:
    for raised in (error, error.__cause__):
        response = getattr(raised, "response", None)  # of botocore
        if isinstance(response, dict):
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        status = getattr(raised, "status", getattr(raised, "code", None))  # of aiohttp, of gcsfs
        if isinstance(status, int):
            return status
    return None


class ObjectStore:
    """The files below a URL or a folder, by relative name.

    Errors are SettingsError, or Unavailable if a retry may help. Writes are atomic. Bytes sent and
    received are counted in BYTES_MOVED.
    """

    def __init__(self, url: str):
        # No caches: another process may change files, and the endpoint is read from the
        # environment when a file system is created.
        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        self._is_local = not is_remote(url)
        if self._is_local:
            options = {"auto_mkdir": True}
        try:
            self._fs, self._root = fsspec.url_to_fs(url, **options)
        except (ImportError, ValueError) as error:
            package = _PACKAGES.get(url.partition("://")[0].lower())
            way_out = f"run {pip_install(package)}" if package else "use s3:// or gs://"
            raise SettingsError(f"{url} cannot be opened: {error}; {way_out}") from None

    def address(self, name: str) -> str:
        return self._fs.unstrip_protocol(f"{self._root}/{name}")

    def read(self, name: str) -> bytes:
        with explain_store_errors(self.address(name), "read"):
            return self._fs.cat_file(f"{self._root}/{name}")

    def read_if_exists(self, name: str) -> bytes | None:
        return self._if_exists(self._fs.cat_file, name, "read")

    def info(self, name: str) -> dict[str, Any] | None:
        info = self._if_exists(self._fs.info, name, "read")
        return _version(info) if info and info["type"] == "file" else None

    @contextlib.contextmanager
    def fetching(self, name: str, temporary: Path, path: Path) -> Iterator[Path]:
        """Yields a copy of a file below `temporary` to check, then moves it to `path`."""
        copy = temporary / name
        with explain_store_errors(self.address(name), "fetched"), explain_full_disk(copy):
            version = self.info(name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if self._is_local:
                copy_counted(Path(f"{self._root}/{name}"), copy)
            else:
                self._fs.get_file(f"{self._root}/{name}", str(copy), callback=TransferCallback())
            changed = f"{self.address(name)} changed while it was read; run the command again"
            require(self.info(name) == version, changed)
            yield copy
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(copy, path)

    def names(self, below: str) -> list[str]:
        found = self._if_exists(self._fs.find, below, "read") or []
        return sorted(path.removeprefix(f"{self._root}/") for path in found)

    def remove(self, name: str) -> None:
        self._if_exists(self._fs.rm_file, name, "removed")

    def _if_exists(self, call: Callable[[str], Any], name: str, done: str) -> Any:
        path = f"{self._root}/{name}"
        with explain_store_errors(self.address(name), done):
            try:
                return call(path)
            except FileNotFoundError:
                return None

    def move(self, name: str, to: str) -> None:
        with explain_store_errors(self.address(name), "moved"):
            self._fs.mv(f"{self._root}/{name}", f"{self._root}/{to}")

    def write(self, name: str, content: bytes) -> None:
        with self._writing(name) as target:
            self._fs.pipe_file(target, content)
            BYTES_MOVED.add(len(content))

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[str]:
        """Yields the path to write to; a local file is renamed at the end (objects are atomic)."""
        with explain_store_errors(self.address(name), "written"):
            path = f"{self._root}/{name}"
            if not self._is_local:
                yield path
                return
            yield f"{path}.tmp"
            os.replace(f"{path}.tmp", path)

    def put(self, name: str, path: Path) -> None:
        with self._writing(name) as target:
            if self._is_local:
                copy_counted(path, Path(target))
            else:
                self._fs.put_file(str(path), target, callback=TransferCallback())
        size, found = path.stat().st_size, (self.info(name) or {"size": 0})["size"]
        if found != size:
            raise IntegrityError(f"{self.address(name)} has {found} bytes of {size}; push it again")

    def find(self) -> dict[str, dict[str, Any]]:
        """Returns {name: version} of the files that the URL, maybe a glob, names.

        Makes names relative to the folder, to the parent of the file, or to the last folder of a
        glob without a wildcard.
        """
        root, url = self._root, self._fs.unstrip_protocol(self._root)
        with explain_store_errors(url, "read"):
            is_glob = glob.has_magic(root)
            found = self._fs.glob(root, detail=True) if is_glob else {root: self._fs.info(root)}
            for path, info in list(found.items()):
                if info["type"] == "directory":
                    found |= self._fs.find(path, detail=True)
        is_folder = not is_glob and found[root]["type"] == "directory"
        self._root = root if is_folder else before_wildcard(root).rpartition("/")[0]
        files = {
            path.removeprefix(f"{self._root}/"): _version(info)
            for path, info in sorted(found.items())
            if info["type"] == "file"
            and not path.endswith("/")  # some tools create folders as such objects
        }
        require(bool(files), f"{url} has no files; give a file, a folder or a glob with files")
        for name in files:
            require(stays_inside(name), f"{url} must not have a file named {name!r}")
        return files


def in_parallel(work: Callable[[str], Any], names: Iterable[str]) -> list[Any]:
    """Returns work(name) of each name, some in parallel; after an error no other starts."""
    with ThreadPoolExecutor(_NUM_STREAMS) as pool:
        return list(pool.map(work, names))


def _version(info: dict[str, Any]) -> dict[str, Any]:
    found = (str(info[key]) for key in _VERSION_KEYS if info.get(key) is not None)
    return {"size": info.get("size"), "etag": next(found, None)}


class TransferCallback(fsspec.Callback):
    """Counts the bytes of a file as they are sent or received."""

    _counted = 0

    def call(self, *args: Any, **kwargs: Any) -> None:
        BYTES_MOVED.add(max(self.value - self._counted, 0))
        self._counted = self.value


def copy_counted(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as read, target.open("wb", buffering=0) as written:
        while block := memoryview(read.read(_COPIED_BYTES)):
            while block:
                size = written.write(block)
                BYTES_MOVED.add(size)
                block = block[size:]
