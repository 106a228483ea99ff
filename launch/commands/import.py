"""`./tessera import FOLDER --run-dir RUN`: a run that has the weights of a Hugging Face model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from configs.check import require
from configs.command_line import seen, tessera
from launch.arguments import parse_arguments
from launch.devices import describe_environment, prepare_jax
from launch.hints import generate_hint
from launch.malloc import return_freed_memory
from train.record.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class ImportArguments:
    """Makes a run folder of a model in the way of Hugging Face."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Its folder: config.json, weights in safetensors, and its tokenizer."""
    run_dir: Path
    """The run folder to make."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of activations; parameters are float32."""


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    parsed = parse_arguments(ImportArguments, arguments, command="./tessera import")
    prepare_jax()
    return_freed_memory()

    from data.open_data import given_tokenizer
    from model.hf.folder import open_published
    from sharding.distributed.processes import ALONE
    from train.hf import import_model, run_of

    found = open_published(parsed.folder.expanduser(), dtype=parsed.dtype)
    if found.tokenizer is not None:
        tokenizer = given_tokenizer(run_of(found, str(found.tokenizer)).data)
        size, num_tokens = tokenizer.vocab_size if tokenizer else 0, found.config.num_tokens
        require(
            size <= num_tokens or found.config.architecture != "decoder",
            f"{found.tokenizer} has {size} tokens, and config.json: vocab_size={num_tokens} must "
            "be at least that: give the folder its own tokenizer",
        )
    num = import_model(found, parsed.run_dir, describe_environment(ALONE))
    has = "its tokenizer" if found.tokenizer else "no tokenizer that can be read"
    run = parsed.run_dir
    train = tessera("train", "PRESET", "--data.path", "YOUR_TEXT", "--init-from", run)
    print(
        f"imported {found.family.model_type}, {num / 1e6:,.1f} M parameters with {has}, to "
        f"{seen(run)}; next steps:"
    )
    if found.tokenizer is not None:
        print(f"  {generate_hint(run, RunFolder(run).read_config())}")
    print(f"  {train}")
    return 0
