"""What a step of a run read, and whether another run read the same. No device is used."""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from configs.flat_settings import decides_batches, differences, flatten
from configs.require import require
from configs.run import RunConfig
from data.batch_report import RowReport, StepReport, report_step
from data.batches import continue_ranges
from data.mixture import Data
from data.open_data import open_data
from data.step_ranges import StepRange, range_of, steps_from
from launch.progress_bar import Progress
from train.checkpoints.folders import checkpoint_steps
from train.checkpoints.manifest import read_progress
from train.record.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class RunData:
    """The data of a run, and in which order its steps read it."""

    path: Path
    config: RunConfig
    data: Data
    step_ranges: tuple[StepRange, ...]
    """Which rows its steps read, by its newest checkpoint and its settings."""

    def steps(self, step: int) -> StepRange:
        """Returns the range that a step, from 1, belongs to; raises SettingsError if none."""
        first = self.step_ranges[0].first_step
        require(
            step > first,
            f"--step={step} must be above {first}: the run starts from a checkpoint of another run "
            "at that step, which events.jsonl names; inspect that run",
        )
        return range_of(self.step_ranges, step - 1)

    def report(self, step: int, rows: Sequence[int] | None) -> StepReport:
        """Returns what a step read; raises SettingsError if the batch has no such row."""
        return report_step(self.data, self.config.data, self.steps(step), step, rows=rows)

    def report_from(
        self, first_row: int, step: int | None, rows: Sequence[int] | None
    ) -> StepReport:
        """Returns as many rows as a step reads, also those that the run skips.

        Args:
            first_row: of the data order.
            step: whose data order that is; None takes the newest.
        """
        steps = self.step_ranges[-1] if step is None else self.steps(step)
        plain = dataclasses.replace(steps, first_step=0, first_row=first_row, skipped=())
        return report_step(self.data, self.config.data, plain, 1, rows=rows)


def open_run_data(path: Path, cache_dir: Path, *, step: int | None = None) -> RunData:
    """Returns the data of a run, which need not have a checkpoint yet.

    Args:
        step: one that the run must have.

    Raises:
        SettingsError: it is not a run folder, has no such step, or its text has changed.
        IntegrityError: the data is not what its manifest says; of shards only sizes are checked.
    """
    folder = RunFolder(path)
    config = folder.read_config()
    require(
        step is None or 1 <= step <= config.train.num_steps,
        f"--step={step} must be a step of {path}, from 1 to train.num_steps="
        f"{config.train.num_steps}",
    )
    progress = None
    for newest in checkpoint_steps(folder.checkpoints)[-1:]:
        progress = read_progress(folder.checkpoints, newest)
    data = open_data(
        dataclasses.replace(config.data, verify="sizes"),
        cache_dir,
        lambda line: None,
        on_progress=Progress(Console(stderr=True, highlight=False)),
        known_folders=progress.data_folders if progress else {},
    )
    ranges: tuple[StepRange, ...] = ()
    if progress is not None:
        progress.check_data(data.digest, config.data)
        ranges = progress.step_ranges
    new = steps_from(config, progress.step if progress else 0)
    ranges = continue_ranges(ranges, new, data, config.data).ranges
    return RunData(path=path, config=config, data=data, step_ranges=ranges)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What two runs read at a step."""

    runs: tuple[RunData, RunData]
    reports: tuple[StepReport, StepReport]
    settings: dict[str, tuple[Any, Any]]
    """Those that differ, among the ones that decide what a batch is."""
    different_rows: list[tuple[RowReport | None, RowReport | None]]
    """Among the requested rows; None where a batch has no such row."""

    @property
    def steps(self) -> list[StepRange]:
        return [run.steps(report.step) for run, report in zip(self.runs, self.reports, strict=True)]

    @property
    def is_same(self) -> bool:
        """Whether the whole batches are the same, whichever rows were requested."""
        return self.reports[0].batch_sha256 == self.reports[1].batch_sha256

    def to_json(self) -> dict[str, Any]:
        return {
            "step": self.reports[0].step,
            "is_same": self.is_same,
            "runs": [str(run.path) for run in self.runs],
            "first_rows": [report.first_row for report in self.reports],
            "batch_sha256": [report.batch_sha256 for report in self.reports],
            "data_sha256": [run.data.digest for run in self.runs],
            "skipped_rows": [steps.skipped for steps in self.steps],
            "settings": self.settings,
            "different_rows": [
                [row and row.to_json() for row in pair] for pair in self.different_rows
            ],
        }


def compare_runs(
    paths: tuple[Path, Path], cache_dir: Path, *, step: int, rows: Sequence[int] | None
) -> Comparison:
    """Returns what two runs read at a step, and what differs; raises as open_run_data does."""
    one, two = (open_run_data(path, cache_dir, step=step) for path in paths)
    runs = one, two
    reports = one.report(step, rows), two.report(step, rows)
    return Comparison(
        runs=runs,
        reports=reports,
        settings=_different_settings(runs, step),
        different_rows=[
            (a, b)
            for a, b in itertools.zip_longest(reports[0].rows, reports[1].rows)
            if a is None or b is None or a.sha256 != b.sha256
        ],
    )


def _different_settings(runs: Sequence[RunData], step: int) -> dict[str, tuple[Any, Any]]:
    """Returns {setting: both values} of the settings that decide what the batch of a step is."""
    flat = [{**flatten(run.config), **run.steps(step).settings} for run in runs]
    return {
        name: values
        for name, values in differences(*flat).items()
        if name.startswith("data.") or decides_batches(name)
    }
