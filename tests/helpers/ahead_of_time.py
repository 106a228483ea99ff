"""Compiles the training step ahead of time: without arrays or data, perhaps without devices."""

from collections.abc import Mapping
from typing import Any

import jax

from configs.run import RunConfig
from sharding.rules import sharding
from train.loader import abstract_batch
from train.state import abstract_state
from train.step import compile_train_step


def compile_ahead_of_time(
    config: RunConfig,
    mesh: jax.sharding.Mesh,
    *,
    compiler_options: Mapping[str, Any] | None = None,
) -> jax.stages.Compiled:
    """Returns the training step, compiled for a mesh from the shapes of its arguments alone.

    The devices may be absent (jax.experimental.topologies): then the program can be analyzed
    (sharding.compiled) but not run. No mesh may be set around the call, because small arrays that
    are made on the way would be put on its devices.

    Args:
        config: with model.vocab_size set.
        compiler_options: of XLA, for this program only.
    """
    layout = sharding(mesh, "act_batch", "act_len")
    batch = abstract_batch(layout, config.train.batch_size, config.data)
    state = abstract_state(config, mesh)
    compiled = compile_train_step(config, state, batch, compiler_options=compiler_options)
    assert isinstance(compiled, jax.stages.Compiled)
    return compiled
