"""`./tessera export RUN OUT`: a folder that `transformers` loads."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from configs.check import require
from configs.command_line import seen
from launch.absolute_paths import RUNS
from launch.arguments import parse_arguments
from launch.devices import prepare_jax
from launch.malloc import return_freed_memory

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Makes a model in the way of Hugging Face of a run."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    out: Annotated[Path, tyro.conf.Positional]
    """The folder to make."""
    step: int | None = None
    """Which checkpoint; None is the newest."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of the weights in the files."""
    shard_size: str = "5GB"
    """The most that a file holds, such as 500MB; a tensor that is larger has a file of its own."""
    json: bool = False
    """End with one JSON object on one line."""


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    parsed = parse_arguments(ExportArguments, arguments, command="./tessera export")
    shard_bytes = _bytes(parsed.shard_size)
    prepare_jax()
    return_freed_memory()

    from launch.saved_run import fully_sharded, open_run
    from model.hf.registry import find_family
    from train.hf import PUBLISHED, check_new, export_model
    from train.record.run_folder import RunFolder

    check_new(parsed.out, "OUT")
    config = RunFolder(parsed.run).read_config()
    find_family(config.model)  # refused before weights are read
    run = open_run(parsed.run, parsed.step, RUNS / ".data", fully_sharded(config), frugal=True)
    kept = parsed.run / PUBLISHED
    with run.on_mesh():
        difference = export_model(
            run.config,
            run.params,
            run.tokenizer,
            parsed.out,
            kept=kept if kept.is_dir() else None,
            dtype=parsed.dtype,
            shard_bytes=shard_bytes,
            say=lambda line: None if parsed.json else print(line),
        )
    family, _ = find_family(run.config.model)
    if parsed.json:
        said = {"step": run.step, "model_type": family.model_type, "difference": difference}
        print(json.dumps(said))
        return 0
    print(
        f"exported step {run.step} as {family.model_type} to {seen(parsed.out)}; the logits of the "
        f"exported model differ by {difference:.2g} at most"
    )
    return 0


def _bytes(size: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(KB|MB|GB)", size.upper())
    require(
        match is not None and float(match[1]) > 0,
        f"--shard-size={size} must be a number with KB, MB or GB, such as 5GB",
    )
    assert match is not None
    return int(float(match[1]) * _UNITS[match[2]])
