"""Checks the files of a checkpoint against its manifest: their sizes, or their checksums too."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from configs.errors import IntegrityError
from data.atomic_files import digest_file, with_retries
from train.checkpoints.manifest import STATE, FileEntry, Manifest, read_manifest


def verify(
    folder: Path,
    step: int,
    how: Literal["full", "sizes"] = "full",
    *,
    part: int = 0,
    num_parts: int = 1,
) -> Manifest:
    """Returns the manifest of a checkpoint whose files match it.

    Args:
        how: full compares checksums, sizes only the sizes of files.
        part: of several parts of the files, the one to check.

    Raises:
        IntegrityError: a file is missing, changed, or not listed.
        SettingsError, Unavailable: as read_manifest.
    """
    manifest = read_manifest(folder, step)
    check_files(folder / str(step), manifest, how, part=part, num_parts=num_parts)
    return manifest


def check_files(
    checkpoint: Path,
    manifest: Manifest,
    how: Literal["full", "sizes"] = "full",
    *,
    part: int = 0,
    num_parts: int = 1,
) -> None:
    for name, entry in sorted(manifest.files.items())[part::num_parts]:
        check_file(checkpoint / name, str(checkpoint / name), entry, how)
    found = with_retries(lambda: list_files(checkpoint), f"{checkpoint} cannot be listed")
    for name in sorted(found - set(manifest.files)):
        raise IntegrityError(f"{checkpoint / name} is not listed in the manifest")


def check_file(
    path: Path, where: str, entry: FileEntry, how: Literal["full", "sizes"] = "full"
) -> None:
    """Raises IntegrityError, which names `where`, unless a file matches its entry.

    Raises Unavailable if the disk does not answer: that is no damage.
    """

    def look() -> tuple[os.stat_result, str]:
        found = path.lstat()
        is_read = how == "full" and stat.S_ISREG(found.st_mode) and found.st_size == entry.bytes
        return found, digest_file(path) if is_read else entry.sha256

    try:
        found, sha256 = with_retries(look, f"{where} cannot be read")
    except OSError:
        raise IntegrityError(f"{where} is missing") from None
    if not stat.S_ISREG(found.st_mode):
        raise IntegrityError(f"{where} is missing: what has its name is not a regular file")
    if found.st_size != entry.bytes:
        raise IntegrityError(f"{where} has {found.st_size} bytes; its manifest says {entry.bytes}")
    if sha256 != entry.sha256:
        raise IntegrityError(
            f"{where} is damaged: its sha256 is {sha256[:12]}, its manifest says "
            f"{entry.sha256[:12]}"
        )


def describe_files(checkpoint: Path, names: Iterable[str]) -> dict[str, FileEntry]:
    """Returns the entries of some files of the state, by name.

    The files are flushed to the disk first, out of its cache.

    Raises:
        OSError: one of them is missing.
        Unavailable: the disk does not answer.
    """

    def describe(path: Path) -> FileEntry:
        sha256 = digest_file(path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
            return FileEntry(os.fstat(file.fileno()).st_size, sha256)

    paths = {name: checkpoint / name for name in names}
    return {
        name: with_retries(lambda path=path: describe(path), f"{path} cannot be read")
        for name, path in paths.items()
    }


def list_files(checkpoint: Path) -> set[str]:
    """Returns the files of the state, by their paths below the checkpoint, that this machine sees.

    On a shared file system it may not yet see what another machine has written.
    """
    found = (checkpoint / STATE).rglob("*")
    return {path.relative_to(checkpoint).as_posix() for path in found if not path.is_dir()}
