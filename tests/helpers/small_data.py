"""Small texts and prepared folders for the tests of data/, and how batches are compared."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np

from configs.data import DataConfig
from data.batch import Batch
from data.batches import TrainRows, train_batches
from data.mixture import Data
from data.open_data import open_data
from data.step_ranges import StepRange, step_range
from data.token_store import TokenStore

NUM_NUMBERED_ROWS = 91
"""Rows of one epoch of `numbered_data` at sequence_len 1."""


def data_config(path: Path | str | None = None, **changes: Any) -> DataConfig:
    settings = {"sequence_len": 8, "tokenizer": "bytes", **changes}
    return DataConfig(path=None if path is None else str(path), **settings)


def steps_of(
    config: DataConfig, *, batch_size: int, seed: int, passed_over: Iterable[int] = ()
) -> StepRange:
    """Returns the one range of a run that changes nothing, without some of its batches."""
    steps = step_range(config, batch_size=batch_size, seed=seed)
    return steps.without_rows((item * batch_size, (item + 1) * batch_size) for item in passed_over)


def batches_of(
    data: Data, config: DataConfig, *, rows: Sequence[int] | None = None, **steps: Any
) -> grain.MapDataset[Batch]:
    """Returns the batches of such a run."""
    return train_batches(data, config, steps_of(config, **steps), rows=rows)


def sequence_of(data: Data, config: DataConfig, *, batch_size: int, seed: int) -> TrainRows:
    """Returns the rows of such a run."""
    return TrainRows(data, config, steps_of(config, batch_size=batch_size, seed=seed))


def open_quietly(config: DataConfig, cache_dir: Path) -> Data:
    return open_data(config, cache_dir, lambda line: None)


def prepare_quietly(config: DataConfig, cache_dir: Path) -> TokenStore:
    """Returns the store of data.path."""
    return open_quietly(config, cache_dir).sources[0].store


def write_folder(folder: Path) -> list[str]:
    """Writes a nested folder of .txt and .jsonl files; returns its 1000 characters as documents."""
    documents = ["é first " * 40, "second\r\n" * 20, "x", "third 🙂 " * 25, "the end." * 38]
    documents.append("." * (1000 - sum(map(len, documents))))
    (folder / "nested").mkdir(parents=True)
    (folder / "a.txt").write_bytes(documents[0].encode())
    lines = [json.dumps({"text": text}) + "\n" for text in documents[1:4]]
    (folder / "b.jsonl").write_text(lines[0] + "\n" + "".join(lines[1:]))
    (folder / "ignored.pdf").write_text("not a text of ours")
    (folder / "nested" / "c.txt").write_bytes(documents[4].encode())
    (folder / "z.txt").write_bytes(documents[5].encode())
    return documents


def sides(
    documents: Sequence[str], fraction: float = 0.1, seed: int = 0
) -> tuple[list[str], list[str]]:
    """Returns the documents that train and those that validate, neither none, by their digests."""

    def rank(text: str) -> float:
        digest = hashlib.blake2b(text.encode(), digest_size=8, key=str(seed).encode()).digest()
        return int.from_bytes(digest, "little") / 2**64

    total = sum(map(len, documents))
    chosen = {x for x in documents if rank(x) < fraction and len(x) <= fraction * total}
    if not chosen:
        chosen = {min((x for x in documents if 2 * len(x) <= total), key=rank)}
    elif chosen == set(documents):
        chosen -= {max(documents, key=rank)}
    return [x for x in documents if x not in chosen], [x for x in documents if x in chosen]


def numbered_data(folder: Path) -> Data:
    """Returns data in which the tokens tell the rows apart: 90 characters train, 10 validate.

    Character i of the text has the id i. The separator is 100.
    """
    path = folder / "numbered.txt"
    path.write_text("".join(chr(0x4E00 + i) for i in range(100)), encoding="utf-8")
    return open_quietly(data_config(path, tokenizer="characters"), folder / "cache")


def row_numbers(batch: Batch[np.ndarray]) -> list[int]:
    """Returns which rows of `numbered_data` at sequence_len 1 are in a batch: row i predicts i."""
    targets_B = batch.targets_BT[:, 0]
    return np.where(targets_B == 100, NUM_NUMBERED_ROWS - 1, targets_B).tolist()


def item(batches: grain.MapDataset[Batch[np.ndarray]], step: int) -> Batch[np.ndarray]:
    """Returns a batch, which the type of a MapDataset allows to be missing."""
    batch = batches[step]
    assert batch is not None
    return batch


def assert_same_batch(found: Batch[np.ndarray], wanted: Batch[np.ndarray]) -> None:
    arrays = dict(jax.tree.leaves_with_path(wanted))
    assert [path for path, _ in jax.tree.leaves_with_path(found)] == list(arrays)
    for path, ours in jax.tree.leaves_with_path(found):
        np.testing.assert_array_equal(ours, arrays[path], err_msg=str(path))
        assert ours.dtype == arrays[path].dtype, path
