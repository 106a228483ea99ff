"""`./tessera eval RUN`: the loss of a checkpoint on the validation split."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

from configs.require import require
from configs.suggested_commands import tessera
from launch.absolute_paths import RUNS
from launch.arguments import SavedRunArguments, parse_saved_run
from launch.jax_setup import prepare_jax


@dataclass(frozen=True, kw_only=True)
class EvalArguments(SavedRunArguments):
    """Evaluates a checkpoint on the validation sets of its run, or on eval.max_tokens of each."""

    json: bool = False
    """Print the result as one JSON object, on the last line."""


def main(arguments: Sequence[str]) -> int:
    parsed, mesh = parse_saved_run(EvalArguments, arguments, command="./tessera eval")
    prepare_jax(virtual_devices=parsed.virtual_devices)

    from launch.saved_run import open_run
    from train.evaluate import Evaluator

    run = open_run(parsed.run, parsed.step, RUNS / ".data", mesh)
    require(
        run.data is not None,
        f"{parsed.run} has no data: data.path=None, because its model was imported; train it: "
        + tessera("train", "PRESET", "--data.path", "YOUR_TEXT", "--init-from", parsed.run),
    )
    assert run.data is not None
    evaluator = Evaluator(run.config, run.data, run.mesh)
    require(bool(evaluator.sets), f"{parsed.run} has no validation set: train with data.validation")
    with run.on_mesh():
        evaluation = evaluator(run.params)
    if parsed.json:
        scores = dataclasses.asdict(evaluation)
        print(json.dumps({"step": run.step, **scores["total"], "sets": scores["sets"]}))
        return 0
    print(f"{parsed.run} at step {run.step}: {evaluation.total.describe()}")
    if len(evaluation.sets) > 1:
        for name, score in evaluation.sets.items():
            print(f"  {name}: {score.describe()}")
    return 0
