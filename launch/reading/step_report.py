"""What a step of a run saw, and whether another run saw the same. No device is touched."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from configs.check import require
from configs.run import RunConfig
from configs.settings import decides_batches, differences, flatten
from data.batch_report import Piece, Question, RowReport, StepReport, report_step
from data.batches import continued
from data.mixture import Data
from data.open_data import open_data
from data.step_ranges import StepRange, range_of, steps_from
from launch.printable import first_lines, shortened, visible, visible_lines
from launch.progress_bar import Progress
from train.checkpoints.folders import checkpoint_steps
from train.checkpoints.manifest import read_progress
from train.record.run_folder import RunFolder

_NUM_ROWS, _NUM_NAMES = 8, 3  # of a difference that are shown
_NAME_CHARACTERS = 60


@dataclass(frozen=True, kw_only=True)
class RunData:
    """What a run reads, and in which order."""

    path: Path
    config: RunConfig
    data: Data
    step_ranges: tuple[StepRange, ...]
    """Which rows its steps take, by its newest checkpoint and its settings."""

    def steps(self, step: int) -> StepRange:
        """Returns the range that a step, from 1, belongs to; raises SettingsError if none."""
        first = self.step_ranges[0].first_step
        require(
            step > first,
            f"--step={step} must be above {first}: the run began with another one at that step, "
            "which events.jsonl names; inspect that run",
        )
        return range_of(self.step_ranges, step - 1)

    def report(self, step: int, rows: Sequence[int] | None) -> StepReport:
        """Returns what a step saw; raises SettingsError if the batch has no such row."""
        return report_step(self.data, self.config.data, self.steps(step), step, rows=rows)


def open_run_data(path: Path, cache_dir: Path, *, step: int | None = None) -> RunData:
    """Returns the data of a run, which need not have a checkpoint yet.

    Args:
        step: one that the run must have.

    Raises:
        SettingsError: it is not a run folder, has no such step, or its text is another by now.
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
        watch=Progress(Console(stderr=True, highlight=False)),
        moved=progress.data_folders if progress else {},
    )
    ranges: tuple[StepRange, ...] = ()
    if progress is not None:
        progress.check_data(data.digest, config.data)
        ranges = progress.step_ranges
    new = steps_from(config, progress.step if progress else 0)
    ranges = continued(ranges, new, data, config.data).ranges
    return RunData(path=path, config=config, data=data, step_ranges=ranges)


def inspect_run(
    path: Path,
    cache_dir: Path,
    *,
    step: int,
    rows: Sequence[int] | None,
    full: bool,
    as_json: bool,
) -> None:
    """Shows the rows that a step of a run saw."""
    run = open_run_data(path, cache_dir, step=step)
    report = run.report(step, rows)
    if as_json:
        print(json.dumps({"run": str(path), **dataclasses.asdict(report)}))
        return
    where = f"step {step} of {visible(str(path))}: from row {report.first_row:,} of the sequence"
    _show(report, where, full=full)


def inspect_rows(
    path: Path,
    cache_dir: Path,
    *,
    first_row: int,
    step: int | None,
    rows: Sequence[int] | None,
    full: bool,
    as_json: bool,
) -> None:
    """Shows as many rows of the sequence as a step takes, though a run has skipped them."""
    run = open_run_data(path, cache_dir, step=step)
    steps = run.step_ranges[-1] if step is None else run.steps(step)
    plain = dataclasses.replace(steps, first_step=0, first_row=first_row, skipped=())
    report = report_step(run.data, run.config.data, plain, 1, rows=rows)
    if as_json:
        said = dataclasses.asdict(report)
        print(json.dumps({"run": str(path), **said, "step": None}))
        return
    where = f"from row {first_row:,} of the sequence of {visible(str(path))}"
    _show(report, where, full=full)


def _show(report: StepReport, where: str, *, full: bool) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(
        f"{where}, {report.num_rows} rows of {report.sequence_len} tokens, sha256 "
        f"{report.batch_sha256[:16]}",
        style="bold",
        soft_wrap=True,
    )
    for row in report.rows:
        _show_row(console, row, full=full)


def _show_row(console: Console, row: RowReport, *, full: bool) -> None:
    words = f"{visible(row.source)}, epoch {row.epoch}, row {row.row:,} of {row.num_rows:,}"
    padding = f", {row.num_padding:,} padding" if row.num_padding else ""
    console.print()
    console.print(Text.assemble((f"row {row.index}", "bold cyan"), f"  {words}{padding}"))
    for piece in row.pieces:
        where = (
            f"  document {piece.document:,}, tokens {piece.start:,} to {piece.stop:,}"
            f" ({'separator + ' if piece.begins else ''}{piece.stop - piece.start:,})"
        )
        name = (visible(piece.name), "green")
        console.print(Text.assemble("  ", name, where), soft_wrap=True)
        text = visible_lines(piece.text) if full else first_lines(piece.text, console.width - 4)
        if text:
            shown = Text(text, "dim", overflow="fold")
            console.print(Padding(shown, (0, 0, 0, 4), expand=False))
    for question in row.questions:
        _show_question(console, question, full=full)


def _show_question(console: Console, question: Question, *, full: bool) -> None:
    follows = {None: "", True: "follows", False: "does not follow"}[question.follows]
    for name, text in (("reads", question.reads), ("finds", question.finds)):
        shown = visible_lines(text) if full else first_lines(text, console.width - 11)
        lines = Text(shown, "dim", overflow="fold")
        console.print(Text(f"  {name}", "green"))
        console.print(Padding(lines, (0, 0, 0, 4), expand=False))
    if follows:
        console.print(Text.assemble(("  the second text ", "green"), follows))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What two runs saw at a step."""

    runs: tuple[RunData, RunData]
    reports: tuple[StepReport, StepReport]
    settings: dict[str, tuple[Any, Any]]
    """Those that differ, of the ones that decide what a batch is."""
    different_rows: list[tuple[RowReport | None, RowReport | None]]
    """Of the rows that were asked for; None where a batch has no such row."""

    @property
    def steps(self) -> list[StepRange]:
        """The ranges that the step belongs to."""
        return [run.steps(report.step) for run, report in zip(self.runs, self.reports, strict=True)]

    @property
    def is_same(self) -> bool:
        """Whether the whole batches are the same, whichever rows were asked for."""
        return self.reports[0].batch_sha256 == self.reports[1].batch_sha256

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON can hold it; lists of two are in the order of the runs."""
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
                [row and dataclasses.asdict(row) for row in pair] for pair in self.different_rows
            ],
        }


def compare_runs(
    paths: tuple[Path, Path],
    cache_dir: Path,
    *,
    step: int,
    rows: Sequence[int] | None,
    full: bool,
    as_json: bool,
) -> bool:
    """Says whether two runs saw the same batch at a step, and shows what differs."""
    one, two = (open_run_data(path, cache_dir, step=step) for path in paths)
    runs = one, two
    reports = runs[0].report(step, rows), runs[1].report(step, rows)
    pairs = itertools.zip_longest(reports[0].rows, reports[1].rows)
    comparison = Comparison(
        runs=runs,
        reports=reports,
        settings=_settings_that_differ(runs, step),
        different_rows=[
            (one, two)
            for one, two in pairs
            if one is None or two is None or one.sha256 != two.sha256
        ],
    )
    if as_json:
        print(json.dumps(comparison.to_json()))
    else:
        _show_comparison(comparison, full=full)
    return comparison.is_same


def _show_comparison(comparison: Comparison, *, full: bool) -> None:
    console = Console(highlight=False, markup=False, emoji=False)

    def say(line: str, style: str | None = None) -> None:
        console.print(line, style=style, soft_wrap=True)

    verdict = "the same batch" if comparison.is_same else "different batches"
    style = "bold green" if comparison.is_same else "bold red"
    say(f"at step {comparison.reports[0].step} the runs saw {verdict}", style)
    paths = [visible(str(run.path)) for run in comparison.runs]
    names = [f"{path:<{max(map(len, paths))}}" for path in paths]
    for name, run, report, steps in zip(
        names, comparison.runs, comparison.reports, comparison.steps, strict=True
    ):
        num_skipped = sum(stop - start for start, stop in steps.skipped)
        say(
            f"  {name}  from row {report.first_row:,}, sha256 {report.batch_sha256[:16]}, data "
            f"{run.data.digest[:16]}, {num_skipped:,} rows skipped"
        )
    if comparison.settings:
        say("\nsettings that differ", "bold")
    for setting, (one, two) in comparison.settings.items():
        say(f"  {setting}: {visible(str(one))} | {visible(str(two))}")
    different = comparison.different_rows
    if different:
        say("\nrows that differ", "bold")
    shown = different if full else different[:_NUM_ROWS]
    for pair in shown:
        index = next(row.index for row in pair if row)
        for name, row in zip(names, pair, strict=True):
            say(f"  row {index:<4} {name}  {_row_words(row)}")
    if len(shown) < len(different):
        say(f"  and {len(different) - len(shown)} more; --full shows all")


def _settings_that_differ(runs: Sequence[RunData], step: int) -> dict[str, tuple[Any, Any]]:
    """Returns {setting: both values} of the settings that decide what the batch of a step is."""
    flat = [{**flatten(run.config), **run.steps(step).settings} for run in runs]
    return {
        name: values
        for name, values in differences(*flat).items()
        if name.startswith("data.") or decides_batches(name)
    }


def _row_words(row: RowReport | None) -> str:
    if row is None:
        return "no such row"
    pieces = ", ".join(map(_piece_words, row.pieces[:_NUM_NAMES]))
    more = f" and {len(row.pieces) - _NUM_NAMES} more" if len(row.pieces) > _NUM_NAMES else ""
    return f"{visible(row.source)}, epoch {row.epoch}, row {row.row}: {pieces}{more}"


def _piece_words(piece: Piece) -> str:
    return f"{shortened(piece.name, _NAME_CHARACTERS)} {piece.start}-{piece.stop}"
