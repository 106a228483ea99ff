"""The batch of step N: the order of a run, whoever reads it and however."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import grain
import jax
import numpy as np
import pytest
from small_data import (
    NUM_NUMBERED_ROWS,
    assert_same_batch,
    batches_of,
    data_config,
    item,
    numbered_data,
    row_numbers,
    steps_of,
)

from configs.data import DataConfig
from data.batch import Batch
from data.batches import batch_digest, validation_batches
from data.mixture import Data

ROW = data_config(sequence_len=1)  # one row is one token and its target


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Data:
    return numbered_data(tmp_path_factory.mktemp("numbered"))


def order(data: Data, seed: int, start: int, stop: int) -> list[int]:
    """Returns which rows stand at places start to stop of a run, epochs and batches forgotten."""
    batches = batches_of(data, ROW, batch_size=1, seed=seed)
    return [row for place in range(start, stop) for row in row_numbers(item(batches, place))]


# These numbers are an interface: a run that is continued, on whatever version of Grain, must see
# the rows that it would have seen. If they change, the order must be made here, not the golden.
# .venv/bin/python -c "import sys; sys.path[:0] = ['tests/helpers', '.']; import tempfile, pathlib;
#   import test_batches as t; store = t.numbered_data(pathlib.Path(tempfile.mkdtemp()));
#   print({key: t.order(data, key[0], key[1], key[1] + 16) for key in t.GOLDEN})"
GOLDEN: dict[tuple[int, int], list[int]] = {
    (0, 0): [82, 77, 31, 79, 9, 70, 28, 83, 66, 41, 71, 15, 23, 38, 5, 4],
    (0, 91): [24, 72, 1, 52, 41, 64, 3, 73, 88, 69, 6, 60, 54, 4, 67, 31],
    (0, 8_000_000): [87, 32, 19, 10, 74, 75, 44, 71, 79, 5, 73, 7, 27, 6, 43, 77],
    (1, 0): [65, 46, 56, 73, 72, 23, 66, 2, 0, 22, 6, 33, 27, 60, 51, 40],
    (1, 91): [16, 70, 52, 82, 34, 28, 12, 14, 68, 77, 90, 55, 59, 48, 81, 18],
}
"""By (seed, first place)."""


@pytest.mark.parametrize(("seed", "start"), GOLDEN)
def test_the_order_of_a_run_is_the_golden_one(data, seed, start):
    assert order(data, seed, start, start + 16) == GOLDEN[seed, start]


def test_each_epoch_is_every_row_once_in_another_order(data):
    epochs = [order(data, 0, 91 * epoch, 91 * (epoch + 1)) for epoch in (0, 1, 2, 87_912)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(NUM_NUMBERED_ROWS))] * 4
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_seeds_share_no_epoch(data):
    epochs = [
        tuple(order(data, seed, 91 * epoch, 91 * (epoch + 1)))
        for seed in (0, 1, 2, 2**32 - 1)
        for epoch in range(3)
    ]
    assert len(set(epochs)) == 12


@pytest.mark.parametrize("batch_size", [1, 7, 8, 91, 100, 200])
def test_batches_follow_one_another_without_a_gap(data, batch_size):
    batches = batches_of(data, ROW, batch_size=batch_size, seed=0)
    num_batches = -(-300 // batch_size)
    rows = [row for step in range(num_batches) for row in row_numbers(item(batches, step))]
    assert rows == order(data, 0, 0, num_batches * batch_size)


def test_a_row_of_a_batch_is_the_window_it_stands_for(data):
    config = data_config(sequence_len=8)
    batch = item(batches_of(data, config, batch_size=12, seed=3), 0)
    stream = [100, *range(90), 100, *[0] * 8]
    starts = [stream.index(target, 1) - 1 for target in batch.targets_BT[:, 0]]
    assert sorted(starts) == list(range(0, 91, 8))
    for start, tokens, targets in zip(starts, batch.tokens_BT, batch.targets_BT, strict=True):
        num_targets = min(8, 91 - start)
        assert tokens[:num_targets].tolist() == stream[start : start + num_targets]
        assert targets.tolist() == stream[start + 1 : start + 9]


def test_a_batch_does_not_depend_on_what_was_read_before(data):
    config = data_config(sequence_len=4)
    batches = batches_of(data, config, batch_size=5, seed=0)
    in_order = [item(batches, step) for step in range(12)]
    for step in (7, 0, 11, 7, 3):
        assert_same_batch(item(batches, step), in_order[step])
        fresh = batches_of(data, config, batch_size=5, seed=0)
        assert_same_batch(item(fresh, step), in_order[step])


def test_a_batch_does_not_depend_on_how_it_is_read(data):
    batches = batches_of(data, data_config(sequence_len=4), batch_size=5, seed=0)
    indexed = [item(batches, step) for step in range(20, 40)]
    part = batches[20:40]
    threads = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)
    alone = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    for read in (
        [item(part, i) for i in range(20)],
        list(part.to_iter_dataset(threads)),
        list(part.to_iter_dataset(alone)),
        list(part),
    ):
        for found, wanted in zip(read, indexed, strict=True):
            assert_same_batch(found, wanted)


READ = """
import json, os, sys
from pathlib import Path
import numpy as np
from configs.data import DataConfig
import os
sys.path.append(os.path.join(os.environ['PYTHONPATH'], 'tests/helpers'))
from small_data import batches_of
from data.mixture import Data, Source
from data.token_store import open_store

def read(rows, out):
    config = DataConfig(sequence_len=4, tokenizer="characters")
    data = Data((Source("numbered", open_store(Path(sys.argv[1]))),))
    batches = batches_of(data, config, batch_size=8, seed=5, rows=rows)
    np.savez(out, *(np.stack(field) for field in zip(*(batches[step] for step in range(20)))))

for job in json.loads(sys.argv[2]):
    if os.fork() == 0:  # a process each, and the imports paid once
        read(*job)
        os._exit(0)
sys.exit(any([os.wait()[1] for _ in json.loads(sys.argv[2])]))
"""
READERS: dict[int, list[list[int]]] = {
    1: [[0, 1, 2, 3, 4, 5, 6, 7]],
    2: [[0, 1, 2, 3], [4, 5, 6, 7]],
    4: [[0, 4], [1, 5], [2, 6], [3, 7]],  # as a mesh may have it
}


def test_any_number_of_processes_reads_the_same_batches(data, tmp_path, environment):
    jobs = [
        (rows, str(tmp_path / f"{num_readers}-{reader}.npz"))
        for num_readers, parts in READERS.items()
        for reader, rows in enumerate(parts)
    ]
    command = [sys.executable, "-c", READ, data.sources[0].store.folder, json.dumps(jobs)]
    subprocess.run(command, env=environment, check=True, timeout=100)
    digests = {
        num_readers: digest_of_global_batches(tmp_path, num_readers) for num_readers in READERS
    }
    here = batches_of(data, data_config(sequence_len=4), batch_size=8, seed=5)
    assert set(digests.values()) == {digest([item(here, step) for step in range(20)])}


def digest_of_global_batches(folder: Path, num_readers: int) -> str:
    """Puts what the processes read together, each row in its place."""
    fields = [np.full((20, 8, 4), -1, d) for d in ("<i4", "<i4", "<f4", "<i4", "<i4")]
    for reader, rows in enumerate(READERS[num_readers]):
        with np.load(folder / f"{num_readers}-{reader}.npz") as read:
            for i, field in enumerate(fields):
                field[:, rows] = read[f"arr_{i}"]
    return digest([Batch(*(field[step] for field in fields)) for step in range(20)])


def digest(batches: list[Batch[np.ndarray]]) -> str:
    return hashlib.sha256("".join(map(batch_digest, batches)).encode()).hexdigest()


@pytest.mark.parametrize("rows", [[0], [5, 2], [7, 0, 3], list(range(8))])
def test_rows_are_those_of_the_whole_batch_in_the_order_asked_for(data, rows):
    config = data_config(sequence_len=4)
    whole = batches_of(data, config, batch_size=8, seed=0)
    part = batches_of(data, config, batch_size=8, seed=0, rows=rows)
    for step in range(6):
        assert_same_batch(item(part, step), item(whole, step).map(lambda field: field[rows]))


def test_steps_take_the_next_rows_that_are_not_skipped(rng):
    plain = steps_of(ROW, batch_size=3, seed=0)
    for _ in range(50):
        rows = rng.permutation(120)[: rng.integers(0, 90)].tolist()
        left = [row for row in range(300) if row not in rows]
        steps = plain.without_rows((row, row + 1) for row in rows)
        assert [steps.row(step, i) for step in range(60) for i in range(3)] == left[:180]


def test_rows_that_are_skipped_twice_are_skipped_once():
    steps = (
        steps_of(ROW, batch_size=1, seed=0).without_rows([(3, 5)]).without_rows([(4, 6), (3, 4)])
    )
    assert steps.skipped == ((3, 6),)
    assert [steps.row(step) for step in range(5)] == [0, 1, 2, 6, 7]


def test_without_some_batches_the_others_follow_in_order(data):
    config = data_config(sequence_len=4)
    whole = batches_of(data, config, batch_size=5, seed=0)
    others = batches_of(data, config, batch_size=5, seed=0, passed_over=[9, 2, 3])
    for step, batch in enumerate([0, 1, 4, 5, 6, 7, 8, 10, 11]):
        assert_same_batch(item(others, step), item(whole, batch))


@pytest.mark.parametrize("batch_size", [8, 91])
def test_step_a_million_is_where_it_must_be(data, batch_size):
    batch = item(batches_of(data, ROW, batch_size=batch_size, seed=0), 10**6)
    epoch, place = divmod(10**6 * batch_size, NUM_NUMBERED_ROWS)
    two_epochs = order(data, 0, epoch * NUM_NUMBERED_ROWS, (epoch + 2) * NUM_NUMBERED_ROWS)
    assert row_numbers(batch) == two_epochs[place : place + batch_size]


def validation(
    data: Data, config: DataConfig, batch_size: int, rows: list[int] | None = None
) -> grain.MapDataset[Batch[np.ndarray]]:
    stream = data.validation_sets()["numbered"]
    return validation_batches(
        stream, config, batch_size=batch_size, tokenizer=data.tokenizer, rows=rows
    )


@pytest.mark.parametrize(("sequence_len", "batch_size"), [(1, 4), (2, 4), (4, 3), (3, 1), (20, 8)])
def test_validation_covers_each_target_exactly_once_in_order(data, sequence_len, batch_size):
    config = data_config(sequence_len=sequence_len)
    batches = list(validation(data, config, batch_size))
    whole = jax.tree.map(lambda *fields: np.concatenate(fields), *batches)
    counted = whole.weights_BT > 0
    assert whole.targets_BT[counted].tolist() == [*range(90, 100), 100]
    assert whole.tokens_BT[counted].tolist() == [100, *range(90, 100)]
    num_rows = -(-11 // sequence_len)
    assert len(batches) == -(-num_rows // batch_size)
    assert whole.weights_BT.shape == (len(batches) * batch_size, sequence_len)
    assert counted[:num_rows].any(axis=1).all()
    assert not counted[num_rows:].any()
    assert not whole.segments_BT[num_rows:].any()


def test_validation_rows_are_those_of_the_whole_batch(data):
    config = data_config(sequence_len=2)
    whole = validation(data, config, 4)
    part = validation(data, config, 4, [3, 1])
    assert len(part) == len(whole) == 2
    for step in range(2):
        assert_same_batch(item(part, step), item(whole, step).map(lambda field: field[[3, 1]]))
