"""`./tessera train PRESET`: from the words that were typed to the loop."""

import contextlib
import dataclasses
import inspect
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from configs.check import require
from configs.data import named
from configs.errors import SettingsError, Stopped
from configs.presets import PRESETS
from configs.run import RunConfig
from configs.settings import flatten
from data.text.sources import before_wildcard
from launch.arguments import did_you_mean, parse_arguments
from launch.cli import guarded
from launch.devices import (
    describe_devices,
    describe_environment,
    describe_software,
    prepare_jax,
)
from launch.paths import RUNS, whole_path, with_whole_paths
from launch.progress import Progress
from launch.words import closing_words, opening_words
from sharding.job import find_job

if TYPE_CHECKING:
    from data.mixture import Data
    from sharding.processes import Processes
    from train.run_folder import RunFolder

_SHARED_WITHIN_SEC = 15.0
"""How long a file may take to show up in another machine that shares the file system."""
_DEVICES_WITHIN_SEC = 600.0
"""How much later than another process one may have found its devices."""
_OWN_ARGUMENTS = (
    *("run_dir", "allow_changes", "virtual_devices"),
    *("coordinator", "num_processes", "process_id", "start_limit_sec"),
)


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """Trains a preset. The same command again goes on with its run."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    run_dir: Path | None = None
    """The run folder; None is runs/PRESET, or runs/PRESET-STEM once data.path is given."""
    allow_changes: bool = False
    """Go on with a run although a setting that changes its trajectory is another one."""
    virtual_devices: int | None = None
    """Split the CPU into this many devices, to try a mesh on one machine."""
    coordinator: str | None = None
    """HOST:PORT of process 0 of several; None finds it (SLURM, Open MPI, a TPU pod) or is alone."""
    num_processes: int | None = None
    """Processes that train together, each started with the same command."""
    process_id: int | None = None
    """Which of them this is, from 0; the one thing that differs between them."""
    start_limit_sec: float = 60.0
    """Seconds that the processes wait for one another when they start."""


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    job = find_job(arguments)
    if job is None:
        preset, parsed = _prepare(arguments)
        from sharding.processes import ALONE

        return _train(arguments, preset, parsed, ALONE)

    from sharding.processes import join

    processes = join(job)  # before anything else can fail, so that the others hear of it

    def run() -> int:
        with processes.together():
            preset, parsed = _prepare(arguments)
            same = {**describe_software(), **_flat(preset, parsed)}
            processes.agree("settings", same, job.start_limit_sec)
            processes.agree("devices", describe_devices(), _DEVICES_WITHIN_SEC)
            return _train(arguments, preset, parsed, processes)

    return processes.end(guarded(run))


def _prepare(arguments: Sequence[str]) -> tuple[str, TrainArguments]:
    preset, parsed = parse(arguments)
    prepare_jax(
        virtual_devices=parsed.virtual_devices, deterministic=parsed.config.train.deterministic
    )
    return preset, parsed


def _flat(preset: str, parsed: TrainArguments) -> dict[str, Any]:
    """Returns what was asked for, by the names that one types."""
    return {
        "preset": preset,
        "--run-dir": str(parsed.run_dir or default_run_dir(preset, parsed.config)),
        "--allow-changes": parsed.allow_changes,
        "--virtual-devices": parsed.virtual_devices,
        **flatten(parsed.config),
    }


def _train(
    arguments: Sequence[str], preset: str, parsed: TrainArguments, processes: "Processes"
) -> int:
    started = time.perf_counter()
    command = shlex.join(("./tessera", "train", *arguments))

    import jax

    from sharding.fit import check_fit, check_platform
    from sharding.mesh import make_mesh
    from train.checkpoint_files import checkpoint_steps, read_progress
    from train.log import log_to_console, log_to_file, logger
    from train.loop import train
    from train.run_folder import RunFolder
    from train.stop import StopSignals

    stop = StopSignals()
    stop.install()
    log_to_console(Console(highlight=False), process=processes.index)
    console = Console(highlight=False, quiet=not processes.is_first)  # for what is live

    # Everything that can be refused is refused here, before anything is compiled.
    require(
        jax.process_count() == processes.num,
        f"the devices here are those of {jax.process_count()} processes, but this one knows of "
        f"{processes.num}: give --coordinator, --num-processes and --process-id in each of them",
    )
    run_dir = parsed.run_dir or default_run_dir(preset, parsed.config)
    folder = RunFolder(run_dir, is_writer=processes.is_first)
    folder.check_free()
    mesh = make_mesh(parsed.config.mesh)
    check_platform(parsed.config, mesh.devices.flat[0].platform)
    check_fit(parsed.config, dict(mesh.shape))
    data = _open_data(parsed.config, processes, console)
    config = resolve(parsed.config, data)
    check_fit(config, dict(mesh.shape))  # again, now that the vocabulary is known
    changed = (
        folder.check_settings(config, allow_changes=parsed.allow_changes) if folder.exists else {}
    )
    newest = checkpoint_steps(folder.checkpoints)[-1:]
    for step in newest:
        read_progress(folder.checkpoints, step).check_continues(config, data.digest)
    same = {"data (sha256)": data.digest, "newest checkpoint": newest, **flatten(config)}
    processes.agree("data", same, limit_sec=None)

    with folder.held():
        _check_shared(folder, processes)
        environment = describe_environment(processes)
        folder.begin(config, environment)
        processes.wait("folder")
        log_to_file(folder.logs / f"process-{processes.index}.log")
        processes.way_on = command
        folder.add_event("started", command=command, environment=environment)
        if changed:
            logger.warning(f"going on with other settings: {', '.join(changed)}")
            folder.add_event("changed", settings=changed)
        logger.info(opening_words(folder, config, data, mesh))

        def run() -> int:
            with processes.together(), jax.set_mesh(mesh):
                outcome = train(config, folder, data, mesh, processes, stop, console)
            logger.info(closing_words(folder, outcome, time.perf_counter() - started))
            return 0

        code = guarded(run, go_on=command)
        if code not in (0, Stopped.exit_code):
            folder.add_event("failed", exit_code=code)
        return code


def _open_data(config: RunConfig, processes: "Processes", console: Console) -> "Data":
    """Returns the data of a run; the first process prepares it, and the others open it then."""
    from data.open_data import open_data
    from train.log import logger

    if not processes.is_first:
        processes.from_first("data is prepared", None)
    with contextlib.closing(Progress(console)) as watch:
        data = open_data(config.data, RUNS / ".data", logger.info, watch=watch)
    if processes.is_first:
        processes.from_first("data is prepared", None)
    return data


def _check_shared(folder: "RunFolder", processes: "Processes") -> None:
    """Raises SettingsError unless this process sees the run folder that the first one holds."""
    mark = processes.from_first("mark of the run folder", folder.mark())
    deadline = time.monotonic() + _SHARED_WITHIN_SEC
    while folder.mark() != mark:
        require(
            time.monotonic() < deadline,
            f"--run-dir {folder.path.absolute()} is another folder in process {processes.index} "
            "than in process 0: give one that is on a file system which all of them share",
        )
        time.sleep(0.1)
    processes.wait("shared folder")


def parse(arguments: Sequence[str]) -> tuple[str, TrainArguments]:
    """Returns the preset's name and its settings with what was typed put in.

    Raises:
        SettingsError: there is no such preset, or the settings do not fit together.
        SystemExit: tyro has shown the help (0) or a wrong field or value (2).
    """
    names = list(PRESETS)
    if not arguments or arguments[0] in ("--help", "-h"):
        print(_usage())
        raise SystemExit(0 if arguments else SettingsError.exit_code)
    preset, *rest = arguments
    require(
        preset in PRESETS,
        f"preset {preset} is not known{did_you_mean(preset, names)}; there are: {', '.join(names)}",
    )
    config = PRESETS[preset]()
    parsed = parse_arguments(
        TrainArguments,
        rest,
        command=f"./tessera train {preset}",
        default=TrainArguments(config=config),
        description=inspect.getdoc(PRESETS[preset]),
        names=[f"--{name}" for name in (*flatten(config), *_OWN_ARGUMENTS)],
    )
    return preset, parsed


def default_run_dir(preset: str, config: RunConfig) -> Path:
    """Returns runs/PRESET, or runs/PRESET-STEM where data.path is not the preset's own."""
    path, mixture = config.data.path, config.data.mixture
    if mixture:
        return RUNS / "-".join((preset, *named(mixture, "data.mixture")))
    if path is None or path == PRESETS[preset]().data.path:
        return RUNS / preset
    fixed = before_wildcard(path)  # of a glob the folder without wildcards
    if fixed != path:
        fixed = fixed.rpartition("/")[0] or "."
    plain = re.sub(r"[^\w.-]+", "-", Path(whole_path(fixed)).stem).strip("-")
    return RUNS / f"{preset}-{plain or 'data'}"


def resolve(config: RunConfig, data: "Data") -> RunConfig:
    """Returns the settings with whole paths, and with the vocabulary of the tokenizer put in.

    Raises:
        SettingsError: model.vocab_size is another, or the text is shorter than a row.
    """
    length = config.data.sequence_len
    for name, store in data.sources:
        num_tokens = store.train.num_tokens
        require(
            num_tokens > length,
            f"data.path={store.manifest['source']} ({name}) is too small: its {num_tokens} "
            f"training tokens must be more than data.sequence_len={length}; give more text or "
            "shorter rows",
        )
    size = data.tokenizer.vocab_size
    require(
        config.model.vocab_size in ("tokenizer", size),
        f"model.vocab_size={config.model.vocab_size} must be {size}, the vocabulary of "
        f"data.tokenizer={config.data.tokenizer}: pass --model.vocab_size tokenizer, or a "
        "tokenizer of that size",
    )
    model = dataclasses.replace(config.model, vocab_size=size)
    return dataclasses.replace(config, data=with_whole_paths(config.data), model=model)


def _usage() -> str:
    width = max(map(len, PRESETS))
    lines = [
        f"  {name:<{width}}  {(preset.__doc__ or '').splitlines()[0]}"
        for name, preset in PRESETS.items()
    ]
    return (
        "usage: ./tessera train PRESET [--field.path value ...]\n\n"
        + "\n".join(lines)
        + "\n\nall settings of a preset: ./tessera train PRESET --help"
    )
