"""Pipeline parallelism: layers in stages, each on devices of its own, and their schedule.

The schedule is circular: each stage holds several groups of consecutive layers, and a microbatch
passes all stages once for each group. All stages compute at every tick; each then sends its result
to the next stage, and the last to the first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from configs.run import RunConfig
from sharding.layout_check import num_stage_microbatches
from sharding.rules import RULES

RunLayers = Callable[[Any, Any, Any], Any]
"""From (carry, inputs, layers [L, ...]) to the carry after the last of these layers."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """How the layers are split into stages; by default there is one.

    Source: Narayanan et al. 2021, Efficient large-scale language model training on GPU clusters,
    arXiv:2104.04473, section 2.2 (interleaved stages).
    """

    num_stages: int = 1
    num_groups: int = 1
    """Groups of layers that a stage holds."""
    num_microbatches: int = 1
    """Parts of a batch, a multiple of num_stages."""
    unrolls: bool = False
    """Whether model.num_unrolled_layers=auto is all layers on these devices, or one."""

    @property
    def num_ticks(self) -> int:
        """Times that every stage computes, on a microbatch or idly, in one pass."""
        return self.num_groups * self.num_microbatches + self.num_stages - 1

    @property
    def bubble_fraction(self) -> float:
        """The part of a stage's ticks in which it waits, from 0 to 1."""
        return (self.num_stages - 1) / self.num_ticks

    def layer_order(self, num_layers: int) -> np.ndarray:
        """Returns the number in the model of each layer of the stack, stage by stage, [L]."""
        groups = np.arange(num_layers).reshape(self.num_groups, self.num_stages, -1)
        return groups.swapaxes(0, 1).reshape(-1)


def pipeline_of(config: RunConfig, mesh: jax.sharding.Mesh) -> Pipeline:
    """Returns the stages that the settings ask for on a mesh."""
    num_stages = mesh.shape["stage"]
    return Pipeline(
        num_stages=num_stages,
        num_groups=config.mesh.num_stage_groups if num_stages > 1 else 1,
        num_microbatches=num_stage_microbatches(config, num_stages),
        unrolls=mesh.devices.flat[0].platform == "cpu",
    )


def run_stages(run: RunLayers, carry: Any, inputs: Any, layers_L: Any, pipeline: Pipeline) -> Any:
    """Returns the carry after the last layer, the layers run in stages.

    Letters: S stages, R groups of a stage, M microbatches. At tick t stage s has taken u = t - s
    turns: it computes microbatch u % M with its group u // M. `waiting` [S, M, ...] is read and
    written at stage 0 alone: a microbatch waits there for its next group, at last for the end.

    Carry and inputs are trees of arrays [B, ...]; layers_L are in the order of layer_order.
    """
    S, R, M = pipeline.num_stages, pipeline.num_groups, pipeline.num_microbatches

    def by_group(x_L: jax.Array) -> jax.Array:
        return _on_stages(x_L.reshape(S, R, -1, *x_L.shape[1:]))

    layers_SR = jax.tree.map(by_group, layers_L)
    inputs_M = jax.tree.map(lambda x: _microbatches(x, M), inputs)
    carry_M = jax.tree.map(lambda x: _microbatches(x, M), carry)

    def run_stage(layers_R: Any, carry: Any, inputs: Any, group: jax.Array) -> Any:
        layers = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, group, keepdims=False), layers_R
        )
        return run(carry, inputs, layers)

    on_all_stages = jax.vmap(run_stage, spmd_axis_name="stage")
    stage_S = jnp.arange(S)

    def tick(state: tuple[Any, Any], t: jax.Array) -> tuple[tuple[Any, Any], None]:
        waiting, arrived = state
        turn_S = t - stage_S
        group_S, micro_S = jnp.clip(turn_S // M, 0, R - 1), turn_S % M
        taken = jax.tree.map(
            lambda wait, came: _where(
                stage_S == 0, jax.lax.dynamic_index_in_dim(wait, t % M, 1, keepdims=False), came
            ),
            waiting,
            arrived,
        )
        inputs_S = jax.tree.map(lambda x_M: _on_stages(x_M[micro_S]), inputs_M)
        given = on_all_stages(layers_SR, taken, inputs_S, group_S)
        # Stage s + 1 has what stage s gave, and stage 0 what the last gave.
        arrived = jax.tree.map(lambda x: _on_stages(jnp.roll(x, 1, axis=0)), given)
        back = (t - (S - 1)) % M

        def put_back(wait: jax.Array, came: jax.Array) -> jax.Array:
            kept = jax.lax.dynamic_index_in_dim(wait, back, 1, keepdims=False)
            value = jnp.where(t >= S - 1, came, kept)
            return jax.lax.dynamic_update_index_in_dim(wait, value, back, 1)

        return (jax.tree.map(put_back, waiting, arrived), arrived), None

    # Every stage begins with real activations, so that an idle stage cannot overflow.
    arrived = jax.tree.map(lambda x: _on_stages(jnp.stack([x[0]] * S)), carry_M)
    waiting = jax.tree.map(
        lambda x: _on_stages(jnp.stack([x, *[jnp.zeros_like(x)] * (S - 1)])), carry_M
    )
    (waiting, _), _ = jax.lax.scan(tick, (waiting, arrived), jnp.arange(pipeline.num_ticks))
    return jax.tree.map(lambda x: _rows(x[0]), waiting)


def _microbatches(x: jax.Array, num_microbatches: int) -> jax.Array:
    """Returns [M, B / M, ...]: every M-th row, so that each device keeps rows that it has."""
    parts = x.reshape(-1, num_microbatches, *x.shape[1:]).swapaxes(0, 1)
    return _pin(parts, None, RULES["act_batch"])


def _rows(x: jax.Array) -> jax.Array:
    """Returns the rows of microbatches in their order, [B, ...]."""
    x = _pin(x, None, RULES["act_batch"])
    return _pin(x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), RULES["act_batch"])


def _on_stages(x: jax.Array) -> jax.Array:
    return _pin(x, RULES["layers"])


def _pin(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """Pins the first dims to mesh axes, and leaves the others to the compiler."""
    rest = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - len(axes))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes, *rest))


def _where(is_true_S: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.where(is_true_S.reshape(-1, *(1,) * (x.ndim - 1)), x, y)
