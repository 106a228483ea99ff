"""Turns a corpus into a prepared folder: a tokenizer, shards of tokens, and a manifest.

The tokens of a split are one stream: each document is its separator and then its tokens, and a last
separator ends the stream. ArrayRecord shards hold that stream in blocks, so one preparation serves
any sequence length. The manifest is written last: a folder without one was not finished.
"""

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from configs.check import require
from configs.run import DataConfig
from data.corpus import SPLITS, Corpus, Document, Split, open_corpus
from data.files import digest_file, write_json
from data.store import BLOCK_LEN, FORMAT_VERSION, MANIFEST, TokenStore, open_store, token_dtype
from data.tokenizer import Tokenizer, make_tokenizer, tokenizer_digest

SHARD_BLOCKS = 8192  # 64 Mi tokens


def prepare(config: DataConfig, cache_dir: Path, say: Callable[[str], None]) -> TokenStore:
    """Returns the tokens of data.path, made now or found where an earlier run made them.

    A prepared folder is opened as it is. Text is prepared into cache_dir/DIGEST, a name made of the
    text and of the settings that matter; runs share it and take turns to make it.

    Args:
        say: is told in a line what happens.

    Raises:
        SettingsError: the text cannot be used, or the tokenizer does not suit it.
        IntegrityError: a prepared folder is not as its manifest says.
    """
    given = config.path and Path(config.path).expanduser()
    if given and (given / MANIFEST).is_file():
        return open_store(given)
    corpus = open_corpus(config)
    folder = cache_dir / _digest(corpus, config)
    with _locked(cache_dir, folder.name):
        if not (folder / MANIFEST).is_file():
            say(f"preparing {corpus.description}")
            _write(corpus, config, folder, say)
    store = open_store(folder)
    say(f"data: {store.describe()}")
    return store


def _digest(corpus: Corpus, config: DataConfig) -> str:
    tokenizer = config.tokenizer
    if tokenizer.endswith(".model") and Path(tokenizer).is_file():
        tokenizer = digest_file(Path(tokenizer))
    settings = {
        "format_version": FORMAT_VERSION,
        "text": corpus.digest(),
        "tokenizer": tokenizer,
        "vocab_size": config.vocab_size if tokenizer == "sentencepiece" else None,
        "text_field": config.text_field,
        "validation_fraction": config.validation_fraction,
        "invalid_utf8": config.invalid_utf8,
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(corpus: Corpus, config: DataConfig, folder: Path, say: Callable[[str], None]) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # what a killed preparation left
    folder.mkdir(parents=True)
    documents = list(corpus.documents())
    require(
        bool(documents),
        f"data.path={config.path} holds no text; give a file that is not empty",
    )
    tokenizer = make_tokenizer(config, (d.text for d in documents if _teaches(config, d)))
    say(f"tokenizer: {tokenizer.kind}, {tokenizer.vocab_size} tokens")
    (folder / "tokenizer").write_bytes(tokenizer.content())
    splits = {}
    for split in SPLITS:
        writer = _StreamWriter(folder, split, tokenizer)
        for document in documents:
            if document.split == split:
                writer.add(document)
        splits[split] = writer.close()
        require(
            splits[split]["tokens"] > 1,
            f"data.path={config.path} has too little text: none is left for the {split} split; "
            "give more text, or another --data.validation_fraction",
        )
    manifest = {
        "format_version": FORMAT_VERSION,
        "block_len": BLOCK_LEN,
        "source": corpus.description,
        "num_files_left_out": corpus.num_left_out(),
        "tokenizer": {
            "kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "separator": tokenizer.separator,
            "sha256": tokenizer_digest(tokenizer),
        },
        "splits": splits,
        "made_with": asdict(config),
    }
    write_json(folder / MANIFEST, manifest)


def _teaches(config: DataConfig, document: Document) -> bool:
    """Says whether a tokenizer learns from a document; an alphabet must know all of them."""
    return config.tokenizer == "characters" or document.split == "train"


@dataclass
class _StreamWriter:
    """Cuts the stream of a split into blocks and shards, and counts what went by."""

    folder: Path
    split: Split
    tokenizer: Tokenizer
    pending: list[np.ndarray] = field(default_factory=list)
    num_pending: int = 0
    counts: dict[str, int] = field(
        default_factory=lambda: {"tokens": 0, "documents": 0, "characters": 0, "bytes": 0}
    )
    shards: list[dict[str, Any]] = field(default_factory=list)
    writer: ArrayRecordWriter | None = None
    num_blocks: int = 0

    def add(self, document: Document) -> None:
        """Appends a document to the stream: its separator, then its tokens."""
        ids = self.tokenizer.encode(document.text)
        self.counts["documents"] += 1
        self.counts["characters"] += len(document.text)
        self.counts["bytes"] += len(document.text.encode("utf-8"))
        self._append(np.concatenate(([self.tokenizer.separator], ids)))

    def close(self) -> dict[str, Any]:
        """Ends the stream and returns what the manifest says of the split."""
        if self.counts["documents"]:
            self._append(np.array([self.tokenizer.separator]))
        if self.num_pending:
            self._write_block(np.concatenate(self.pending))
        self._end_shard()
        return {**self.counts, "shards": self.shards}

    def _append(self, ids: np.ndarray) -> None:
        self.counts["tokens"] += len(ids)
        self.pending.append(ids)
        self.num_pending += len(ids)
        if self.num_pending < BLOCK_LEN:
            return
        stream = np.concatenate(self.pending)
        num_whole = len(stream) // BLOCK_LEN * BLOCK_LEN
        for start in range(0, num_whole, BLOCK_LEN):
            self._write_block(stream[start : start + BLOCK_LEN])
        self.pending, self.num_pending = [stream[num_whole:]], len(stream) - num_whole

    def _write_block(self, ids: np.ndarray) -> None:
        writer = self.writer or self._begin_shard()
        writer.write(ids.astype(token_dtype(self.tokenizer.vocab_size)).tobytes())
        self.shards[-1]["tokens"] += len(ids)
        self.num_blocks += 1
        if self.num_blocks % SHARD_BLOCKS == 0:
            self._end_shard()

    def _begin_shard(self) -> ArrayRecordWriter:
        name = f"{self.split}-{len(self.shards):05d}.arrayrecord"
        self.shards.append({"file": name, "tokens": 0})
        self.writer = ArrayRecordWriter(str(self.folder / name), "group_size:1")
        return self.writer

    def _end_shard(self) -> None:
        if self.writer is None:
            return
        self.writer.close()
        self.writer = None
        path = self.folder / self.shards[-1]["file"]
        self.shards[-1] |= {"bytes": path.stat().st_size, "sha256": digest_file(path)}
