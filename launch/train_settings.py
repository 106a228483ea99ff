"""The settings of a run: a preset, a file and flags that change it, and what its data says."""

import argparse
import dataclasses
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from configs.data import DataConfig, named
from configs.errors import SettingsError
from configs.presets.table import PRESETS
from configs.require import require
from configs.run import RunConfig
from data.prepare.text.source_files import before_wildcard
from launch.absolute_paths import RUNS, whole_path, with_whole_paths
from launch.arguments import did_you_mean, parse_arguments
from launch.config_file import apply_config_file
from launch.help import HELP, settings_of, value_text
from launch.preset_list import preset_list

if TYPE_CHECKING:
    from data.mixture import Data
    from train.record.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """Trains a preset. The same command again resumes its run."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    run_dir: Path | None = None
    """The run folder; None is runs/PRESET, or runs/PRESET-STEM once data.path is given."""
    config_file: Annotated[Path | None, tyro.conf.arg(name="config")] = None
    """Settings in place of the preset's: a .toml, or the config.json of a run; flags win."""
    print_config: bool = False
    """Print all settings as TOML, which --config reads, and start nothing."""
    init_from: str | None = None
    """Weights that a new run begins with: RUN, RUN@STEP or the folder of a Hugging Face model. The
    new run does not need that folder later."""
    with_optimizer: bool = False
    """With --init-from: take over optimizer state, step and position in the data too."""
    allow_changes: bool = False
    """Resume a run although a setting that changes training results is another one."""
    supervise: bool = False
    """Restart the run when it is stopped from outside, hangs, freezes or crashes, at most 10 times
    without a new checkpoint."""
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


_SHORT_HELP = (
    *("train.num_steps", "train.batch_size", "train.num_microbatches", "train.seed"),
    *("optim.peak_lr", "optim.schedule", "optim.num_warmup_steps", "optim.weight_decay"),
    *("data.path", "data.tokenizer", "data.vocab_size", "data.sequence_len", "data.objective"),
    *("model.num_layers", "model.embed_dim", "model.num_heads", "model.mlp_dim", "model.dropout"),
    *("model.dtype", "mesh.fsdp", "mesh.tensor"),
    *("run_dir", "config", "print_config", "init_from", "allow_changes", "supervise"),
)
"""The settings that are given most often, which --help shows."""


def parse(arguments: Sequence[str]) -> tuple[str, TrainArguments]:
    """Returns a name for the run and its settings: the preset's, a file's, and last the flags.

    The name is that of the preset, or without one that of the file.

    Raises:
        SettingsError: there is no such preset, or the settings do not fit together.
        SystemExit: the help was asked for and shown (0), or there is neither preset nor file (2).
    """
    path, rest = _config_file(arguments)
    name = rest.pop(0) if rest and not rest[0].startswith("-") else None
    is_help = any(word in HELP for word in rest)
    command, description, config = "./tessera train", None, None
    if name is not None:
        require_preset(name)
        command, config = f"{command} {name}", PRESETS[name]()
        description = _description(name, config) if is_help else None
    if path is not None:
        name = name or _name_of(path)
        command, config = f"{command} --config {path}", apply_config_file(path, config)
    if name is None or config is None:
        print(preset_list())
        raise SystemExit(0 if is_help else SettingsError.exit_code)
    parsed = parse_arguments(
        TrainArguments,
        rest,
        command=command,
        default=TrainArguments(config=config, config_file=path),
        description=description,
        names=_SHORT_HELP,
    )
    config = _with_whole_durable_dir(parsed.config)
    return name, dataclasses.replace(parsed, config=config)


def _config_file(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", default=[])
    try:
        found, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise SettingsError(f"--config must be followed by a file: {error}") from None
    require(len(found.config) < 2, f"--config is given twice: {', '.join(found.config)}")
    return (Path(found.config[0]).expanduser() if found.config else None), rest


def _description(preset: str, config: RunConfig) -> str:
    """Returns the description of a preset, and the settings that differ from their defaults.

    Those that the short help shows in any case are left out.
    """
    pairs = zip(settings_of(RunConfig, config), settings_of(RunConfig), strict=True)
    apart = [
        f"{each.name}={value_text(each.value)}"
        for each, default in pairs
        if each.value != default.value and each.name not in _SHORT_HELP
    ]
    return f"{PRESETS[preset].description}\n\nIt also sets {', '.join(apart)}."


def _name_of(path: Path) -> str:
    """Returns what a run is named after whose settings are a file's; config.json has its folder."""
    return path.absolute().parent.name if path.name == "config.json" else path.stem


def require_preset(name: str) -> None:
    names = list(PRESETS)
    known = textwrap.fill(" ".join(names), 78, break_on_hyphens=False)
    require(
        name in PRESETS,
        f"preset {name} is not known{did_you_mean(name, names)}; ./tessera train shows the size "
        f"and cost of each:\n{textwrap.indent(known, '  ')}",
    )


def run_dir_of(preset: str, parsed: TrainArguments) -> Path:
    return parsed.run_dir or default_run_dir(preset, parsed.config)


def default_run_dir(preset: str, config: RunConfig) -> Path:
    """Returns runs/PRESET, or runs/PRESET-STEM where data.path is not the preset's own."""
    path, mixture = config.data.path, config.data.mixture
    if mixture:
        return RUNS / "-".join((preset, *named(mixture, "data.mixture")))
    if path is None or preset not in PRESETS or path == PRESETS[preset]().data.path:
        return RUNS / preset
    fixed = before_wildcard(path)  # of a glob the folder without wildcards
    if fixed != path:
        fixed = fixed.rpartition("/")[0] or "."
    plain = re.sub(r"[^\w.-]+", "-", Path(whole_path(fixed)).stem).strip("-")
    return RUNS / f"{preset}-{plain or 'data'}"


def resolve(config: RunConfig, data: "Data") -> RunConfig:
    """Returns the settings with absolute paths and the vocabulary size of the tokenizer.

    Raises:
        SettingsError: model.vocab_size is too small, or the text is shorter than a sequence.
    """
    length = config.data.sequence_len
    for name, store in data.sources:
        num_tokens = store.train.num_tokens
        require(
            num_tokens > length,
            f"data.path={store.manifest['source']} ({name}) is too small: its {num_tokens} "
            f"training tokens must be more than data.sequence_len={length}; give more text or "
            "a shorter data.sequence_len",
        )
    size = data.tokenizer.vocab_size
    given = config.model.vocab_size
    require(
        given == "tokenizer" or given >= size,
        f"model.vocab_size={given} must be at least {size}, the vocabulary of data.tokenizer="
        f"{config.data.tokenizer}: pass --model.vocab-size tokenizer, or a smaller tokenizer",
    )
    model = dataclasses.replace(config.model, vocab_size=size if given == "tokenizer" else given)
    return dataclasses.replace(config, data=with_whole_paths(config.data), model=model)


def prepared_before(config: RunConfig, folder: "RunFolder") -> dict[str, str] | None:
    """Returns where an earlier version has prepared the data of a run; None for a new run.

    Args:
        folder: of the run, or of that whose optimizer state it takes.

    This version finds prepared data by the digest of the text, so that it notices a change.
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
    """Returns the file names of the data, which stay the same when all of it is moved."""
    return [Path(path).name for path in (config.path or "", *config.mixture)]


def _with_whole_durable_dir(config: RunConfig) -> RunConfig:
    durable_dir = config.checkpoint.durable_dir
    if durable_dir is None:
        return config
    checkpoint = dataclasses.replace(config.checkpoint, durable_dir=whole_path(durable_dir))
    return dataclasses.replace(config, checkpoint=checkpoint)
