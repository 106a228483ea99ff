"""Groups documents by key with bounded memory, through buckets on disk."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

BUCKET_ENTRIES = 1 << 22
"""Mean entries of a bucket: 64 to 96 MiB, read and sorted at once."""


def group_by_key(
    chunks: Iterable[tuple[np.ndarray, np.ndarray]], num_entries: int, folder: Path
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (documents, first), with all documents that share a key next to one another.

    `documents` are int64, ascending within a group; `first` is the index at which the group of each
    begins. Groups of one are omitted. Each yield is a bucket: all keys with the same upper bits, so
    a key is in one bucket only. The result does not depend on how entries are divided into chunks.

    Args:
        chunks: (keys uint64 [N, W], the first column uniformly distributed; documents int64 [N]),
            the documents ascending from chunk to chunk.
        num_entries: total number of entries of all chunks.
        folder: for the buckets; emptied before and removed after.
    """
    shutil.rmtree(folder, ignore_errors=True)  # files of a killed process would be read as ours
    folder.mkdir(parents=True)
    num_buckets = max(1, -(-num_entries // BUCKET_ENTRIES))
    width = 0
    for keys, documents in chunks:
        width = keys.shape[1] + 1
        _append(keys, documents, num_buckets, folder)
    for path in sorted(folder.iterdir()):
        entries = np.fromfile(path, np.uint64).reshape(-1, width)
        path.unlink()
        yield _groups(entries)
    folder.rmdir()


def _append(keys: np.ndarray, documents: np.ndarray, num_buckets: int, folder: Path) -> None:
    # The upper 32 bits, scaled to the number of buckets: equal ranges of keys, in order.
    bucket = (keys[:, 0] >> np.uint64(32)) * np.uint64(num_buckets) >> np.uint64(32)
    order = np.argsort(bucket, kind="stable")
    entries = np.column_stack((keys, documents.astype(np.uint64)))[order]
    edges = np.searchsorted(bucket[order], np.arange(num_buckets + 1, dtype=np.uint64))
    for number in np.flatnonzero(np.diff(edges)):
        with (folder / f"{number:08}").open("ab") as file:
            # tofile would write less on a full disk without an error.
            file.write(entries[edges[number] : edges[number + 1]].tobytes())


def _groups(entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # lexsort is stable, and entries are in ascending order of documents.
    entries = entries[np.lexsort(entries[:, :-1].T)]
    begins = np.ones(len(entries), bool)
    begins[1:] = (entries[1:, :-1] != entries[:-1, :-1]).any(axis=1)
    start = np.flatnonzero(begins)
    size = np.diff(start, append=len(entries))
    size_here = np.repeat(size, size)
    shared = size_here > 1
    first = np.repeat(np.cumsum(np.where(size > 1, size, 0)) - size, size)[shared]
    return entries[shared, -1].astype(np.int64), first
