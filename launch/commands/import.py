"""`./tessera import FOLDER --run-dir RUN`: makes a run from a Hugging Face model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from configs.suggested_commands import seen, tessera
from launch.arguments import parse_arguments
from launch.jax_setup import describe_environment, prepare_jax, return_freed_memory
from launch.next_commands import generate_hint
from train.record.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class ImportArguments:
    """Imports the folder of a Hugging Face model as a run."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Its folder: config.json, weights in safetensors, and its tokenizer."""
    run_dir: Path
    """The run folder to make."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of activations; parameters are float32."""


def main(arguments: Sequence[str]) -> int:
    parsed = parse_arguments(ImportArguments, arguments, command="./tessera import")
    prepare_jax()
    return_freed_memory()

    from data.tokenizers.hf_files import find_tokenizer_file
    from model.hf.folder import open_hf_model
    from sharding.distributed.processes import ALONE
    from train.hf import import_model

    hf_model = open_hf_model(parsed.folder.expanduser(), dtype=parsed.dtype)
    num = import_model(hf_model, parsed.run_dir, describe_environment(ALONE))
    has_tokenizer = find_tokenizer_file(hf_model.path) is not None
    run = parsed.run_dir
    train = tessera("train", "PRESET", "--data.path", "YOUR_TEXT", "--init-from", run)
    print(
        f"imported {hf_model.family.model_type}, {num / 1e6:,.1f} M parameters with "
        f"{'its tokenizer' if has_tokenizer else 'no tokenizer that can be read'}, to "
        f"{seen(run)}; next steps:"
    )
    if has_tokenizer:
        print(f"  {generate_hint(run, RunFolder(run).read_config())}")
    print(f"  {train}")
    return 0
