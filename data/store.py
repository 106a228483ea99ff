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
from data.files import digest_file
from data.tokenizer import Tokenizer, content_digest, load_tokenizer

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
BLOCK_LEN = 8192
"""Tokens in a record of a shard."""
_NUM_CACHED_BLOCKS = 4096


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns how a token is written in a shard."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class TokenStream:
    """The tokens of one split; reading costs the same wherever it starts."""

    def __init__(self, folder: Path, manifest: dict[str, Any], split: Split):
        counts = manifest["splits"][split]
        self.num_tokens: int = counts["tokens"]
        self.num_documents: int = counts["documents"]
        self.num_bytes: int = counts["bytes"]
        self._block_len: int = manifest["block_len"]
        self._dtype = token_dtype(manifest["tokenizer"]["vocab_size"])
        self._blocks: Any = grain.sources.ArrayRecordDataSource(
            [str(folder / shard["file"]) for shard in counts["shards"]]
        )
        in_shards = sum(shard["tokens"] for shard in counts["shards"])
        num_blocks = math.ceil(self.num_tokens / self._block_len)
        if in_shards != self.num_tokens or len(self._blocks) != num_blocks:
            raise ValueError(
                f"{split} has {self.num_tokens} tokens, so {num_blocks} blocks, but its shards "
                f"have {in_shards} in {len(self._blocks)}"
            )
        self._read_block = functools.lru_cache(_NUM_CACHED_BLOCKS)(self._decode_block)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns tokens start to stop of the stream as int32, fewer where the stream ends."""
        stop = min(stop, self.num_tokens)
        if start >= stop:
            return np.zeros(0, np.int32)
        first, last = start // self._block_len, -(-stop // self._block_len)
        ids = np.concatenate([self._read_block(block) for block in range(first, last)])
        origin = first * self._block_len
        return ids[start - origin : stop - origin].astype(np.int32)

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
        if manifest["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"format_version={manifest['format_version']} must be {FORMAT_VERSION}"
            )
        tokenizer = _open_tokenizer(folder / "tokenizer", manifest["tokenizer"])
        for split in manifest["splits"].values():
            for shard in split["shards"]:
                _verify(folder / shard["file"], shard["sha256"])
        return TokenStore(
            folder,
            manifest,
            tokenizer,
            TokenStream(folder, manifest, "train"),
            TokenStream(folder, manifest, "validation"),
        )
    except KeyError as error:
        problem = f"{folder / MANIFEST} has no {error}"
    except (OSError, ValueError, TypeError) as error:
        problem = f"{folder / MANIFEST} is not what this folder holds: {error}"
    raise IntegrityError(f"{problem}; remove {folder} and prepare the text again")


def _open_tokenizer(path: Path, said: dict[str, Any]) -> Tokenizer:
    content = path.read_bytes()
    if content_digest(said["kind"], content) != said["sha256"]:
        raise ValueError(f"{path} is not the tokenizer it was made with")
    tokenizer = load_tokenizer(said["kind"], content)
    if (tokenizer.vocab_size, tokenizer.separator) != (said["vocab_size"], said["separator"]):
        raise ValueError(f"{path} has another vocabulary or separator")
    return tokenizer


def _verify(path: Path, sha256: str) -> None:
    found = digest_file(path)
    if found != sha256:
        raise ValueError(f"{path} has sha256 {found[:12]}, the manifest says {sha256[:12]}")
