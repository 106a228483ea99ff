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
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from configs.check import require
from configs.counts import count
from configs.data import STDLIB, named
from configs.errors import SettingsError, Stopped
from configs.presets import PRESETS
from configs.run import RunConfig
from configs.settings import flatten
from data.text.sources import before_wildcard
from launch.arguments import did_you_mean, parse_arguments
from launch.cli import guarded
from launch.devices import describe_environment, prepare_jax
from launch.paths import whole_path, with_whole_paths
from launch.progress import Progress

if TYPE_CHECKING:
    from data.mixture import Data
    from train.loop import Outcome
    from train.run_folder import RunFolder

RUNS = Path("runs")
_OWN_ARGUMENTS = ("run_dir", "allow_changes", "virtual_devices")


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


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    started = time.perf_counter()
    preset, parsed = parse(arguments)
    command = shlex.join(("./tessera", "train", *arguments))
    prepare_jax(
        virtual_devices=parsed.virtual_devices, deterministic=parsed.config.train.deterministic
    )

    import jax

    from data.open_data import open_data
    from sharding.mesh import check_fit, make_mesh
    from train.checkpoint_files import checkpoint_steps, read_progress
    from train.log import log_to_console, log_to_file, logger
    from train.loop import train
    from train.run_folder import RunFolder
    from train.stop import StopSignals

    stop = StopSignals()
    stop.install()
    console = Console(highlight=False)
    log_to_console(console)

    # Everything that can be refused is refused here, before anything is compiled.
    folder = RunFolder(parsed.run_dir or default_run_dir(preset, parsed.config))
    folder.check_free()
    mesh = make_mesh(parsed.config.mesh)
    check_fit(parsed.config, dict(mesh.shape))
    with contextlib.closing(Progress(console)) as watch:
        data = open_data(parsed.config.data, RUNS / ".data", logger.info, watch=watch)
    config = resolve(parsed.config, data)
    check_fit(config, dict(mesh.shape))  # again, now that the vocabulary is known
    changed = (
        folder.check_settings(config, allow_changes=parsed.allow_changes) if folder.exists else {}
    )
    for step in checkpoint_steps(folder.checkpoints)[-1:]:
        read_progress(folder.checkpoints, step).check_continues(config, data.digest)

    with folder.held():
        environment = describe_environment()
        folder.begin(config, environment)
        log_to_file(folder.logs / f"process-{jax.process_index()}.log")
        folder.add_event("started", command=command, environment=environment)
        if changed:
            logger.warning(f"going on with other settings: {', '.join(changed)}")
            folder.add_event("changed", settings=changed)
        logger.info(_opening_words(folder, config, data, mesh))

        def run() -> int:
            with jax.set_mesh(mesh):
                outcome = train(config, folder, data, mesh, stop, console)
            logger.info(_closing_words(folder, outcome, time.perf_counter() - started))
            return 0

        code = guarded(run, go_on=command)
        if code not in (0, Stopped.exit_code):
            folder.add_event("failed", exit_code=code)
        return code


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


def _opening_words(folder: "RunFolder", config: RunConfig, data: "Data", mesh) -> str:
    counts = count(config.model, config.data.sequence_len)
    device = mesh.devices.flat[0]
    cuts = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    own = " (it differs a little from machine to machine)" if config.data.path == STDLIB else ""
    return (
        f"run folder: {folder.path}\n"
        f"text: {_text_words(config, data)}{own}\n"
        f"model: {counts.total / 1e6:.2f} M parameters; FLOPs a token: "
        f"{counts.flops_causal / 1e6:.1f} M causal, {counts.flops_full / 1e6:.1f} M full "
        f"(N = {counts.matmul / 1e6:.2f} M in matmuls)\n"
        f"devices: {mesh.size} x {device.device_kind} ({cuts})\n"
        f"batch: {config.train.batch_size} x {config.data.sequence_len} tokens, "
        f"{config.train.num_steps} steps"
    )


def _text_words(config: RunConfig, data: "Data") -> str:
    """Says what is read and how often; rows of different sources are of one length."""
    from data.batches import TrainRows

    train = config.train
    sequence = TrainRows(data, config.data, batch_size=train.batch_size, seed=train.seed)
    counts = sequence.schedule.counts(train.num_steps * train.batch_size)
    epochs = [count / len(rows) for count, rows in zip(counts, sequence.rows, strict=True)]
    if not data.is_mixture:
        return f"{config.data.path}, {epochs[0]:.3g} epochs"
    return ", ".join(
        f"{name} {count / sum(counts):.1%} ({epoch:.3g} epochs)"
        for (name, _), count, epoch in zip(data.sources, counts, epochs, strict=True)
    )


def _closing_words(folder: "RunFolder", outcome: "Outcome", seconds: float) -> str:
    record, path = outcome.record, folder.path
    words = ""
    sample = folder.samples / f"step-{record['step']:06d}.txt"
    if sample.exists():
        lines = sample.read_text().splitlines()[:12]
        words = "a sample of what it writes now:\n" + "".join(f"  | {line}\n" for line in lines)
    if "eval/loss" in record:
        words += (
            f"validation: {record['eval/loss']:.4f} nats per token, "
            f"{record['eval/bits_per_byte']:.3f} bits per byte, "
            f"on all {record['eval/tokens']:,} tokens\n"
        )
    return (
        f"{words}all of it is in {path}: metrics.jsonl, events.jsonl, checkpoints/, samples/\n"
        "to look closer:\n"
        f"  ./tessera status {path}\n"
        f"  .venv/bin/tensorboard --logdir {RUNS}\n"
        "  ./tessera train quickstart --data.path A_TEXT_OF_YOURS.txt\n"
        f"finished {record['step']} steps, {record['tokens']:,} tokens, in {seconds / 60:.1f} min; "
        f"to go on: ./tessera generate {path} --prompt 'import '"
    )
