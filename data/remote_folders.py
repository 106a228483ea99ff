"""Fetches prepared folders and raw text from object stores into a cache, and pushes folders.

A file gets its name when it is complete, and the manifest comes last, in both directions: a folder
without one is incomplete. Processes of one machine take turns, so each file is fetched once.

Errors are those of `ObjectStore`, and IntegrityError for a file that does not match the manifest.
"""

import contextlib
import functools
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from configs.errors import IntegrityError
from configs.require import require
from data.atomic_files import MANIFEST, digest_file, locked, stays_inside, with_retries, write_json
from data.object_store import ObjectStore, in_parallel

_PART_BYTES = 50 * 2**20  # of a multipart upload by s3fs, for files of twice that or more


def manifest_files(manifest: Any) -> dict[str, str]:
    """Returns {name: SHA-256} of all files that a manifest names, at any depth.

    An object with both "file", relative to the folder, and "sha256" names a file.
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
    return not glob.has_magic(url) and ObjectStore(url).info(MANIFEST) is not None


def fetch_folder(url: str, cache_dir: Path) -> Path:
    """Returns a local copy of a prepared folder, cache_dir/remote-DIGEST, by the manifest's digest.

    Existing files are not fetched again. Of a complete copy only their existence is checked;
    `open_store` checks the digests.
    """
    store = ObjectStore(url)
    content = store.read(MANIFEST)
    files = _parse(content, store.address(MANIFEST))
    folder = cache_dir / f"remote-{hashlib.sha256(content).hexdigest()[:16]}"
    with _workspace(cache_dir, folder.name) as temporary:
        is_complete = (folder / MANIFEST).is_file()

        def fetch(name: str) -> None:
            path = folder / name
            if not path.is_file() or not (is_complete or _digest(path) == files[name]):
                with store.fetching(name, temporary, path) as copy:
                    _verify(copy, store.address(name), files[name])

        in_parallel(fetch, files)
        folder.mkdir(exist_ok=True)
        (temporary / MANIFEST).write_bytes(content)
        os.replace(temporary / MANIFEST, folder / MANIFEST)
    return folder


def push_folder(folder: Path, url: str) -> None:
    """Uploads a prepared folder to an object store: the files of its manifest, then the manifest.

    A file is skipped if the store has one with the same MD5.
    """
    path = folder / MANIFEST
    require(path.is_file(), f"{folder} must be a prepared folder, but has no {MANIFEST}")
    content = with_retries(path.read_bytes, f"{path} cannot be read")
    files = _parse(content, str(path))
    store = ObjectStore(url)
    is_free = store.read_if_exists(MANIFEST) in (None, content)
    require(is_free, f"{url} has another prepared folder; push this one to another URL")

    def push(name: str) -> None:
        _verify(folder / name, str(folder / name), files[name])
        version = store.info(name)
        if version is None or not _has_same_md5(version, folder / name):
            store.put(name, folder / name)

    in_parallel(push, files)
    store.put(MANIFEST, path)


def fetch_files(url: str, cache_dir: Path) -> Path:
    """Returns a local folder with exactly the files of a remote file, folder or glob.

    Names are those of `ObjectStore.find`. A file of an earlier call is kept if its size and its
    ETag (or time, if the store has none) are unchanged, and so is the copy.
    """
    store = ObjectStore(url)
    home = cache_dir / f"files-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    folder, index_path = home / "files", home / "index.json"
    with _workspace(cache_dir, home.name) as temporary:
        found = store.find()
        index = json.loads(index_path.read_bytes()) if index_path.is_file() else {}

        def fetch(name: str) -> dict[str, Any]:
            path, version = folder / name, found[name]
            if path.is_file() and version["etag"] is not None:
                listed = {**version, "sha256": _digest(path)}
                # A file of a killed call is not in the index, but its MD5 may be the same.
                if index.get(name) == listed or _has_same_md5(version, path):
                    return listed
            with store.fetching(name, temporary, path) as copy:
                return {**version, "sha256": _digest(copy)}

        _remove_others(folder, found)
        write_json(index_path, dict(zip(found, in_parallel(fetch, found), strict=True)))
    return folder


@contextlib.contextmanager
def _workspace(cache_dir: Path, name: str) -> Iterator[Path]:
    with locked(cache_dir, name):
        temporary = cache_dir / f"{name}.parts"
        shutil.rmtree(temporary, ignore_errors=True)  # files of a killed process
        temporary.mkdir()
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary)


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
    return with_retries(lambda: digest_file(path), f"{path} cannot be read")


def _remove_others(folder: Path, names: Iterable[str]) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in names:
            path.unlink()


def _has_same_md5(version: dict[str, Any], path: Path) -> bool:
    """Returns whether the size and ETag of an object prove that it has the bytes of a file.

    An ETag is the MD5 of an object or, after a multipart upload, the MD5 of the MD5s of its parts
    and their number; under encryption by KMS, and in other stores, it is something else.
    Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
    """
    etag = str(version["etag"]).strip('"')
    if version["size"] != path.stat().st_size or not re.fullmatch(r"[0-9a-f]{32}(-\d+)?", etag):
        return False
    md5 = functools.partial(hashlib.md5, usedforsecurity=False)
    with path.open("rb") as file:
        if "-" not in etag:
            return hashlib.file_digest(file, md5).hexdigest() == etag
        parts = [md5(part).digest() for part in iter(lambda: file.read(_PART_BYTES), b"")]
    return f"{md5(b''.join(parts)).hexdigest()}-{len(parts)}" == etag
