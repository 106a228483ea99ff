"""The batch of step N: a pure function of (seed, data manifest, passed-over list, N).

It does not depend on how many processes read it, on what was read before, or on a buffer. A process
asks for the rows that its devices hold, and gets just those, in global order.
"""

from collections.abc import Iterable, Sequence
from typing import cast

import grain
import numpy as np

from configs.run import DataConfig
from data.batch import Batch
from data.rows import Windows, make_row, padding_row
from data.store import TokenStore


def data_step(step: int, passed_over: Iterable[int]) -> int:
    """Returns which batch a step takes: the step-th of those that are not passed over."""
    for skipped in sorted(set(passed_over)):
        if skipped > step:
            break
        step += 1
    return step


def train_batches(
    store: TokenStore,
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    rows: Sequence[int] | None = None,
    passed_over: Sequence[int] = (),
) -> grain.MapDataset[Batch]:
    """Returns a dataset whose item N is the batch of step N, without end; any item costs the same.

    The rows of an epoch are shuffled, each epoch in another order, and epochs follow one another
    without a gap. The order is an interface: `tests/test_batches.py` holds it to a golden.

    Args:
        rows: which rows of the global batch to read, in this order; None reads all.
        passed_over: batches that are left out of the sequence.
    """
    wanted = range(batch_size) if rows is None else rows
    row_of = make_row(config, store.tokenizer.separator)
    windows = grain.MapDataset.source(Windows(store.train, config.sequence_len))
    epochs = cast(Sequence[np.ndarray], windows.seed(seed).shuffle().repeat())

    def read(step: int) -> Batch:
        first = data_step(step, passed_over) * batch_size
        return stack([row_of(epochs[first + row]) for row in wanted])

    return grain.MapDataset.range(2**62 // batch_size).map(read)


def validation_batches(
    store: TokenStore,
    config: DataConfig,
    *,
    batch_size: int,
    rows: Sequence[int] | None = None,
) -> grain.MapDataset[Batch]:
    """Returns the validation split once, in order, its last batch filled with padding rows."""
    wanted = range(batch_size) if rows is None else rows
    row_of = make_row(config, store.tokenizer.separator)
    windows = Windows(store.validation, config.sequence_len)

    def read(step: int) -> Batch:
        numbers = [step * batch_size + row for row in wanted]
        padding = padding_row(config.sequence_len)
        return stack([row_of(windows[n]) if n < len(windows) else padding for n in numbers])

    return grain.MapDataset.range(-(-len(windows) // batch_size)).map(read)


def stack(rows: Sequence[Batch]) -> Batch:
    """Returns one batch [B, T] of rows [T]."""
    return Batch(*(np.stack(field) for field in zip(*rows, strict=True)))
