"""Which rows each step of a run reads, also when settings change during the run.

Rows form one endless sequence. The steps of a run are divided into ranges; within a range no
setting that decides batches changes. A new batch size continues at the next row; a new sequence
length, packing or seed begins a new sequence, with a new epoch of every source.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from configs.data import DataConfig
from configs.flat_settings import decides_batches, differences, up_to_date
from configs.run import RunConfig

Phase = tuple[int, tuple[float, ...]]
"""(first row in the sequence, weights of the sources); without weights, sizes decide."""
_OF_PHASES = ("data.weights", "data.phases")


@dataclass(frozen=True, kw_only=True)
class StepRange:
    """Consecutive steps under the same data settings; checkpoints store its fields as JSON."""

    first_step: int = 0
    """Steps of the run before it."""
    first_row: int = 0
    """Index of its first row in the sequence."""
    taken: tuple[int, ...] = ()
    """Rows of each source's own endless order before the sequence; () is none."""
    phases: tuple[Phase, ...] = ((0, ()),)
    """Phases of the mixture, from row 0 of the sequence."""
    skipped: tuple[tuple[int, int], ...] = ()
    """Rows (start, stop) of the sequence that rollbacks skip, ascending, disjoint."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The settings that decide batches, by flat name."""

    @property
    def batch_size(self) -> int:
        return self.settings["train.batch_size"]

    @property
    def seed(self) -> int:
        return self.settings["train.seed"]

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "StepRange":
        return StepRange(
            first_step=content["first_step"],
            first_row=content["first_row"],
            taken=tuple(content["taken"]),
            phases=tuple((row, tuple(weights)) for row, weights in content["phases"]),
            skipped=tuple((start, stop) for start, stop in content["skipped"]),
            settings=up_to_date(content["settings"]),
        )

    def data_config(self, config: DataConfig) -> DataConfig:
        own = {
            name.removeprefix("data."): tuple(value) if isinstance(value, list) else value
            for name, value in self.settings.items()
            if name.startswith("data.")
        }
        return replace(config, **own)

    def row(self, step: int, index: int = 0) -> int:
        """Returns the index in the sequence of a row of a step's batch; the first step is 0."""
        row = self.first_row + (step - self.first_step) * self.batch_size + index
        for start, stop in self.skipped:
            start = max(start, self.first_row)
            if row < start:
                break
            row += max(stop - start, 0)
        return row

    def rows(self, step: int) -> list[tuple[int, int]]:
        """Returns the rows (start, stop) of the batch of a step; several if rows are skipped."""
        return merge_intervals(
            (row, row + 1) for row in (self.row(step, i) for i in range(self.batch_size))
        )

    def weights_at(self, row: int) -> tuple[float, ...]:
        return next(weights for first, weights in reversed(self.phases) if first <= row)

    def without_rows(self, rows: Iterable[tuple[int, int]]) -> "StepRange":
        return replace(self, skipped=tuple(merge_intervals([*self.skipped, *rows])))

    def continued_by(self, new: "StepRange") -> "StepRange":
        """Returns a later range, made to continue this sequence instead of beginning one."""
        first_row = self.row(new.first_step)
        if all(self.settings[name] == new.settings[name] for name in _OF_PHASES):
            # Phases that have begun stay; the others begin at the same step as before.
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
        return self.first_step + (row - self.first_row) // self.batch_size

    def changes_from(self, old: "StepRange") -> dict[str, tuple[Any, Any]]:
        """Returns {setting: (old, new)} of the settings that differ from an earlier range."""
        changed = differences(dict(old.settings), dict(self.settings))
        return {name: values for name, values in changed.items() if name in self.settings}


def step_range(config: DataConfig, *, batch_size: int, seed: int, first_step: int = 0) -> StepRange:
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
    train = config.train
    return step_range(config.data, batch_size=train.batch_size, seed=train.seed, first_step=step)


def range_of(ranges: tuple[StepRange, ...], step: int) -> StepRange:
    """Returns the range that a step belongs to; the first step is 0.

    Raises:
        LookupError: the step is before the first range; the run it was initialized from took it.
    """
    for steps in reversed(ranges):
        if steps.first_step <= step:
            return steps
    raise LookupError(step)


def merge_intervals(rows: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns the union of rows (start, stop), ascending and disjoint."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted(rows):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(stop, found[-1][1])
        else:
            found.append((start, stop))
    return found
