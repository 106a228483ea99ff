"""The settings of a run: a preset, what was typed to change it, and what its data says."""

import dataclasses
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from configs.check import require
from configs.data import DataConfig, named
from configs.errors import SettingsError
from configs.presets.table import PRESETS
from configs.run import RunConfig
from configs.settings import flatten
from data.prepare.text.source_files import before_wildcard
from launch.absolute_paths import RUNS, whole_path, with_whole_paths
from launch.arguments import did_you_mean, parse_arguments
from launch.supervise import RestartPolicy

if TYPE_CHECKING:
    from data.mixture import Data
    from train.record.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """Trains a preset. The same command again goes on with its run."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    run_dir: Path | None = None
    """The run folder; None is runs/PRESET, or runs/PRESET-STEM once data.path is given."""
    allow_changes: bool = False
    """Go on with a run although a setting that changes its trajectory is another one."""
    init_from: str | None = None
    """RUN, RUN@STEP or the folder of a Hugging Face model, whose weights a new run begins with; it
    stands alone from then on."""
    with_optimizer: bool = False
    """With --init-from: take over moments, step and place in the data too."""
    supervise: bool = False
    """Start the run again when it is stopped from outside, hangs, freezes or crashes."""
    max_restarts: int = RestartPolicy.max_restarts
    """With --supervise: how often, without a new checkpoint in between."""
    restart_wait_sec: float = RestartPolicy.wait_sec
    """With --supervise: seconds before a restart; doubled for each that led to no checkpoint."""
    frozen_limit_sec: float = RestartPolicy.frozen_limit_sec
    """With --supervise: seconds without a sign of life after which the run is killed."""
    virtual_devices: int | None = None
    """Split the CPU into this many devices, to try a mesh on one machine."""
    coordinator: str | None = None
    """HOST:PORT of process 0 of several; None finds it (SLURM, Open MPI, a TPU pod) or is alone."""
    num_processes: int | None = None
    """Processes that train together, each started with the same command."""
    process_id: int | None = None
    """Which of them this is, from 0; the one thing that differs between them."""
    rendezvous_timeout_sec: float = 60.0
    """Seconds that the processes wait for one another when they start."""


def parse(arguments: Sequence[str]) -> tuple[str, TrainArguments]:
    """Returns the preset's name and its settings with what was typed put in.

    Raises:
        SettingsError: there is no such preset, or the settings do not fit together.
        SystemExit: tyro has shown the help (0) or a wrong field or value (2).
    """
    if not arguments or arguments[0] in ("--help", "-h"):
        print(_usage())
        raise SystemExit(0 if arguments else SettingsError.exit_code)
    preset, *rest = arguments
    require_preset(preset)
    config = PRESETS[preset]()
    own = [field.name for field in dataclasses.fields(TrainArguments) if field.name != "config"]
    parsed = parse_arguments(
        TrainArguments,
        rest,
        command=f"./tessera train {preset}",
        default=TrainArguments(config=config),
        description=inspect.getdoc(PRESETS[preset]),
        names=[f"--{name}" for name in (*flatten(config), *own)],
    )
    config = _with_whole_durable_dir(parsed.config)
    return preset, dataclasses.replace(parsed, config=config)


def require_preset(name: str) -> None:
    """Raises SettingsError unless there is a preset of this name."""
    names = list(PRESETS)
    require(
        name in PRESETS,
        f"preset {name} is not known{did_you_mean(name, names)}; there are: {', '.join(names)}",
    )


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
    given = config.model.vocab_size
    require(
        given == "tokenizer" or given >= size,
        f"model.vocab_size={given} must be at least {size}, the vocabulary of data.tokenizer="
        f"{config.data.tokenizer}: pass --model.vocab_size tokenizer, or a smaller tokenizer",
    )
    model = dataclasses.replace(config.model, vocab_size=size if given == "tokenizer" else given)
    return dataclasses.replace(config, data=with_whole_paths(config.data), model=model)


def prepared_before(config: RunConfig, folder: "RunFolder") -> dict[str, str] | None:
    """Returns where an earlier version has put what a run reads that began; None for a new run.

    Args:
        folder: of the run, or of one that it goes on with.

    What is prepared today is found by the digest of the text, so that a change of it is seen.
    """
    from data.token_store import is_of_earlier_format
    from train.checkpoints.folders import newest_progress

    if not folder.exists:
        return None
    progress = newest_progress(folder.checkpoints)
    old, new = folder.read_config().data, with_whole_paths(config.data)
    if progress is None or _last_parts(old) != _last_parts(new):
        return {}
    return {
        name: str(path)
        for name, folder in progress.data_folders.items()
        for path in (RUNS / ".data" / Path(folder).name, Path(folder))  # the first if it was moved
        if is_of_earlier_format(path)
    }


def _last_parts(config: DataConfig) -> list[str]:
    """Returns the names of what is read, which are the same where all of it was moved."""
    return [Path(path).name for path in (config.path or "", *config.mixture)]


def _with_whole_durable_dir(config: RunConfig) -> RunConfig:
    durable_dir = config.checkpoint.durable_dir
    if durable_dir is None:
        return config
    checkpoint = dataclasses.replace(config.checkpoint, durable_dir=whole_path(durable_dir))
    return dataclasses.replace(config, checkpoint=checkpoint)


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
