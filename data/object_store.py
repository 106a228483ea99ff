"""Reads and writes files in object stores (s3:// gs:// ...) or folders, through fsspec."""

import contextlib
import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec

from configs.errors import IntegrityError, SettingsError
from configs.require import require
from configs.suggested_commands import pip_install
from data.atomic_files import BYTES_MOVED, explain_full_disk, stays_inside
from data.object_store_errors import explain_store_errors
from data.prepare.text.source_files import before_wildcard

_NUM_STREAMS = 4  # files at a time; s3fs also splits large files into parts
_COPIED_BYTES = 2**20
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
_VERSION_KEYS = ("ETag", "etag", "LastModified", "mtime", "updated", "created")


def is_remote(path: str) -> bool:
    """Returns whether a path is a URL, SCHEME://..., with a scheme other than file."""
    return re.match(r"(?!file:)[a-z][a-z0-9+.-]*://", path, re.IGNORECASE) is not None


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
        """Returns the full URL of a file."""
        return self._fs.unstrip_protocol(f"{self._root}/{name}")

    def read(self, name: str) -> bytes:
        """Returns the bytes of a file."""
        with explain_store_errors(self.address(name), "read"):
            return self._fs.cat_file(f"{self._root}/{name}")

    def read_if_exists(self, name: str) -> bytes | None:
        """Returns the bytes of a file; None if it is absent."""
        with (
            explain_store_errors(self.address(name), "read"),
            contextlib.suppress(FileNotFoundError),
        ):
            return self._fs.cat_file(f"{self._root}/{name}")
        return None

    def info(self, name: str) -> dict[str, Any] | None:
        """Returns the version of a file, its size and ETag; None if it is absent."""
        with (
            explain_store_errors(self.address(name), "read"),
            contextlib.suppress(FileNotFoundError),
        ):
            info = self._fs.info(f"{self._root}/{name}")
            return _version(info) if info["type"] == "file" else None

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
        """Returns the names of all files below a folder; none if it is absent."""
        with (
            explain_store_errors(self.address(below), "read"),
            contextlib.suppress(FileNotFoundError),
        ):
            found = self._fs.find(f"{self._root}/{below}")
            return sorted(path.removeprefix(f"{self._root}/") for path in found)
        return []

    def remove(self, name: str) -> None:
        """Removes a file, if it exists."""
        with (
            explain_store_errors(self.address(name), "removed"),
            contextlib.suppress(FileNotFoundError),
        ):
            self._fs.rm_file(f"{self._root}/{name}")

    def move(self, name: str, to: str) -> None:
        """Renames a file."""
        with explain_store_errors(self.address(name), "moved"):
            self._fs.mv(f"{self._root}/{name}", f"{self._root}/{to}")

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file."""
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
        """Copies a local file into the store."""
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
        """Counts the change of `value`; fsspec calls it after each."""
        BYTES_MOVED.add(max(self.value - self._counted, 0))
        self._counted = self.value


def copy_counted(source: Path, target: Path) -> None:
    """Copies a local file and counts its bytes in BYTES_MOVED."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as read, target.open("wb", buffering=0) as written:
        while block := memoryview(read.read(_COPIED_BYTES)):
            while block:
                size = written.write(block)
                BYTES_MOVED.add(size)
                block = block[size:]
