"""`./tessera generate RUN --prompt ...`: text from a checkpoint."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from configs.require import require
from launch.absolute_paths import RUNS
from launch.arguments import SavedRunArguments, parse_saved_run
from launch.jax_setup import prepare_jax


@dataclass(frozen=True, kw_only=True)
class GenerateArguments(SavedRunArguments):
    """Generates text that begins with a prompt."""

    prompt: tuple[str, ...] = ("",)
    """What each text begins with; an empty prompt begins a document."""
    num_tokens: int | None = None
    """Tokens after each prompt; None takes sample.num_tokens of the run."""
    temperature: float | None = None
    """Logits are divided by it; 0 is greedy; None takes sample.temperature of the run."""
    seed: int = 0
    """Seed of the sampling; the same seed gives the same text."""


def main(arguments: Sequence[str]) -> int:
    parsed, mesh = parse_saved_run(GenerateArguments, arguments, command="./tessera generate")
    prepare_jax(virtual_devices=parsed.virtual_devices)

    from launch.saved_run import open_run
    from sharding.pipeline import pipeline_of
    from train.generation.generate import make_generate

    run = open_run(parsed.run, parsed.step, RUNS / ".data", mesh)
    require(
        run.tokenizer is not None,
        f"{parsed.run} has no tokenizer (data.tokenizer={run.config.data.tokenizer}), because its "
        "model came without one: import it again from a folder with tokenizer.json or a .model",
    )
    assert run.tokenizer is not None
    asked = {"num_tokens": parsed.num_tokens, "temperature": parsed.temperature}
    sample = dataclasses.replace(
        run.config.sample, **{name: value for name, value in asked.items() if value is not None}
    )
    generate = make_generate(
        run.config.model,
        sample,
        run.tokenizer,
        run.config.data.sequence_len,
        run.config.data.target_len,
        pipeline_of(run.config, run.mesh),
    )
    with run.on_mesh():
        for text in generate(run.params, parsed.prompt, parsed.seed):
            print(text)
    return 0
