"""`./tessera export RUN OUT`: writes a Hugging Face folder, which `transformers` loads."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from configs.require import require
from configs.suggested_commands import seen
from launch.absolute_paths import RUNS
from launch.arguments import RunPath, parse_arguments
from launch.jax_setup import prepare_jax, return_freed_memory

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Exports a run as the folder of a Hugging Face model."""

    run: RunPath
    """The run folder."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The folder to make."""
    step: int | None = None
    """Step of the checkpoint; None is the newest."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of the weights in the files."""
    shard_size: str = "5GB"
    """Largest size of a file, such as 500MB; a larger tensor has a file of its own."""
    json: bool = False
    """Print the result as one JSON object, on the last line."""


def main(arguments: Sequence[str]) -> int:
    parsed = parse_arguments(ExportArguments, arguments, command="./tessera export")
    shard_bytes = _bytes(parsed.shard_size)
    prepare_jax()
    return_freed_memory()

    from launch.saved_run import fully_sharded, open_run
    from train.hf import check_export, export_model
    from train.record.run_folder import RunFolder

    config = RunFolder(parsed.run).read_config()
    family = check_export(config.model, parsed.out)  # before weights are read
    run = open_run(parsed.run, parsed.step, RUNS / ".data", fully_sharded(config), frugal=True)
    with run.on_mesh():
        difference = export_model(
            run.config,
            run.params,
            run.tokenizer,
            parsed.out,
            run_dir=parsed.run,
            dtype=parsed.dtype,
            shard_bytes=shard_bytes,
            emit=lambda line: None if parsed.json else print(line),
        )
    if parsed.json:
        result = {"step": run.step, "model_type": family.model_type, "difference": difference}
        print(json.dumps(result))
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
        f"--shard-size={size} must be a number and KB, MB or GB, such as 5GB",
    )
    assert match is not None
    return int(float(match[1]) * _UNITS[match[2]])
