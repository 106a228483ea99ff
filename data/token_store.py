"""A prepared folder as a stream of tokens that can be read at any place."""

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

from configs.check import require
from configs.command_line import tessera
from configs.data import PrepareConfig
from data.atomic_files import MANIFEST, retried
from data.block_reader import Shard, check_file, damaged, read_file
from data.prepare.shards import FORMAT_VERSION, INDEX_DTYPE, token_dtype
from data.prepare.text.corpus import Split
from data.tokenizers.tokenizer import Tokenizer, content_digest, load_tokenizer

FILES, REPORT = "files.json", "report.json"
READABLE = (2, FORMAT_VERSION)
"""Formats of prepared folders that can be read; a new run takes none but the last."""
_NUM_CACHED_INDICES = 16
_NUM_VERIFIERS = 8  # threads that read files to check their digests


@dataclass(frozen=True)
class Place:
    """Where in the corpus a token of the stream comes from."""

    document: int
    """Number of the document in its split, from 0."""
    file: int
    """Index in files.json."""
    number: int
    """Line or row of the file, from 0."""
    offset: int
    """Tokens after the separator that begins the document; -1 is the separator itself."""


class TokenStream:
    """The tokens of one split; reading costs the same wherever it starts.

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
                f"{split} has {self.num_tokens} tokens, but its shards have {sum(tokens)}"
            )
        # Lists, for a place is looked up several times a row, and `bisect` is quicker than numpy.
        self._first_token, self._first_document = (
            [0, *itertools.accumulate(counts)] for counts in (tokens, documents)
        )
        self._shards = [
            Shard(folder, entry, self._block_len, self._dtype) for entry in self._entries
        ]
        self._index = functools.lru_cache(_NUM_CACHED_INDICES)(self._load_index)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns tokens start to stop of the stream, unsigned, fewer where the stream ends.

        Raises:
            IntegrityError: a shard is not as it was written.
            Unavailable: a shard cannot be read, which may pass.
        """
        stop = min(stop, self.num_tokens)
        pieces = []
        while start < min(stop, self.num_tokens - 1):
            shard = bisect_right(self._first_token, start) - 1
            block, offset = divmod(start - self._first_token[shard], self._block_len)
            ids = self._shards[shard].block(block)
            pieces.append(ids[offset : offset + stop - start])
            start += len(pieces[-1])
        if start < stop:
            pieces.append(np.array([self._separator], self._dtype))
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.zeros(0, self._dtype)

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """Where the documents begin in the stream, ascending, int64."""
        starts = [
            self._index(shard)["start"].astype(np.int64) + self._first_token[shard]
            for shard in range(len(self._shards))
        ]
        return np.concatenate(starts) if starts else np.zeros(0, np.int64)

    def place(self, position: int) -> Place:
        """Returns which document a token belongs to; the separator that ends the stream, none."""
        document = int(np.searchsorted(self.starts, position, "right")) - 1
        shard = bisect_right(self._first_document, document) - 1
        entry = self._index(shard)[document - self._first_document[shard]]
        offset = position - int(self.starts[document]) - 1
        return Place(document, int(entry["file"]), int(entry["number"]), offset)

    def document(self, number: int) -> np.ndarray:
        """Returns the tokens of a document, without its separator."""
        ends = self.starts[number + 1] if number + 1 < len(self.starts) else self.num_tokens - 1
        return self.read(int(self.starts[number]) + 1, int(ends))

    def _load_index(self, shard: int) -> np.ndarray:
        said = self._entries[shard]["index"]
        path = self._folder / said["file"]
        content = read_file(path)
        try:
            if hashlib.sha256(content).hexdigest() != said["sha256"]:
                raise ValueError("its digest is another")
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
        """Returns a split by its name."""
        return self.train if name == "train" else self.validation

    @functools.cached_property
    def files(self) -> list[dict[str, Any]]:
        """Name and kind of each file of the corpus."""
        return json.loads(read_file(self.folder / FILES))

    @property
    def report(self) -> dict[str, Any]:
        """What was left out or changed on the way, and why."""
        return json.loads(read_file(self.folder / REPORT))

    def check_format(self) -> None:
        """Raises SettingsError unless it is of the format of today, as a new run needs it."""
        version, made_with = self.manifest["format_version"], self.manifest["made_with"]
        usual = {**json.loads(json.dumps(asdict(PrepareConfig()))), "validation_fraction": 0.1}
        words = [
            word
            for name, value in made_with.items()
            if name in usual and value not in (usual[name], None)
            for word in (
                f"--data.{name.replace('_', '-')}",
                *map(str, value if isinstance(value, list) else [value]),
            )
        ]
        require(
            version == FORMAT_VERSION,
            f"{self.folder}: format_version={version} must be {FORMAT_VERSION} for a new run: "
            "before, the last part of a text validated, and a document was cut in two. Prepare it "
            f"again: {tessera('prepare', *words, '--out')} NEW_FOLDER",
        )

    def describe(self) -> str:
        """Returns one line that says what is here."""
        splits = {name: split for name, split in self.manifest["splits"].items() if split["tokens"]}
        parts = ", ".join(
            f"{split['tokens']:,} {name} tokens in {split['documents']:,} documents"
            for name, split in splits.items()
        )
        num_bytes = sum(split["bytes"] for split in splits.values())
        num_tokens = sum(split["tokens"] - split["documents"] - 1 for split in splits.values())
        unread = self.manifest["num_unread"]
        note = f"; {unread:,} records or files left out, see ./tessera inspect" if unread else ""
        return (
            f"{self.manifest['source']}: {parts}, {num_bytes / max(num_tokens, 1):.2f} bytes a "
            f"token{note}"
        )


def open_store(
    folder: Path,
    verify: Literal["digests", "sizes"] = "digests",
    *,
    part: int = 0,
    num_parts: int = 1,
) -> TokenStore:
    """Returns the store in a prepared folder, after checking its files against the manifest.

    Args:
        part: of several parts of the files only this one is looked at.

    Raises:
        IntegrityError: a file is missing, or differs from what the manifest says.
        Unavailable: a file cannot be read, which may pass.
    """
    content = read_file(folder / MANIFEST)
    try:
        manifest = json.loads(content)
        if manifest["format_version"] not in READABLE:
            raise ValueError(f"format_version={manifest['format_version']} must be in {READABLE}")
        _verify(folder, manifest_entries(manifest)[part::num_parts], verify)
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
        problem = f"is not what this folder holds: {error}"
    raise damaged(folder / MANIFEST, problem)


def stored_tokenizer(folder: Path) -> Tokenizer:
    """Returns the tokenizer of a prepared folder, without a look at its tokens.

    Raises:
        SettingsError: it is no prepared folder.
        IntegrityError: the tokenizer is not as the manifest says.
        Unavailable: it cannot be read, which may pass.
    """
    require(
        is_prepared_folder(folder),
        f"data.tokenizer={folder} must be a .model, a tokenizer.json or a prepared folder, but has "
        f"no {MANIFEST}",
    )
    content = read_file(folder / MANIFEST)
    try:
        return _open_tokenizer(folder / "tokenizer", json.loads(content)["tokenizer"])
    except (KeyError, ValueError, TypeError) as error:
        problem = f"is not what this folder holds: {error}"
        raise damaged(folder / MANIFEST, problem) from None


def is_prepared_folder(folder: Path) -> bool:
    """Says whether a folder has been prepared; Unavailable if that cannot be seen now."""
    return retried((folder / MANIFEST).is_file, f"{folder / MANIFEST} cannot be looked at")


def is_of_earlier_format(folder: Path) -> bool:
    """Says whether a folder was prepared by an earlier version (or has a manifest that is torn)."""
    if not is_prepared_folder(folder):
        return False
    try:
        return json.loads(read_file(folder / MANIFEST))["format_version"] != FORMAT_VERSION
    except (KeyError, ValueError, TypeError):
        return True


def _open_tokenizer(path: Path, said: dict[str, Any]) -> Tokenizer:
    content = read_file(path)
    if content_digest(said["kind"], content, said["special"]) != said["sha256"]:
        raise ValueError(f"{path} is not the tokenizer it was made with")
    tokenizer = load_tokenizer(said["kind"], content, said["special"])
    if (tokenizer.vocab_size, tokenizer.separator) != (said["vocab_size"], said["separator"]):
        raise ValueError(f"{path} has another vocabulary or separator")
    return tokenizer


def manifest_entries(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the entries {file, sha256, size} of all files that belong to a prepared folder.

    Raises:
        ValueError: a name leads out of the folder.
    """
    shards = [shard for split in manifest["splits"].values() for shard in split["shards"]]
    entries = [*manifest["files"], *shards, *(shard["index"] for shard in shards)]
    for entry in entries:
        if Path(entry["file"]).name != entry["file"]:
            raise ValueError(f"{entry['file']!r} is no name of a file in it")
    return entries


def _verify(
    folder: Path, entries: list[dict[str, Any]], verify: Literal["digests", "sizes"]
) -> None:
    def check(entry: dict[str, Any]) -> None:
        path = folder / entry["file"]
        retried(lambda: check_file(path, entry, verify), f"{path} cannot be read")

    with ThreadPoolExecutor(_NUM_VERIFIERS) as threads:
        list(threads.map(check, entries))
