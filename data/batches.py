"""The batch of step N: a pure function of (seed, data manifest, passed-over list, N).

It does not depend on how many processes read it, on what was read before, or on a buffer. A process
asks for the rows that its devices hold, and gets just those, in global order.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import grain
import numpy as np

from configs.data import DataConfig
from data.batch import Batch
from data.mixture import ENDLESS, Data, make_schedule
from data.objectives.objective import ObjectiveMaker, Row, stream_len
from data.rows import Rows
from data.store import TokenStream
from data.tokenizers.tokenizer import Tokenizer

_VALIDATION_SEED = 0
_NUM_NEAR = 1000
"""Where an objective wants another row it is one of so many next ones, in shuffled order."""


class Address(NamedTuple):
    """Where a row of a batch comes from."""

    source: int
    """Index in the mixture."""
    epoch: int
    """How often the source was gone through before, from 0."""
    row: int
    """Row of an epoch of the source, which the packing numbers."""


def data_step(step: int, passed_over: Iterable[int]) -> int:
    """Returns which batch a step takes: the step-th of those that are not passed over."""
    for skipped in sorted(set(passed_over)):
        if skipped > step:
            break
        step += 1
    return step


class TrainRows:
    """The endless sequence of training rows, of which a batch is the next train.batch_size.

    The rows of an epoch of a source are shuffled, each epoch in another order, and its epochs
    follow one another without a gap. Sources take turns by data.weights. The order is an
    interface: `tests/test_batches.py` holds it to a golden.
    """

    def __init__(self, data: Data, config: DataConfig, *, batch_size: int, seed: int):
        length = stream_len(config)
        self.rows = [Rows(source.store.train, length, config.packing) for source in data.sources]
        self.objective = ObjectiveMaker(config, data.tokenizer)
        """What becomes of rows."""
        self._seed = seed
        num_rows = [len(rows) for rows in self.rows]
        self.schedule = make_schedule(config, num_rows, batch_size)
        orders = [
            grain.MapDataset.range(num).seed(_seed_of(seed, source)).shuffle().repeat()
            for source, num in enumerate(num_rows)
        ]
        rows = [order.map(rows.read) for order, rows in zip(orders, self.rows, strict=True)]
        self._orders = cast(list[Sequence[int]], orders)
        self._sequence = (
            grain.MapDataset.select_from_datasets(rows, self.schedule) if len(rows) > 1 else rows[0]
        )

    def read(self, place: int) -> Row:
        """Returns the row at a place in the sequence."""
        key = (self._seed, place)
        others = ()
        if self.objective.needs_others:
            distance = 1 + int(np.random.default_rng(key).integers(_NUM_NEAR))
            others = self._spans(place + distance)
        return Row(self._spans(place), key, others)

    def _spans(self, place: int) -> list[np.ndarray]:
        return cast(list[np.ndarray], self._sequence[place])

    def address(self, place: int) -> Address:
        """Returns where that row comes from."""
        source, nth = self.schedule[place]
        return Address(source, nth // len(self.rows[source]), int(self._orders[source][nth]))


def _seed_of(seed: int, source: int) -> int:
    """Returns the seed of a source's order; the first has that of the run."""
    if source == 0:
        return seed
    return int(np.random.SeedSequence([seed, source]).generate_state(1)[0])


def train_batches(
    data: Data,
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    rows: Sequence[int] | None = None,
    passed_over: Sequence[int] = (),
) -> grain.MapDataset[Batch]:
    """Returns a dataset whose item N is the batch of step N, without end; any item costs the same.

    Args:
        rows: which rows of the global batch to read, in this order; None reads all.
        passed_over: batches that are left out of the sequence.
    """
    wanted = range(batch_size) if rows is None else rows
    sequence = TrainRows(data, config, batch_size=batch_size, seed=seed)

    def read(step: int) -> Batch:
        first = data_step(step, passed_over) * batch_size
        return sequence.objective.batch([sequence.read(first + row) for row in wanted])

    return grain.MapDataset.range(ENDLESS // batch_size).map(read)


def batch_digest(batch: Batch[np.ndarray]) -> str:
    """Returns the SHA-256 of all arrays of a batch, names, shapes and dtypes included."""
    total = hashlib.sha256()
    arrays = batch._replace(encoder=None)._asdict()
    arrays |= {} if batch.encoder is None else batch.encoder._asdict()
    for name, array in arrays.items():
        if array is None:
            continue
        total.update(f"{name} {array.shape} {array.dtype.str}\0".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def validation_batches(
    stream: TokenStream,
    config: DataConfig,
    *,
    batch_size: int,
    tokenizer: Tokenizer,
    rows: Sequence[int] | None = None,
) -> grain.MapDataset[Batch]:
    """Returns a split once, in order, its last batch filled with padding rows.

    Its rows are disjoint windows, whatever the packing of the training rows. Where an objective
    draws by chance it depends on the row alone, so that evaluations compare.
    """
    wanted = range(batch_size) if rows is None else rows
    windows = Rows(stream, stream_len(config), "concat")
    objective = ObjectiveMaker(config, tokenizer)

    def read_row(number: int) -> Row:
        if number >= len(windows):
            return Row()
        other = (number + len(windows) // 2) % len(windows)
        others = windows.read(other) if objective.needs_others else ()
        return Row(windows.read(number), (_VALIDATION_SEED, number), others)

    def read(step: int) -> Batch:
        return objective.batch([read_row(step * batch_size + row) for row in wanted])

    return grain.MapDataset.range(-(-len(windows) // batch_size)).map(read)
