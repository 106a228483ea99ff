"""Statistics of a prepared folder: counts, lengths, files, packings, frequencies, samples."""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data.batch_report import document_name
from data.block_reader import read_file
from data.packing import EpochRows
from data.prepare.text.corpus import Split
from data.token_store import TokenStore, TokenStream

MAX_COUNTED_TOKENS = 16 * 2**20
"""Default for the most tokens of a split to count frequencies in."""
NUM_FILES, NUM_FREQUENT, NUM_SAMPLES = 20, 30, 5
_SAMPLE_TOKENS = 96
_READ_TOKENS = 2**20
_NUM_SPANS = 2048  # read of a split that is too large to count completely
_NUM_RANKS = 96


@dataclass(frozen=True, kw_only=True)
class FileCount:
    """Documents and tokens of a split from one file of the corpus."""

    name: str
    documents: int
    tokens: int  # with the separators of its documents


@dataclass(frozen=True, kw_only=True)
class LengthBin:
    """Number of documents in a range of lengths."""

    first: int  # fewest tokens, without separator
    last: int
    documents: int


@dataclass(frozen=True, kw_only=True)
class PackingCount:
    """Rows and padding of an epoch under a packing."""

    packing: str
    rows: int
    padding: int  # positions without a token
    padding_share: float  # of all positions, from 0 to 1


@dataclass(frozen=True, kw_only=True)
class TokenCount:
    """How often a token occurs."""

    token: int
    text: str  # as `token_text` returns it
    count: int


@dataclass(frozen=True, kw_only=True)
class Frequencies:
    """Token frequencies in the counted tokens."""

    counted_tokens: int
    is_whole: bool  # whether these are the whole split; otherwise spans at even distances
    unseen: int  # entries of the vocabulary that do not occur
    frequent: tuple[TokenCount, ...]  # descending
    ranks: tuple[tuple[int, int], ...]
    """(rank from 1, count), ranks evenly spaced on a logarithmic axis."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The beginning of a document."""

    name: str
    document: int
    num_tokens: int  # of the whole document, without separator
    text: str
    is_cut: bool


@dataclass(frozen=True, kw_only=True)
class SplitStatistics:
    """Statistics of a split; `./tessera inspect --json` has the same fields."""

    tokens: int  # with all separators, including the last
    documents: int
    characters: int
    bytes: int
    bytes_per_token: float  # without separators
    shards: int
    files: tuple[FileCount, ...]  # those with the most tokens, descending
    other_files: FileCount | None  # all others as one; its name has their number
    lengths: tuple[LengthBin, ...]  # bins of powers of two, without gaps
    packings: tuple[PackingCount, ...]
    frequencies: Frequencies
    samples: tuple[Sample, ...]


def count_split(
    store: TokenStore, split: Split, sequence_len: int, *, max_counted: int = MAX_COUNTED_TOKENS
) -> SplitStatistics:
    """Returns the statistics of a split, which must not be empty.

    Args:
        sequence_len: tokens in the rows of the packings.
        max_counted: most tokens to count frequencies in.
    """
    counts, stream = store.manifest["splits"][split], store.split(split)
    edges = np.append(stream.starts, stream.num_tokens - 1)
    num_text_tokens = counts["tokens"] - counts["documents"] - 1
    files, other_files = _count_files(store, split, np.diff(edges))
    return SplitStatistics(
        tokens=counts["tokens"],
        documents=counts["documents"],
        characters=counts["characters"],
        bytes=counts["bytes"],
        bytes_per_token=counts["bytes"] / max(num_text_tokens, 1),
        shards=len(counts["shards"]),
        files=files,
        other_files=other_files,
        lengths=_count_lengths(np.diff(edges) - 1),
        packings=_count_packings(stream, sequence_len),
        frequencies=_count_tokens(store, stream, max_counted),
        samples=tuple(_samples(store, stream)),
    )


def _count_files(
    store: TokenStore, split: Split, length_D: np.ndarray
) -> tuple[tuple[FileCount, ...], FileCount | None]:
    indices = [shard["index"]["file"] for shard in store.manifest["splits"][split]["shards"]]
    file_D = np.concatenate(
        [np.load(io.BytesIO(read_file(store.folder / name)))["file"] for name in indices]
    )
    documents = np.bincount(file_D)
    # Counts below 2^53 are exact in float64.
    tokens = np.bincount(file_D, weights=length_D).astype(np.int64)

    def count(name: str, files: list[int]) -> FileCount:
        own = int(documents[files].sum()), int(tokens[files].sum())
        return FileCount(name=name, documents=own[0], tokens=own[1])

    order = [file for file in np.argsort(-tokens, kind="stable").tolist() if documents[file]]
    shown, others = order[:NUM_FILES], order[NUM_FILES:]
    counts = tuple(count(store.files[file]["name"], [file]) for file in shown)
    return counts, count(f"{len(others):,} others", others) if others else None


def _count_lengths(length_D: np.ndarray) -> tuple[LengthBin, ...]:
    """Returns bins 0, 1, 2 to 3, 4 to 7 and so on, from the shortest document to the longest."""
    bin_D = np.frexp(length_D.astype(np.float64))[1]  # the number of bits of an integer
    documents = np.bincount(bin_D)
    return tuple(
        LengthBin(
            first=2 ** (bits - 1) if bits else 0,
            last=2**bits - 1,
            documents=int(documents[bits]),
        )
        for bits in range(int(bin_D.min()), len(documents))
    )


def _count_packings(stream: TokenStream, sequence_len: int) -> tuple[PackingCount, ...]:
    counts = []
    for packing in ("concat", "best_fit"):
        rows = len(EpochRows(stream, sequence_len, packing))
        padding = rows * sequence_len - (stream.num_tokens - 1)
        share = padding / max(rows * sequence_len, 1)
        counts.append(
            PackingCount(packing=packing, rows=rows, padding=padding, padding_share=share)
        )
    return tuple(counts)


def _count_tokens(store: TokenStore, stream: TokenStream, max_counted: int) -> Frequencies:
    count_V = np.zeros(store.tokenizer.vocab_size, np.int64)
    for start, stop in _counted_spans(stream.num_tokens, max_counted):
        count_V += np.bincount(stream.read(start, stop), minlength=len(count_V))
    order = np.argsort(-count_V, kind="stable")
    num_seen = int(np.count_nonzero(count_V))
    ranks = np.unique(np.geomspace(1, num_seen, _NUM_RANKS).round().astype(np.int64))
    return Frequencies(
        counted_tokens=int(count_V.sum()),
        is_whole=stream.num_tokens <= max_counted,
        unseen=len(count_V) - num_seen,
        frequent=tuple(
            TokenCount(token=token, text=token_text(store, token), count=int(count_V[token]))
            for token in order[: min(NUM_FREQUENT, num_seen)].tolist()
        ),
        ranks=tuple((rank, int(count_V[order[rank - 1]])) for rank in ranks.tolist()),
    )


def _counted_spans(num_tokens: int, max_counted: int) -> Iterator[tuple[int, int]]:
    if num_tokens <= max_counted:
        for start in range(0, num_tokens, _READ_TOKENS):
            yield start, min(start + _READ_TOKENS, num_tokens)
        return
    length = max_counted // _NUM_SPANS
    for i in range(_NUM_SPANS):
        start = i * (num_tokens - length) // (_NUM_SPANS - 1)
        yield start, start + length


def token_text(store: TokenStore, token: int) -> str:
    """Returns the text of a token; <NAME> for a special one, <ID> for a part of a character."""
    names = {i: name for name, i in store.tokenizer.special.items()}
    names[store.tokenizer.separator] = "separator"
    if token in names:
        return f"<{names[token].strip('<>[]|')}>"
    # Some tokenizers drop the space before the first word of a text, so the second is used.
    once, twice = (store.tokenizer.decode([token] * count) for count in (1, 2))
    text = twice[len(once) :]
    return f"<{token}>" if not text or "\ufffd" in text else text


def _samples(store: TokenStore, stream: TokenStream) -> Iterator[Sample]:
    """Yields the beginnings of documents at even distances, with the first and the last."""
    last = len(stream.starts) - 1
    num_samples = min(NUM_SAMPLES, last + 1)
    for document in np.linspace(0, last, num_samples).round().astype(int).tolist():
        position = stream.locate(int(stream.starts[document]))
        begin = int(stream.starts[document]) + 1
        end = int(stream.starts[document + 1]) if document < last else stream.num_tokens - 1
        ids = stream.read(begin, min(begin + _SAMPLE_TOKENS, end))
        yield Sample(
            name=document_name(store, position.file, position.number),
            document=document,
            num_tokens=end - begin,
            text=store.tokenizer.decode(ids.tolist()),
            is_cut=end - begin > len(ids),
        )
