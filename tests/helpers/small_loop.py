"""A real run in this process, whose loop a test may take apart."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from small_data import data_config, steps_of
from small_runs import tiny_run, write_text

from data.open_data import open_data
from launch.train_settings import parse, resolve
from sharding.distributed.processes import ALONE
from sharding.mesh import make_mesh
from train.checkpoints.manifest import RunProgress
from train.record.run_folder import RunFolder
from train.record.spans import Spans
from train.run_context import RunContext
from train.step import Metrics


def open_run(folder: Path, *more: str) -> RunContext:
    """Returns a tiny run on text.txt in a folder, begun and not trained."""
    text = write_text(folder)
    path = "None" if "--data.mixture" in more else str(text)
    settings = tiny_run("--data.path", path, *more)
    config = parse(settings)[1].config
    data = open_data(config.data, folder / "cache", lambda line: None)
    run = RunFolder(folder / "run")
    run.path.mkdir()
    run.begin(resolve(config, data), {})
    return RunContext(
        config=resolve(config, data),
        folder=run,
        data=data,
        mesh=make_mesh(config.mesh),
        processes=ALONE,
        spans=Spans(),
    )


def progress(step: int = 0, **more: Any) -> RunProgress:
    """Returns where a run stands after a step."""
    steps = steps_of(data_config(), batch_size=8, seed=0)
    said = {"data_sha256": "d" * 64, "step_ranges": (steps,), **more}
    return RunProgress(step=step, tokens=128 * step, **said)


def metrics(loss: float = 3.0, *, finite: bool = True) -> Metrics:
    """Returns the metrics of a step of 128 tokens."""
    return Metrics(
        loss=jnp.float32(loss if finite else np.nan),
        grad_norm=jnp.float32(1.5),
        learning_rate=jnp.float32(1e-3),
        num_tokens=jnp.int32(128),
        finite=jnp.bool_(finite),
        aux_metrics={},
        layer_norms={"norm/scale": jnp.float32(2.0), "layers/mlp/up": jax.device_put(np.ones(2))},
    )
