"""The batch of step N: a pure function of (seed, data manifest, skipped rows, N).

If settings that decide it changed during the run, it also depends on their values at step N.
It does not depend on the number of processes, on what was read before, or on a buffer. A process
reads only the rows that its devices hold, in global order.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import grain
import numpy as np

from configs.data import DataConfig
from data.batch import Batch
from data.mixture import ENDLESS, Data, MixtureSchedule
from data.objectives.batch_maker import BatchMaker, RowTokens, stream_len
from data.packing import EpochRows, Windows
from data.step_ranges import StepRange
from data.token_store import TokenStream
from data.tokenizers.tokenizer import Tokenizer

_VALIDATION_SEED = 0
_NUM_NEAR = 1000
"""The other row for next-sentence prediction is one of so many next rows, in shuffled order."""


class RowAddress(NamedTuple):
    """The source, epoch and row that a row of a batch comes from."""

    source: int
    """Index in the mixture."""
    epoch: int
    """Completed passes over the source before this one."""
    row: int
    """Row of an epoch of the source, as numbered by the packing."""


class TrainRows:
    """The endless sequence of training rows; a batch is the next train.batch_size of them.

    The rows of an epoch of a source are shuffled, each epoch in another order, and its epochs
    follow one another without a gap. Sources alternate by data.weights. The order is an
    interface: `tests/data/test_batches.py` compares it to a golden.
    """

    def __init__(self, data: Data, config: DataConfig, steps: StepRange):
        """Opens the sequence of a range of steps; the settings of the range override the config."""
        config = steps.data_config(config)
        length = stream_len(config)
        self.rows = [
            EpochRows(source.store.train, length, config.packing) for source in data.sources
        ]
        self.batch_maker = BatchMaker(config, data.tokenizer)
        self._seed = steps.seed
        num_rows = [len(rows) for rows in self.rows]
        self.schedule = MixtureSchedule(
            [(row, weights or num_rows) for row, weights in steps.phases], steps.taken
        )
        orders = [
            grain.MapDataset.range(num).seed(_seed_of(steps.seed, source)).shuffle().repeat()
            for source, num in enumerate(num_rows)
        ]
        self._orders = cast(list[Sequence[int]], orders)
        rows = [order.map(rows.read) for order, rows in zip(orders, self.rows, strict=True)]
        is_plain = len(rows) == 1 and not steps.taken
        self._sequence = (
            rows[0] if is_plain else grain.MapDataset.select_from_datasets(rows, self.schedule)
        )

    def read(self, index: int) -> RowTokens:
        key = (self._seed, index)
        others = ()
        if self.batch_maker.needs_other_row:
            distance = 1 + int(np.random.default_rng(key).integers(_NUM_NEAR))
            others = self._spans(index + distance)
        return RowTokens(self._spans(index), key, others)

    def _spans(self, index: int) -> list[np.ndarray]:
        return cast(list[np.ndarray], self._sequence[index])

    def address(self, index: int) -> RowAddress:
        source, nth = self.schedule[index]
        return RowAddress(source, nth // len(self.rows[source]), int(self._orders[source][nth]))


def _seed_of(seed: int, source: int) -> int:
    """Returns the seed of the order of a source; the first source has that of the run."""
    if source == 0:
        return seed
    return int(np.random.SeedSequence([seed, source]).generate_state(1)[0])


def train_batches(
    data: Data, config: DataConfig, steps: StepRange, *, rows: Sequence[int] | None = None
) -> grain.MapDataset[Batch]:
    """Returns an endless dataset whose item N is the batch of step N; any item costs the same.

    Args:
        steps: the range of steps; earlier items are meaningless.
        rows: rows of the global batch to read, in this order; None reads all.
    """
    wanted = range(steps.batch_size) if rows is None else rows
    sequence = TrainRows(data, config, steps)

    def read(step: int) -> Batch:
        return sequence.batch_maker.batch([sequence.read(steps.row(step, row)) for row in wanted])

    return grain.MapDataset.range(ENDLESS // steps.batch_size).map(read)


class Continuation(NamedTuple):
    """The step ranges of a resumed run, and what changed."""

    ranges: tuple[StepRange, ...]
    changed: dict[str, tuple]
    """{setting: (old, new)} of the changed settings that decide batches; empty if none changed."""
    num_unseen: int = 0
    """Approximate number of unread tokens of the epochs that end early."""

    def message(self) -> str:
        steps = self.ranges[-1]
        what = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in self.changed.items())
        if steps.first_row:
            return f"{what}: step {steps.first_step + 1} takes the next row, row {steps.first_row}"
        return (
            f"{what}: step {steps.first_step + 1} begins a new epoch of every source; about "
            f"{self.num_unseen:,} tokens of the previous epoch remain unread"
        )


def continue_ranges(
    ranges: tuple[StepRange, ...],
    new: StepRange,
    data: Data,
    config: DataConfig,
    left: StepRange | None = None,
) -> Continuation:
    """Returns the step ranges of a run that resumes, perhaps under changed settings.

    Args:
        new: the range that begins at the next step, as in a new run.
        left: the range that a rollback leaves; a new sequence begins as it did there.
    """
    if not ranges:
        return Continuation((new,), {})
    last = ranges[-1]
    changed = new.changes_from(last)
    if not changed:
        return Continuation(ranges, {})
    kept = tuple(steps for steps in ranges if steps.first_step < new.first_step)
    if _sequence(last, config) == _sequence(new, config):
        return Continuation((*kept, last.continued_by(new)), changed)
    rows = TrainRows(data, config, last)
    counts = rows.schedule.counts(last.row(new.first_step))
    epochs = [-(-count // len(own)) for count, own in zip(counts, rows.rows, strict=True)]
    num_rows = map(len, TrainRows(data, config, new).rows)
    taken = tuple(epoch * num for epoch, num in zip(epochs, num_rows, strict=True))
    if left is not None and _sequence(left, config) == _sequence(new, config):
        taken = left.taken
    num_unseen = sum(
        (own.stream.num_tokens - 1) * (epoch * len(own) - count) // len(own)
        for own, epoch, count in zip(rows.rows, epochs, counts, strict=True)
    )
    return Continuation((*kept, replace(new, taken=taken)), changed, num_unseen)


def is_one_sequence(one: StepRange, other: StepRange, config: DataConfig) -> bool:
    return one.taken == other.taken and _sequence(one, config) == _sequence(other, config)


def _sequence(steps: StepRange, config: DataConfig) -> tuple:
    own = steps.data_config(config)
    return steps.seed, stream_len(own), own.packing


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
    max_tokens: int | None = None,
) -> grain.MapDataset[Batch]:
    """Returns a split once, in order, its last batch filled with padding rows.

    Of a split of more than max_tokens it returns rows at even distances, at least one. Rows are
    disjoint windows, whatever the packing of the training rows. Random choices of an objective
    depend on the row alone, so that evaluations are comparable.
    """
    wanted = range(batch_size) if rows is None else rows
    windows = EpochRows(stream, stream_len(config), "concat")
    maker = BatchMaker(config, tokenizer)
    num_rows = num_validation_rows(stream, config, max_tokens)

    def read_row(nth: int) -> RowTokens:
        if nth >= num_rows:
            return RowTokens()
        number = nth * len(windows) // num_rows
        other = (number + len(windows) // 2) % len(windows)
        others = windows.read(other) if maker.needs_other_row else ()
        return RowTokens(windows.read(number), (_VALIDATION_SEED, number), others)

    def read(step: int) -> Batch:
        return maker.batch([read_row(step * batch_size + row) for row in wanted])

    return grain.MapDataset.range(-(-num_rows // batch_size)).map(read)


def num_validation_rows(stream: TokenStream, config: DataConfig, max_tokens: int | None) -> int:
    length = stream_len(config)
    num_rows = len(Windows(stream.num_tokens, length))
    return num_rows if max_tokens is None else min(num_rows, max(max_tokens // length, 1))
