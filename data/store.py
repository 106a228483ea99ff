"""A prepared folder as a stream of tokens that can be read at any place."""

import functools
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np

from configs.errors import IntegrityError
from data.corpus import Split
from data.tokenizer import Tokenizer, load_tokenizer, tokenizer_digest

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
BLOCK_LEN = 8192
"""Tokens in a record of a shard."""
_NUM_CACHED_BLOCKS = 4096


class TokenStream:
    """The tokens of one split; reading costs the same wherever it starts."""

    def __init__(self, folder: Path, split: Split, counts: dict[str, Any]):
        self.num_tokens: int = counts["tokens"]
        self.num_documents: int = counts["documents"]
        self.num_bytes: int = counts["bytes"]
        self._dtype = np.dtype(counts["dtype"]).newbyteorder("<")
        self._blocks: Any = grain.sources.ArrayRecordDataSource(
            [str(folder / shard["file"]) for shard in counts["shards"]]
        )
        if len(self._blocks) != math.ceil(self.num_tokens / BLOCK_LEN):
            raise IntegrityError(
                f"{folder}: {len(self._blocks)} blocks of {split} tokens must be "
                f"{math.ceil(self.num_tokens / BLOCK_LEN)}; prepare the text again"
            )
        self._read_block = functools.lru_cache(_NUM_CACHED_BLOCKS)(self._decode_block)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns tokens start to stop of the stream as int32, fewer where the stream ends."""
        stop = min(stop, self.num_tokens)
        first, last = start // BLOCK_LEN, -(-stop // BLOCK_LEN)
        ids = np.concatenate([self._read_block(block) for block in range(first, last)])
        return ids[start - first * BLOCK_LEN : stop - first * BLOCK_LEN].astype(np.int32)

    def _decode_block(self, block: int) -> np.ndarray:
        return np.frombuffer(self._blocks[block], self._dtype)


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

    def describe(self) -> str:
        """Returns one line that says what is here."""
        parts = ", ".join(
            f"{split['tokens']:,} {name} tokens in {split['documents']:,} documents"
            for name, split in self.manifest["splits"].items()
        )
        left_out = self.manifest["num_files_left_out"]
        note = f"; {left_out} files left out, not UTF-8" if left_out else ""
        return f"{self.manifest['source']}: {parts}{note}"


def open_store(folder: Path) -> TokenStore:
    """Returns the store in a prepared folder, after checking every file against the manifest.

    Raises:
        IntegrityError: a file is missing, or differs from what the manifest says.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        version = manifest["format_version"]
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError):
        raise IntegrityError(f"{folder / MANIFEST} is not a manifest; prepare again") from None
    if version != FORMAT_VERSION:
        raise IntegrityError(
            f"{folder / MANIFEST}: format_version={version} must be {FORMAT_VERSION}; prepare again"
        )
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            _verify(folder / shard["file"], shard["sha256"])
    said = manifest["tokenizer"]
    tokenizer = load_tokenizer(said["kind"], (folder / "tokenizer").read_bytes())
    if tokenizer_digest(tokenizer) != said["sha256"]:
        raise IntegrityError(
            f"{folder / 'tokenizer'} is not the one of the manifest; prepare again"
        )
    return TokenStore(
        folder,
        manifest,
        tokenizer,
        TokenStream(folder, "train", manifest["splits"]["train"]),
        TokenStream(folder, "validation", manifest["splits"]["validation"]),
    )


def _verify(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise IntegrityError(f"{path} is missing, but its manifest names it; prepare again")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise IntegrityError(
            f"{path} has sha256 {found[:12]}, but its manifest says {sha256[:12]}; prepare again"
        )
