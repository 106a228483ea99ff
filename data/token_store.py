"""Opens prepared folders: manifest, tokenizer, and token streams with random access."""

import functools
import hashlib
import io
import itertools
import json
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from configs.data import PrepareConfig
from configs.require import require
from configs.suggested_commands import tessera
from data.atomic_files import MANIFEST, with_retries
from data.block_reader import ShardReader, check_file, damaged, read_file
from data.prepare.shards import FORMAT_VERSION, INDEX_DTYPE, token_dtype
from data.prepare.text.corpus import Split
from data.tokenizers.tokenizer import Tokenizer, content_digest, load_tokenizer

FILES, REPORT = "files.json", "report.json"
READABLE = (2, FORMAT_VERSION)
"""Formats of prepared folders that can be read; a new run needs the last one."""
_NUM_CACHED_INDICES = 16
_NUM_VERIFIERS = 8  # threads that read files to check their digests


@dataclass(frozen=True)
class DocumentPosition:
    """The document, and the offset in it, that a token of the stream comes from."""

    document: int
    """Number of the document in its split, from 0."""
    file: int
    """Index in files.json."""
    number: int
    """Line or row of the file, from 0."""
    offset: int
    """Tokens of the document before it; -1 is the separator that begins the document."""


class TokenStream:
    """The tokens of one split, with random access.

    Each document is its separator and then its tokens; a last separator ends the stream.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], split: Split):
        counts = manifest["splits"][split]
        self.num_tokens: int = counts["tokens"]
        self.num_documents: int = counts["documents"]
        self.num_bytes: int = counts["bytes"]
        self._separator: int = manifest["tokenizer"]["separator"]
        self._block_len: int = manifest["block_len"]
        self._dtype = token_dtype(manifest["tokenizer"]["vocab_size"])
        self._folder, self._entries = folder, counts["shards"]
        tokens = [shard["tokens"] for shard in self._entries]
        documents = [shard["documents"] for shard in self._entries]
        if sum(tokens) + bool(tokens) != self.num_tokens:
            raise ValueError(
                f"the manifest gives {self.num_tokens} tokens for {split}, but its shards hold "
                f"{sum(tokens)} and a separator"
            )
        # Lists: a position is looked up several times a row, and `bisect` is faster than numpy.
        self._first_token, self._first_document = (
            [0, *itertools.accumulate(counts)] for counts in (tokens, documents)
        )
        self._shards = [
            ShardReader(folder, entry, self._block_len, self._dtype) for entry in self._entries
        ]
        self._index = functools.lru_cache(_NUM_CACHED_INDICES)(self._load_index)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns tokens start to stop, fewer at the end; raises as `ShardReader.block`."""
        stop = min(stop, self.num_tokens)
        blocks = []
        while start < min(stop, self.num_tokens - 1):
            shard = bisect_right(self._first_token, start) - 1
            block, offset = divmod(start - self._first_token[shard], self._block_len)
            ids = self._shards[shard].block(block)
            blocks.append(ids[offset : offset + stop - start])
            start += len(blocks[-1])
        if start < stop:
            blocks.append(np.array([self._separator], self._dtype))
        if len(blocks) == 1:
            return blocks[0]
        return np.concatenate([np.zeros(0, self._dtype), *blocks])

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """Start of each document in the stream, ascending, int64."""
        starts = [np.zeros(0, np.int64)]
        for shard, first in enumerate(self._first_token[:-1]):
            starts.append(self._index(shard)["start"].astype(np.int64) + first)
        return np.concatenate(starts)

    def locate(self, position: int) -> DocumentPosition:
        """Returns the document and offset of a token; the last separator belongs to no document."""
        document = int(np.searchsorted(self.starts, position, "right")) - 1
        shard = bisect_right(self._first_document, document) - 1
        entry = self._index(shard)[document - self._first_document[shard]]
        offset = position - int(self.starts[document]) - 1
        return DocumentPosition(document, int(entry["file"]), int(entry["number"]), offset)

    def document(self, number: int) -> np.ndarray:
        ends = self.starts[number + 1] if number + 1 < len(self.starts) else self.num_tokens - 1
        return self.read(int(self.starts[number]) + 1, int(ends))

    def _load_index(self, shard: int) -> np.ndarray:
        entry = self._entries[shard]["index"]
        path = self._folder / entry["file"]
        content = read_file(path)
        try:
            if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                raise ValueError("its digest differs")
            index = np.load(io.BytesIO(content))
            if index.dtype != INDEX_DTYPE or len(index) != self._entries[shard]["documents"]:
                raise ValueError("it is not an index of its shard")
        except ValueError as error:
            raise damaged(path, f"has changed since it was written: {error}") from None
        return index


@dataclass(frozen=True)
class TokenStore:
    """A prepared folder: its manifest, its tokenizer, its splits."""

    folder: Path
    manifest: dict[str, Any]
    tokenizer: Tokenizer
    train: TokenStream
    validation: TokenStream

    @property
    def digest(self) -> str:
        """SHA-256 of what determines the tokens: the tokenizer and every shard."""
        splits = {
            name: [(shard["file"], shard["tokens"], shard["sha256"]) for shard in split["shards"]]
            for name, split in self.manifest["splits"].items()
        }
        content = [self.manifest["format_version"], self.manifest["tokenizer"], splits]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def split(self, name: Split) -> TokenStream:
        return self.train if name == "train" else self.validation

    @functools.cached_property
    def files(self) -> list[dict[str, Any]]:
        return json.loads(read_file(self.folder / FILES))

    @property
    def report(self) -> dict[str, Any]:
        return json.loads(read_file(self.folder / REPORT))

    def check_format(self) -> None:
        version, made_with = self.manifest["format_version"], self.manifest["made_with"]
        defaults = {**json.loads(json.dumps(asdict(PrepareConfig()))), "validation_fraction": 0.1}
        arguments: list[str] = []
        for name, value in made_with.items():
            if name in defaults and value not in (defaults[name], None):
                values = value if isinstance(value, list) else [value]
                arguments += [f"--data.{name.replace('_', '-')}", *map(str, values)]
        require(
            version == FORMAT_VERSION,
            f"{self.folder}: format_version={version} must be {FORMAT_VERSION} for a new run: "
            "format 2 validates on the end of the text, and cuts a document in two. Prepare it "
            f"again: {tessera('prepare', *arguments, '--out')} NEW_FOLDER",
        )

    def describe(self) -> str:
        splits = {name: split for name, split in self.manifest["splits"].items() if split["tokens"]}
        parts = ", ".join(
            f"{split['tokens']:,} {name} tokens in {split['documents']:,} documents"
            for name, split in splits.items()
        )
        num_bytes = sum(split["bytes"] for split in splits.values())
        num_tokens = sum(split["tokens"] - split["documents"] - 1 for split in splits.values())
        unread = self.manifest["num_unread"]
        note = f"; {unread:,} records or files skipped, see ./tessera inspect" if unread else ""
        return (
            f"{self.manifest['source']}: {parts}, {num_bytes / max(num_tokens, 1):.2f} bytes a "
            f"token{note}"
        )


def open_store(
    folder: Path,
    verify: Literal["digests", "sizes"] = "digests",
    *,
    process: int = 0,
    num_processes: int = 1,
) -> TokenStore:
    """Opens a prepared folder, after checking its files against the manifest.

    Args:
        process: index of this process; each of num_processes checks its share of the files.

    Raises:
        IntegrityError: a file is missing, or differs from what the manifest says.
        Unavailable: a file cannot be read now.
    """
    content = read_file(folder / MANIFEST)
    try:
        manifest = json.loads(content)
        if manifest["format_version"] not in READABLE:
            raise ValueError(f"format_version={manifest['format_version']} must be in {READABLE}")
        share = manifest_entries(manifest)[process::num_processes]
        with ThreadPoolExecutor(_NUM_VERIFIERS) as threads:
            list(threads.map(lambda entry: _verify(folder, entry, verify), share))
        return TokenStore(
            folder,
            manifest,
            _open_tokenizer(folder / "tokenizer", manifest["tokenizer"]),
            TokenStream(folder, manifest, "train"),
            TokenStream(folder, manifest, "validation"),
        )
    except KeyError as error:
        problem = f"has no {error}"
    except (RuntimeError, ValueError, TypeError) as error:
        problem = f"does not match this folder: {error}"
    raise damaged(folder / MANIFEST, problem)


def stored_tokenizer(folder: Path) -> Tokenizer:
    require(
        is_prepared_folder(folder),
        f"data.tokenizer={folder} must be a .model, a tokenizer.json or a prepared folder, but has "
        f"no {MANIFEST}",
    )
    content = read_file(folder / MANIFEST)
    try:
        return _open_tokenizer(folder / "tokenizer", json.loads(content)["tokenizer"])
    except (KeyError, ValueError, TypeError) as error:
        problem = f"does not match this folder: {error}"
        raise damaged(folder / MANIFEST, problem) from None


def is_prepared_folder(folder: Path) -> bool:
    return with_retries((folder / MANIFEST).is_file, f"{folder / MANIFEST} cannot be read")


def is_of_earlier_format(folder: Path) -> bool:
    if not is_prepared_folder(folder):
        return False
    try:
        return json.loads(read_file(folder / MANIFEST))["format_version"] != FORMAT_VERSION
    except (KeyError, ValueError, TypeError):
        return True


def _open_tokenizer(path: Path, entry: dict[str, Any]) -> Tokenizer:
    content = read_file(path)
    if content_digest(entry["kind"], content, entry["special"]) != entry["sha256"]:
        raise ValueError(f"{path} is not the tokenizer of the manifest")
    tokenizer = load_tokenizer(entry["kind"], content, entry["special"])
    if (tokenizer.vocab_size, tokenizer.separator) != (entry["vocab_size"], entry["separator"]):
        raise ValueError(f"{path} has another vocabulary or separator")
    return tokenizer


def manifest_entries(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns {file, sha256, size} of all files; raises ValueError for a name outside."""
    shards = [shard for split in manifest["splits"].values() for shard in split["shards"]]
    entries = [*manifest["files"], *shards, *(shard["index"] for shard in shards)]
    for entry in entries:
        if Path(entry["file"]).name != entry["file"]:
            raise ValueError(f"{entry['file']!r} is not a file name")
    return entries


def _verify(folder: Path, entry: dict[str, Any], verify: Literal["digests", "sizes"]) -> None:
    path = folder / entry["file"]
    with_retries(lambda: check_file(path, entry, verify), f"{path} cannot be read")
