"""`./tessera inspect`: what a step of a run saw, or what tokens a prepared folder holds."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from configs.check import require, require_at_least
from data.object_store import is_remote
from data.token_store import MANIFEST
from launch.absolute_paths import RUNS
from launch.arguments import parse_arguments
from launch.reading.dataset_report import inspect_data
from launch.reading.step_report import compare_runs, inspect_rows, inspect_run
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
    """Runs the command and returns its exit code."""
    parsed = parse_arguments(InspectArguments, arguments, command="./tessera inspect")
    path, cache_dir = Path(parsed.folder).expanduser(), RUNS / ".data"
    if is_remote(parsed.folder) or (path / MANIFEST).is_file():
        _refuse(parsed, _OF_RUNS, "a prepared folder", "a run, such as runs/quickstart")
        _check_page(parsed.html)
        length = _SEQUENCE_LEN if parsed.sequence_len is None else parsed.sequence_len
        require_at_least("--sequence-len", length, 1)
        inspect_data(
            parsed.folder,
            cache_dir,
            sequence_len=length,
            every_byte=parsed.verify,
            page=parsed.html,
            as_json=parsed.json,
        )
        return 0
    require(
        RunFolder(path).exists,
        f"{parsed.folder} is neither a run folder (it has no config.json) nor a prepared folder "
        f"(it has no {MANIFEST}); give one of them, such as runs/quickstart --step 1",
    )
    _refuse(parsed, _OF_DATA, "a run", "the prepared folder that it reads")
    needs = "--step" if parsed.diff is None else f"--diff={parsed.diff} needs --step, which"
    num_steps = RunFolder(path).read_config().train.num_steps
    rows = parsed.rows or None
    if parsed.first_row is not None:
        require(
            parsed.diff is None and parsed.first_row >= 0,
            f"--first-row={parsed.first_row} must be at least 0, and does not go with --diff="
            f"{parsed.diff}; give one of them",
        )
        inspect_rows(
            path,
            cache_dir,
            first_row=parsed.first_row,
            step=parsed.step,
            rows=rows,
            full=parsed.full,
            as_json=parsed.json,
        )
        return 0
    require(
        parsed.step is not None,
        f"{needs} must be given with a run: a step from 1 to train.num_steps={num_steps}; or give "
        "--first-row, a row that an event names",
    )
    assert parsed.step is not None
    if parsed.diff is not None:
        other = parsed.diff.expanduser()
        runs = (path, other)
        is_same = compare_runs(
            runs, cache_dir, step=parsed.step, rows=rows, full=parsed.full, as_json=parsed.json
        )
        return 0 if is_same else 1
    inspect_run(path, cache_dir, step=parsed.step, rows=rows, full=parsed.full, as_json=parsed.json)
    return 0


def _refuse(parsed: InspectArguments, names: Sequence[str], given: str, wanted: str) -> None:
    """Raises SettingsError where an argument does not suit what is inspected."""
    defaults = {field.name: field.default for field in dataclasses.fields(InspectArguments)}
    values = dataclasses.asdict(parsed)
    for name in names:
        flag = f"--{name.replace('_', '-')}"
        require(
            values[name] == defaults[name],
            f"{flag}={values[name]} does not go with {parsed.folder}, which is {given}; leave it "
            f"out, or give {wanted}",
        )


def _check_page(path: Path | None) -> None:
    if path is not None:
        require(
            path.absolute().parent.is_dir() and not path.is_dir(),
            f"--html={path} must be a file to write in a folder that is there",
        )
