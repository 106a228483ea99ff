"""Object stores (s3:// gs:// ...) through fsspec, and the prepared folders and raw text in them.

What is fetched is a local copy that is read like any folder. A file gets its name when all of its
bytes are there, and a manifest comes last, in both directions: a folder without one is not whole.
Processes of one machine take turns, so each file is fetched once.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec

from configs.check import require
from configs.command_line import pip_install
from configs.errors import IntegrityError, SettingsError
from data.atomic_files import (
    MANIFEST,
    MOVED,
    digest_file,
    locked,
    no_space_is_told,
    retried,
    stays_inside,
    write_json,
)
from data.prepare.text.sources import before_wildcard
from data.transfers import Count, copy_counted, told

_NUM_STREAMS = 4  # files at a time; s3fs splits a large one into parts besides
_PART_LEN = 50 * 2**20  # what s3fs uploads at a time of a file of twice that or more
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
_VERSION_KEYS = ("ETag", "etag", "LastModified", "mtime", "updated", "created")
_MAGIC = re.compile(r"[*?[]")


def is_remote(path: str) -> bool:
    """Says whether a path is a URL, SCHEME://..., of a scheme other than file."""
    return re.match(r"(?!file:)[a-z][a-z0-9+.-]*://", path, re.IGNORECASE) is not None


def manifest_files(manifest: Any) -> dict[str, str]:
    """Returns {name: SHA-256} of all files that a manifest names, wherever in it they stand.

    A file is named by an object that has both "file", relative to the folder, and "sha256".

    Raises:
        IntegrityError: a name leads out of the folder, or has two digests.
    """
    files: dict[str, str] = {}
    pending = [manifest]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending += node
        if isinstance(node, dict):
            pending += node.values()
            if "file" in node and "sha256" in node:
                name, sha256 = node["file"], str(node["sha256"])
                if not isinstance(name, str) or not stays_inside(name) or name == MANIFEST:
                    raise IntegrityError(f"a manifest must not name the file {name!r}")
                if files.setdefault(name, sha256) != sha256:
                    raise IntegrityError(f"a manifest gives two digests of the file {name!r}")
    return dict(sorted(files.items()))


def is_prepared(url: str) -> bool:
    """Says whether a prepared folder is at a URL; raises as `Store` does."""
    return not _MAGIC.search(url) and Store(url).info(MANIFEST) is not None


def fetch_folder(url: str, cache_dir: Path) -> Path:
    """Returns a local copy of a prepared folder, cache_dir/remote-DIGEST, of the manifest's digest.

    Files that are there already are not fetched again. Of a copy that is whole only that they are
    there is checked, not their digests: `open_store` does that.

    Raises:
        SettingsError: the store cannot be read.
        IntegrityError: a file is not what the manifest says; the copy then has no manifest.
        Unavailable: the store does not answer, which may pass.
    """
    store = Store(url)
    content = store.read(MANIFEST)
    files = _parse(content, store.address(MANIFEST))
    folder = cache_dir / f"remote-{hashlib.sha256(content).hexdigest()[:16]}"
    with _workspace(cache_dir, folder.name) as parts:
        is_whole = (folder / MANIFEST).is_file()

        def fetch(name: str) -> None:
            path = folder / name
            if not path.is_file() or not (is_whole or _digest(path) == files[name]):
                with store.getting(name, parts, path) as part:
                    _verify(part, store.address(name), files[name])

        each(fetch, files)
        folder.mkdir(exist_ok=True)
        (parts / MANIFEST).write_bytes(content)
        os.replace(parts / MANIFEST, folder / MANIFEST)
    return folder


def push_folder(folder: Path, url: str) -> None:
    """Copies a prepared folder into an object store: the files of its manifest, which comes last.

    A file that is there is left out if the store's MD5 says that it is the same.

    Raises:
        SettingsError: there is no manifest, the store cannot be written, or another prepared folder
            is there.
        IntegrityError: a file is not what the manifest says, or has another size once uploaded.
        Unavailable: the store does not answer, which may pass.
    """
    path = folder / MANIFEST
    require(path.is_file(), f"{folder} must be a prepared folder, but has no {MANIFEST}")
    content = retried(path.read_bytes, f"{path} cannot be read")
    files = _parse(content, str(path))
    store = Store(url)
    is_free = store.read_if_there(MANIFEST) in (None, content)
    require(is_free, f"{url} has another prepared folder; push this one to a place of its own")

    def push(name: str) -> None:
        _verify(folder / name, str(folder / name), files[name])
        there = store.info(name)
        if there is None or not _is_known_to_be(there, folder / name):
            store.put(name, folder / name)

    each(push, files)
    store.put(MANIFEST, path)


def fetch_files(url: str, cache_dir: Path) -> Path:
    """Returns a local folder with the files of a remote file, folder or glob, and no others.

    Names are relative to the folder, to the parent of the file, or to the last folder of a glob
    without a wildcard. A file is kept from an earlier call if its size and its ETag (or time, where
    the store has none) are still the same, and the copy is as it was.

    Raises:
        SettingsError: the store cannot be read, or there is no file.
        Unavailable: the store does not answer, which may pass.
    """
    store = Store(url)
    home = cache_dir / f"files-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    folder, index_path = home / "files", home / "index.json"
    with _workspace(cache_dir, home.name) as parts:
        found = store.find()
        index = json.loads(index_path.read_bytes()) if index_path.is_file() else {}

        def fetch(name: str) -> dict[str, Any]:
            path, version = folder / name, found[name]
            if path.is_file() and version["etag"] is not None:
                listed = {**version, "sha256": _digest(path)}
                # What a killed call left is not in the index, but may be known all the same.
                if index.get(name) == listed or _is_known_to_be(version, path):
                    return listed
            with store.getting(name, parts, path) as part:
                return {**version, "sha256": _digest(part)}

        _remove_others(folder, found)
        write_json(index_path, dict(zip(found, each(fetch, found), strict=True)))
    return folder


class Store:
    """What is below a URL or a folder, by relative name.

    What goes wrong is a SettingsError of one line, or Unavailable where it may pass. A file that is
    written is there whole or not at all. What is sent and received is counted in MOVED.
    """

    def __init__(self, url: str):
        # No caches: another process may have changed what is there, and the endpoint is read from
        # the environment when a file system is made.
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
        """Returns the whole URL of a file."""
        return self._fs.unstrip_protocol(f"{self._root}/{name}")

    def read(self, name: str) -> bytes:
        """Returns the bytes of a file."""
        with told(self.address(name), "read"):
            return self._fs.cat_file(f"{self._root}/{name}")

    def read_if_there(self, name: str) -> bytes | None:
        """Returns the bytes of a file; None if it is not there."""
        with told(self.address(name), "read"), contextlib.suppress(FileNotFoundError):
            return self._fs.cat_file(f"{self._root}/{name}")
        return None

    def info(self, name: str) -> dict[str, Any] | None:
        """Returns the version of a file, its size and ETag; None if it is not there."""
        with told(self.address(name), "read"), contextlib.suppress(FileNotFoundError):
            info = self._fs.info(f"{self._root}/{name}")
            return _version(info) if info["type"] == "file" else None

    @contextlib.contextmanager
    def getting(self, name: str, parts: Path, path: Path) -> Iterator[Path]:
        """Yields a copy of a file below `parts`, to be checked, and then moves it to `path`."""
        part = parts / name
        with told(self.address(name), "fetched"), no_space_is_told(part):
            version = self.info(name)
            part.parent.mkdir(parents=True, exist_ok=True)
            if self._is_local:
                copy_counted(Path(f"{self._root}/{name}"), part)
            else:
                self._fs.get_file(f"{self._root}/{name}", str(part), callback=Count())
            changed = f"{self.address(name)} changed while it was read; start again"
            require(self.info(name) == version, changed)
            yield part
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(part, path)

    def names(self, below: str) -> list[str]:
        """Returns the names of all files below a folder; none if it is not there."""
        with told(self.address(below), "read"), contextlib.suppress(FileNotFoundError):
            found = self._fs.find(f"{self._root}/{below}")
            return sorted(path.removeprefix(f"{self._root}/") for path in found)
        return []

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        with told(self.address(name), "removed"), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{name}")

    def move(self, name: str, to: str) -> None:
        """Gives a file another name."""
        with told(self.address(name), "moved"):
            self._fs.mv(f"{self._root}/{name}", f"{self._root}/{to}")

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file."""
        with self._writing(name) as there:
            self._fs.pipe_file(there, content)
            MOVED.add(len(content))

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[str]:
        """Yields where to write a file: an object appears at its end, a local file is renamed."""
        with told(self.address(name), "written"):
            there = f"{self._root}/{name}"
            if not self._is_local:
                yield there
                return
            yield f"{there}.tmp"
            os.replace(f"{there}.tmp", there)

    def put(self, name: str, path: Path) -> None:
        """Copies a local file into the store."""
        with self._writing(name) as there:
            if self._is_local:
                copy_counted(path, Path(there))
            else:
                self._fs.put_file(str(path), there, callback=Count())
        size, found = path.stat().st_size, (self.info(name) or {"size": 0})["size"]
        if found != size:
            raise IntegrityError(f"{self.address(name)} has {found} bytes of {size}; push again")

    def find(self) -> dict[str, dict[str, Any]]:
        """Returns {name: version} of the files that the URL, maybe a glob, stands for.

        From then on names are relative as `fetch_files` says.
        """
        root, url = self._root, self._fs.unstrip_protocol(self._root)
        with told(url, "read"):
            is_glob = _MAGIC.search(root)
            found = self._fs.glob(root, detail=True) if is_glob else {root: self._fs.info(root)}
            for path, info in list(found.items()):
                if info["type"] == "directory":
                    found |= self._fs.find(path, detail=True)
        is_folder = not is_glob and found[root]["type"] == "directory"
        self._root = root if is_folder else before_wildcard(root).rpartition("/")[0]
        files = {
            path.removeprefix(f"{self._root}/"): _version(info)
            for path, info in sorted(found.items())
            if info["type"] == "file" and not path.endswith("/")  # some tools write folders so
        }
        require(bool(files), f"{url} has no files; give a file, a folder or a glob that has")
        for name in files:
            require(stays_inside(name), f"{url} must not have a file of the name {name!r}")
        return files


@contextlib.contextmanager
def _workspace(cache_dir: Path, name: str) -> Iterator[Path]:
    """Yields an empty folder for files in the making, to one process at a time; then removes it."""
    with locked(cache_dir, name):
        parts = cache_dir / f"{name}.parts"
        shutil.rmtree(parts, ignore_errors=True)  # what a killed process left
        parts.mkdir()
        try:
            yield parts
        finally:
            shutil.rmtree(parts)


def each(work: Callable[[str], Any], names: Iterable[str]) -> list[Any]:
    """Returns work(name) of each, some at a time; after an error none is begun any more."""
    with ThreadPoolExecutor(_NUM_STREAMS) as pool:
        return list(pool.map(work, names))


def _parse(content: bytes, where: str) -> dict[str, str]:
    try:
        return manifest_files(json.loads(content))
    except (ValueError, RecursionError, IntegrityError) as error:
        raise IntegrityError(f"{where} is not a manifest: {error}") from None


def _verify(path: Path, where: str, sha256: str) -> None:
    found = _digest(path) if path.is_file() else "of no file"
    if found != sha256:
        raise IntegrityError(f"{where} has sha256 {found[:12]}, the manifest says {sha256[:12]}")


def _digest(path: Path) -> str:
    return retried(lambda: digest_file(path), f"{path} cannot be read")


def _remove_others(folder: Path, names: Iterable[str]) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in names:
            path.unlink()


def _version(info: dict[str, Any]) -> dict[str, Any]:
    said = (str(info[key]) for key in _VERSION_KEYS if info.get(key) is not None)
    return {"size": info.get("size"), "etag": next(said, None)}


def _is_known_to_be(version: dict[str, Any], path: Path) -> bool:
    """Says whether an object is sure to have the bytes of a file, by its size and MD5.

    An ETag is the MD5 of an object or, if it was uploaded in parts, the MD5 of their MD5s and their
    number; under encryption by KMS, and in other stores, it is something else, equal to neither.
    Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
    """
    etag = str(version["etag"]).strip('"')
    if version["size"] != path.stat().st_size or not re.fullmatch(r"[0-9a-f]{32}(-\d+)?", etag):
        return False
    md5 = functools.partial(hashlib.md5, usedforsecurity=False)
    with path.open("rb") as file:
        if "-" not in etag:
            return hashlib.file_digest(file, md5).hexdigest() == etag
        parts = [md5(part).digest() for part in iter(lambda: file.read(_PART_LEN), b"")]
    return f"{md5(b''.join(parts)).hexdigest()}-{len(parts)}" == etag
