"""Which rows each step of a run takes, also where its settings have changed on the way.

Rows come in one endless sequence. The steps of a run are split into ranges, within each of which
nothing changes that decides what a batch is. Another batch size goes on with the next row; another
length of a row, packing or seed begins a new sequence, with a fresh epoch of every source.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from configs.data import DataConfig
from configs.run import RunConfig
from configs.settings import decides_batches, differences

Phase = tuple[int, tuple[float, ...]]
"""(first row in the sequence, weights of the sources); no weights are those of their sizes."""
_OF_PHASES = ("data.weights", "data.phases")


@dataclass(frozen=True, kw_only=True)
class StepRange:
    """Steps that take their batches in one way."""

    first_step: int = 0
    """Steps of the run before it."""
    first_row: int = 0
    """Where in the sequence its first row is."""
    taken: tuple[int, ...] = ()
    """Of each source, the rows of its own endless order that lie before the sequence; () is none.
    """
    phases: tuple[Phase, ...] = ((0, ()),)
    """Of the sequence, from row 0 on."""
    skipped: tuple[tuple[int, int], ...] = ()
    """Rows (start, stop) that rollbacks leave out of the sequence, ascending, disjoint."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Those that decide what a batch is, by flat name."""

    @property
    def batch_size(self) -> int:
        """Rows that a step takes."""
        return self.settings["train.batch_size"]

    @property
    def seed(self) -> int:
        """What orders the rows."""
        return self.settings["train.seed"]

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "StepRange":
        """Returns the range whose fields JSON gives back."""
        return StepRange(
            first_step=content["first_step"],
            first_row=content["first_row"],
            taken=tuple(content["taken"]),
            phases=tuple((row, tuple(weights)) for row, weights in content["phases"]),
            skipped=tuple((start, stop) for start, stop in content["skipped"]),
            settings=content["settings"],
        )

    def data_config(self, config: DataConfig) -> DataConfig:
        """Returns the settings of the data as they are in these steps."""
        own = {
            name.removeprefix("data."): tuple(value) if isinstance(value, list) else value
            for name, value in self.settings.items()
            if name.startswith("data.")
        }
        return replace(config, **own)

    def row(self, step: int, index: int = 0) -> int:
        """Returns where in the sequence a row of the batch of a step is; the first step is 0."""
        row = self.first_row + (step - self.first_step) * self.batch_size + index
        for start, stop in self.skipped:
            start = max(start, self.first_row)
            if row < start:
                break
            row += max(stop - start, 0)
        return row

    def rows(self, step: int) -> list[tuple[int, int]]:
        """Returns the rows (start, stop) of the batch of a step, from 0: one run, or several."""
        return merge_intervals(
            (row, row + 1) for row in (self.row(step, i) for i in range(self.batch_size))
        )

    def weights_at(self, row: int) -> tuple[float, ...]:
        """Returns the weights of the phase that a row of the sequence belongs to."""
        return next(weights for first, weights in reversed(self.phases) if first <= row)

    def without_rows(self, rows: Iterable[tuple[int, int]]) -> "StepRange":
        """Returns the range without further rows (start, stop) of the sequence."""
        return replace(self, skipped=tuple(merge_intervals([*self.skipped, *rows])))

    def continued_by(self, new: "StepRange") -> "StepRange":
        """Returns a range that begins a sequence as one that reads on in this one instead."""
        first_row = self.row(new.first_step)
        if all(self.settings[name] == new.settings[name] for name in _OF_PHASES):
            # What has begun stays; what has not begins with the same step as before.
            begun = [phase for phase in self.phases if phase[0] <= first_row]
            later = [
                (first_row + (self._steps_to(row) - new.first_step) * new.batch_size, weights)
                for row, weights in self.phases
                if row > first_row
            ]
        else:
            begun = [phase for phase in self.phases if phase[0] < first_row]
            later = [(first_row + row, weights) for row, weights in new.phases]
            later = later[1:] if begun and begun[-1][1] == later[0][1] else later
        return replace(
            new,
            first_row=first_row,
            taken=self.taken,
            phases=(*begun, *later),
            skipped=tuple(rows for rows in self.skipped if rows[1] > first_row),
        )

    def _steps_to(self, row: int) -> int:
        """Returns how many steps of the run come before a row, if none was skipped."""
        return self.first_step + (row - self.first_row) // self.batch_size

    def changes_from(self, old: "StepRange") -> dict[str, tuple[Any, Any]]:
        """Returns {setting: (old, new)} of those that are others than in an earlier range."""
        changed = differences(dict(old.settings), dict(self.settings))
        return {name: values for name, values in changed.items() if name in self.settings}


def step_range(config: DataConfig, *, batch_size: int, seed: int, first_step: int = 0) -> StepRange:
    """Returns the range that begins a sequence with a step."""
    phases: dict[int, tuple[float, ...]] = {}
    for step, weights in config.weight_phases():  # their first step is 1
        phases[max(step - 1 - first_step, 0) * batch_size] = weights
    flat = {f"data.{name}": value for name, value in asdict(config).items()}
    flat |= {"train.batch_size": batch_size, "train.seed": seed}
    return StepRange(
        first_step=first_step,
        phases=tuple(sorted(phases.items())),
        settings={
            name: list(value) if isinstance(value, tuple) else value
            for name, value in flat.items()
            if decides_batches(name)
        },
    )


def steps_from(config: RunConfig, step: int = 0) -> StepRange:
    """Returns how the steps of a run after so many take batches, were the next one its first."""
    train = config.train
    return step_range(config.data, batch_size=train.batch_size, seed=train.seed, first_step=step)


def range_of(ranges: tuple[StepRange, ...], step: int) -> StepRange:
    """Returns the range that a step belongs to; the first step is 0.

    Raises:
        LookupError: the run did not take it, but another one that it began with.
    """
    for steps in reversed(ranges):
        if steps.first_step <= step:
            return steps
    raise LookupError(step)


def merge_intervals(rows: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns rows (start, stop), ascending and disjoint."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted(rows):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(stop, found[-1][1])
        else:
            found.append((start, stop))
    return found
