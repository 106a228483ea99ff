"""`./tessera inspect`: what a step of a run saw, or what tokens a prepared folder holds."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from configs.require import require, require_at_least
from data.atomic_files import atomic_write
from data.batch_report import StepReport
from data.object_store import is_remote
from data.token_store import MANIFEST
from launch.absolute_paths import RUNS
from launch.arguments import parse_arguments
from launch.pages.data_page import data_page
from launch.printable import visible
from launch.reading.dataset_report import read_data
from launch.reading.step_report import compare_runs, open_run_data
from launch.terminal.show_dataset import show_dataset
from launch.terminal.show_step import show_comparison, show_step
from train.record.run_folder import RunFolder

_OF_RUNS = ("step", "first_row", "rows", "full", "diff")
_OF_DATA = ("sequence_len", "html", "verify")
_SEQUENCE_LEN = 2048


@dataclass(frozen=True, kw_only=True)
class InspectArguments:
    """Shows the batch of a step of a run, or the tokens of a prepared folder."""

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """A run folder with --step or --first-row, or a prepared folder, local or s3:// gs://."""
    step: int | None = None
    """Of a run: the step whose batch is shown, from 1."""
    first_row: int | None = None
    """Of a run: show the batch that starts at this row of the data order, even a skipped one; if
    the order changed during the run, that of --step is meant, else the newest."""
    rows: tuple[int, ...] = ()
    """Of a run: sequences of the batch to show, from 0; without it all."""
    full: bool = False
    """Of a run: show the whole text, not only the first lines of each segment."""
    diff: Path | None = None
    """Of a run: another run to compare with; exit code 1 if its batch differs."""
    sequence_len: int | None = None
    """Of a prepared folder: sequence length that packings are counted for; None takes 2048."""
    html: Path | None = None
    """Of a prepared folder: write the report to this file, a page for a browser."""
    verify: bool = False
    """Of a prepared folder: compare checksums with the manifest, not only the sizes of files."""
    json: bool = False
    """Print nothing but one JSON object, on one line."""


def main(arguments: Sequence[str]) -> int:
    parsed = parse_arguments(InspectArguments, arguments, command="./tessera inspect")
    path, cache_dir = Path(parsed.folder).expanduser(), RUNS / ".data"
    if is_remote(parsed.folder) or (path / MANIFEST).is_file():
        _refuse(parsed, _OF_RUNS, "a prepared folder", "a run, such as runs/quickstart")
        _inspect_dataset(parsed, cache_dir)
        return 0
    require(
        RunFolder(path).exists,
        f"{parsed.folder} is neither a run folder (it has no config.json) nor a prepared folder "
        f"(it has no {MANIFEST}); give one of them, such as runs/quickstart --step 1",
    )
    _refuse(parsed, _OF_DATA, "a run", "the prepared folder that it reads")
    rows = parsed.rows or None
    if parsed.first_row is not None:
        require_at_least("--first-row", parsed.first_row, 0)
        require(
            parsed.diff is None,
            f"--first-row={parsed.first_row} cannot be combined with --diff={parsed.diff}; give "
            "--step for a comparison",
        )
        run = open_run_data(path, cache_dir, step=parsed.step)
        report = run.report_from(parsed.first_row, parsed.step, rows)
        where = f"{visible(str(path))}: from sequence {parsed.first_row:,} of the data order"
        _show(parsed, {**report.to_json(), "step": None}, report, where)
        return 0
    needs = "--step" if parsed.diff is None else f"--diff={parsed.diff} needs --step, which"
    require(
        parsed.step is not None,
        f"{needs} must be given with a run: a step from 1 to train.num_steps="
        f"{RunFolder(path).read_config().train.num_steps}; or give --first-row, a sequence that "
        "an event names",
    )
    assert parsed.step is not None
    if parsed.diff is not None:
        paths = path, parsed.diff.expanduser()
        comparison = compare_runs(paths, cache_dir, step=parsed.step, rows=rows)
        if parsed.json:
            print(json.dumps(comparison.to_json()))
        else:
            show_comparison(comparison, full=parsed.full)
        return 0 if comparison.is_same else 1
    report = open_run_data(path, cache_dir, step=parsed.step).report(parsed.step, rows)
    where = f"{visible(str(path))}, step {parsed.step}: from sequence {report.first_row:,}"
    _show(parsed, report.to_json(), report, f"{where} of the data order")
    return 0


def _show(
    parsed: InspectArguments, content: dict[str, Any], report: StepReport, where: str
) -> None:
    if parsed.json:
        print(json.dumps({"run": str(Path(parsed.folder).expanduser()), **content}))
    else:
        show_step(report, where, full=parsed.full)


def _inspect_dataset(parsed: InspectArguments, cache_dir: Path) -> None:
    """Shows a prepared folder, and writes its page if --html names one."""
    _check_page(parsed.html)
    length = _SEQUENCE_LEN if parsed.sequence_len is None else parsed.sequence_len
    require_at_least("--sequence-len", length, 1)
    report = read_data(parsed.folder, cache_dir, sequence_len=length, checksums=parsed.verify)
    if parsed.html is not None:
        with atomic_write(parsed.html) as temporary:
            temporary.write_text(data_page(report), encoding="utf-8")
    if parsed.json:
        print(json.dumps(report.to_json()))
        return
    show_dataset(report)
    if parsed.html is not None:
        print(f"\nwrote {visible(str(parsed.html))}")


def _refuse(parsed: InspectArguments, names: Sequence[str], given: str, wanted: str) -> None:
    """Raises SettingsError for an argument that does not apply to what is inspected."""
    defaults = {field.name: field.default for field in dataclasses.fields(InspectArguments)}
    values = dataclasses.asdict(parsed)
    for name in names:
        flag = f"--{name.replace('_', '-')}"
        require(
            values[name] == defaults[name],
            f"{flag}={values[name]} cannot be used with {parsed.folder}, which "
            f"is {given}; leave it out, or give {wanted}",
        )


def _check_page(path: Path | None) -> None:
    if path is not None:
        require(
            path.absolute().parent.is_dir() and not path.is_dir(),
            f"--html={path} must be a file to write in a folder that exists",
        )
