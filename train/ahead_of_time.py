"""The compiled step of a run of which nothing exists yet: no array, no data, perhaps no device."""

from collections.abc import Mapping
from typing import Any

import jax

from configs.run import RunConfig
from sharding.rules import sharding
from train.loader import abstract_batch
from train.state import abstract_state
from train.step import compile_train_step


def compile_step(
    config: RunConfig,
    mesh: jax.sharding.Mesh,
    *,
    compiler_options: Mapping[str, Any] | None = None,
) -> jax.stages.Compiled:
    """Returns the training step, compiled for a mesh from the shapes of its arguments alone.

    The devices may be absent ones (jax.experimental.topologies): then the program can be read
    (sharding.program.describe) and not run. No mesh may be set around the call, because small
    arrays that are made on the way would go to its devices.

    Args:
        config: model.vocab_size is a number.
        compiler_options: of XLA, for this program alone.
    """
    layout = sharding(mesh, "act_batch", "act_len")
    batch = abstract_batch(layout, config.train.batch_size, config.data)
    state = abstract_state(config, mesh)
    compiled = compile_train_step(config, state, batch, compiler_options=compiler_options)
    assert isinstance(compiled, jax.stages.Compiled)
    return compiled
