"""Steps "exact_duplicates" and "near_duplicates": finds duplicates of earlier documents.

Scanning writes one signature per document; after all tasks, one pass over the signatures finds the
duplicates. The text itself is not read again.
"""

import functools
import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from configs.data import PrepareConfig
from data.prepare.cleaning.minhash import NUM_BINS, comparable, minhash, mix, similarity

KEPT = -1
"""Instead of the number of an earlier document: the document is no duplicate."""

MAX_COMPARED = 16
"""Of the documents that share a band, the first so many are compared with the others."""

MIN_RECALL = 0.9
"""Least probability that two documents exactly at the threshold share a band."""

BUCKET_ENTRIES = 1 << 22
"""Mean entries of a bucket: 64 to 96 MiB, read and sorted at once."""
_CHUNK = 1 << 15  # signatures in memory at once: 17 MiB
_MAX_OPEN_FILES = 256  # a process may have 1024 at once on most systems


def signature_dtype(config: PrepareConfig) -> np.dtype:
    """Returns the dtype of a signature: 16 bytes, and 512 more for near duplicates."""
    fields: list[tuple] = [("exact", "<u8", (2,))]
    if "near_duplicates" in config.clean:
        fields.append(("near", "<u4", (NUM_BINS,)))
    return np.dtype(fields)


def signature_of(text: str, config: PrepareConfig) -> np.void:
    """Returns the signature of a document, of `signature_dtype`.

    `exact` is a 128-bit BLAKE2b hash, the same for documents that differ only in case, white space
    and compatible forms of characters (NFKC). For `near` see `minhash`.
    """
    text = comparable(text)
    signature = np.zeros(1, signature_dtype(config))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    signature["exact"] = np.frombuffer(digest, "<u8")
    if "near_duplicates" in config.clean:
        signature["near"] = minhash(text)
    return signature[0]


def find_duplicates(
    files: Sequence[Path], config: PrepareConfig, work_dir: Path
) -> list[np.ndarray]:
    """Returns for each document its earlier original, or KEPT: int64, one array per file.

    Documents are numbered over all files (.npy of `signature_dtype`), in order. The original of
    a document is

    - by "exact_duplicates": the first document with the same `exact`;
    - by "near_duplicates", if there is none: the first earlier document that shares a band of the
      signature with it and has an estimated Jaccard similarity of at least
      data.duplicate_similarity. If more than MAX_COMPARED documents share a band (a licence, a
      template), only the first ones are compared with the others.

    An original may be a duplicate itself. So the result does not depend on how documents are
    divided into files, and a chain of similar texts keeps only its first.

    Memory does not grow with the corpus: files are memory-mapped, keys go to buckets on disk (see
    `group_by_key`), and the arrays returned are slices of one mapped file in work_dir. On disk this
    takes 24 bytes per document for exact duplicates, 16 per document and band for near ones (one
    after the other), and 8 for the result.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    starts = np.cumsum([0, *(len(np.load(path, mmap_mode="r")) for path in files)])
    shape = (int(starts[-1]),)
    path = work_dir / "earlier.npy"
    earlier = np.lib.format.open_memmap(path, "w+", np.int64, shape)
    with path.open("r+b") as file:  # a full disk is an error here, but a crash on writing
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    earlier[:] = KEPT
    if "exact_duplicates" in config.clean:
        _mark_exact(files, earlier, work_dir / "exact")
    if "near_duplicates" in config.clean:
        _mark_near(files, starts, earlier, config.duplicate_similarity, work_dir / "near")
    return [earlier[start:end] for start, end in itertools.pairwise(starts)]


def bands_and_rows(threshold: float) -> tuple[int, int]:
    """Returns the number of bands of a signature, and the bins of a band.

    Two signatures of similarity s share one of b bands of r bins with a probability of
    1 - (1 - s^r)^b. The longer a band, the fewer comparisons are in vain; so r is the largest for
    which that is at least MIN_RECALL at the threshold, and b = NUM_BINS // r. At 0.8 these are 16
    bands of 8: 0.947 at 0.8, 0.994 at 0.85, 0.9999 at 0.9, and 0.06 at 0.5.

    Source: Leskovec, Rajaraman and Ullman 2014, Mining of massive datasets, section 3.4.2.
    """
    rows = [
        rows
        for rows in range(1, NUM_BINS + 1)
        if 1 - (1 - threshold**rows) ** (NUM_BINS // rows) >= MIN_RECALL
    ]
    longest = max(rows, default=1)
    return NUM_BINS // longest, longest


def _chunks(files: Sequence[Path], field: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (document numbers, a field of their signatures), a chunk of a file at a time."""
    number = 0
    for path in files:
        signatures = np.load(path, mmap_mode="r")
        for begin in range(0, len(signatures), _CHUNK):
            values = np.array(signatures[begin : begin + _CHUNK][field])
            yield np.arange(number, number + len(values)), values
            number += len(values)


def _mark_exact(files: Sequence[Path], earlier: np.ndarray, folder: Path) -> None:
    chunks = ((exact, documents) for documents, exact in _chunks(files, "exact"))
    for documents, first in group_by_key(chunks, len(earlier), folder):
        original = documents[first]
        is_copy = documents != original
        earlier[documents[is_copy]] = original[is_copy]


def _mark_near(
    files: Sequence[Path], starts: np.ndarray, earlier: np.ndarray, threshold: float, folder: Path
) -> None:
    num_bands, _ = bands_and_rows(threshold)
    opened = functools.lru_cache(_MAX_OPEN_FILES)(lambda number: np.load(files[number], "r"))
    # All keys are read before the first group is yielded, so only exact duplicates are known.
    chunks = _band_keys(files, earlier, threshold)
    for documents, first in group_by_key(chunks, len(earlier) * num_bands, folder):
        index = np.arange(len(documents))
        for k in range(MAX_COMPARED):
            # The group's document k against all later ones of it, in every group at once.
            later = np.flatnonzero(index > first + k)
            one, other = documents[later], documents[first[later] + k]
            known = earlier[one]
            new = (known == KEPT) | (known > other)
            one, other = one[new], other[new]
            is_near = _similarity_of(opened, starts, one, other) >= threshold
            # A document may be in several groups; its earliest match is its original.
            order = np.argsort(-other[is_near], kind="stable")
            earlier[one[is_near][order]] = other[is_near][order]


def _band_keys(
    files: Sequence[Path], earlier: np.ndarray, threshold: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (keys [N * bands, 1], documents) of documents that are no exact duplicates.

    An exact duplicate has the signature of its earlier original, so it needs no comparison.
    """
    num_bands, num_rows = bands_and_rows(threshold)
    for documents, near in _chunks(files, "near"):
        chosen = earlier[documents] == KEPT
        bins = near[chosen, : num_bands * num_rows].reshape(-1, num_bands, num_rows)
        # The number of the band is part of its key: only bands of the same number are compared.
        keys = np.broadcast_to(mix(np.arange(1, num_bands + 1, dtype=np.uint64)), bins.shape[:2])
        for row in range(num_rows):
            keys = mix(keys + bins[:, :, row])
        yield keys.reshape(-1, 1), np.repeat(documents[chosen], num_bands)


def _similarity_of(
    opened: Callable[[int], np.ndarray], starts: np.ndarray, one: np.ndarray, other: np.ndarray
) -> np.ndarray:
    similarities = [np.zeros(0)]
    for begin in range(0, len(one), _CHUNK):
        pair = (documents[begin : begin + _CHUNK] for documents in (one, other))
        similarities.append(
            similarity(*(_near_of(opened, starts, documents) for documents in pair))
        )
    return np.concatenate(similarities)


def _near_of(
    opened: Callable[[int], np.ndarray], starts: np.ndarray, documents: np.ndarray
) -> np.ndarray:
    file = np.searchsorted(starts, documents, side="right") - 1
    near = np.empty((len(documents), NUM_BINS), np.uint32)
    for number in np.unique(file):
        here = file == number
        near[here] = opened(int(number))["near"][documents[here] - starts[number]]
    return near


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
