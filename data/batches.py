"""The batch of step N: a pure function of (seed, data manifest, skipped rows, N).

Where the settings that decide it changed on the way, so is it of what they were from which step on.
It does not depend on how many processes read it, on what was read before, or on a buffer. A process
asks for the rows that its devices hold, and gets just those, in global order.
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
from data.rows import EpochRows, Windows
from data.step_ranges import StepRange
from data.token_store import TokenStream
from data.tokenizers.tokenizer import Tokenizer

_VALIDATION_SEED = 0
_NUM_NEAR = 1000
"""Where an objective wants another row it is one of so many next ones, in shuffled order."""


class RowAddress(NamedTuple):
    """Where a row of a batch comes from."""

    source: int
    """Index in the mixture."""
    epoch: int
    """How often the source was gone through before, from 0."""
    row: int
    """Row of an epoch of the source, which the packing numbers."""


class TrainRows:
    """The endless sequence of training rows, of which a batch is the next train.batch_size.

    The rows of an epoch of a source are shuffled, each epoch in another order, and its epochs
    follow one another without a gap. Sources take turns by data.weights. The order is an
    interface: `tests/test_batches.py` holds it to a golden.
    """

    def __init__(self, data: Data, config: DataConfig, steps: StepRange):
        """Finds the sequence that a range of steps reads, under its settings, not those given."""
        config = steps.data_config(config)
        length = stream_len(config)
        self.rows = [
            EpochRows(source.store.train, length, config.packing) for source in data.sources
        ]
        self.objective = BatchMaker(config, data.tokenizer)
        """What becomes of rows."""
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

    def read(self, place: int) -> RowTokens:
        """Returns the row at a place in the sequence."""
        key = (self._seed, place)
        others = ()
        if self.objective.needs_other_row:
            distance = 1 + int(np.random.default_rng(key).integers(_NUM_NEAR))
            others = self._spans(place + distance)
        return RowTokens(self._spans(place), key, others)

    def _spans(self, place: int) -> list[np.ndarray]:
        return cast(list[np.ndarray], self._sequence[place])

    def address(self, place: int) -> RowAddress:
        """Returns where that row comes from."""
        source, nth = self.schedule[place]
        return RowAddress(source, nth // len(self.rows[source]), int(self._orders[source][nth]))


def _seed_of(seed: int, source: int) -> int:
    """Returns the seed of a source's order; the first has that of the run."""
    if source == 0:
        return seed
    return int(np.random.SeedSequence([seed, source]).generate_state(1)[0])


def train_batches(
    data: Data, config: DataConfig, steps: StepRange, *, rows: Sequence[int] | None = None
) -> grain.MapDataset[Batch]:
    """Returns a dataset whose item N is the batch of step N, without end; any item costs the same.

    Args:
        steps: the range of steps; items before it are none.
        rows: which rows of the global batch to read, in this order; None reads all.
    """
    wanted = range(steps.batch_size) if rows is None else rows
    sequence = TrainRows(data, config, steps)

    def read(step: int) -> Batch:
        return sequence.objective.batch([sequence.read(steps.row(step, row)) for row in wanted])

    return grain.MapDataset.range(ENDLESS // steps.batch_size).map(read)


class Continuation(NamedTuple):
    """How the batches of a run go on after a step."""

    ranges: tuple[StepRange, ...]
    changed: dict[str, tuple]
    """{setting: (old, new)} of those that decide batches and were changed; none if nothing is."""
    num_unseen: int = 0
    """About how many tokens of the epochs that were broken off no step has seen."""

    def message(self) -> str:
        """Returns what a person should know of a change."""
        steps = self.ranges[-1]
        what = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in self.changed.items())
        if steps.first_row:
            return f"{what}: step {steps.first_step + 1} takes the next row, row {steps.first_row}"
        return (
            f"{what}: step {steps.first_step + 1} begins a fresh epoch of every source; about "
            f"{self.num_unseen:,} tokens of the epoch before were not seen"
        )


def continue_ranges(
    ranges: tuple[StepRange, ...],
    new: StepRange,
    data: Data,
    config: DataConfig,
    left: StepRange | None = None,
) -> Continuation:
    """Returns the ranges of a run that goes on under settings that may be others.

    Args:
        new: the range that would begin with the next step, were it the first one.
        left: the range that a rollback comes from; where a sequence begins anew it begins as there.
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
    """Says whether two ranges number the same rows in the same way."""
    return one.taken == other.taken and _sequence(one, config) == _sequence(other, config)


def _sequence(steps: StepRange, config: DataConfig) -> tuple:
    """Returns what decides the rows that the sources of a range have, and their orders."""
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

    Of a split of more than max_tokens it returns rows that are spread evenly over it, at least one.

    Its rows are disjoint windows, whatever the packing of the training rows. Where an objective
    draws by chance it depends on the row alone, so that evaluations compare.
    """
    wanted = range(batch_size) if rows is None else rows
    windows = EpochRows(stream, stream_len(config), "concat")
    objective = BatchMaker(config, tokenizer)

    num_rows = num_validation_rows(stream, config, max_tokens)

    def read_row(nth: int) -> RowTokens:
        if nth >= num_rows:
            return RowTokens()
        number = nth * len(windows) // num_rows
        other = (number + len(windows) // 2) % len(windows)
        others = windows.read(other) if objective.needs_other_row else ()
        return RowTokens(windows.read(number), (_VALIDATION_SEED, number), others)

    def read(step: int) -> Batch:
        return objective.batch([read_row(step * batch_size + row) for row in wanted])

    return grain.MapDataset.range(-(-num_rows // batch_size)).map(read)


def num_validation_rows(stream: TokenStream, config: DataConfig, max_tokens: int | None) -> int:
    """Returns how many rows of a split are evaluated."""
    length = stream_len(config)
    num_rows = len(Windows(stream.num_tokens, length))
    return num_rows if max_tokens is None else min(num_rows, max(max_tokens // length, 1))
