"""The layers of a model, one after the other on every device or in stages with a part on each.

With stages the schedule is circular: each stage holds several groups of consecutive layers, and a
microbatch goes around the stages once for each group. All stages compute at every tick, what they
have sent moves on by one, and the last hands back to the first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from configs.run import RunConfig
from sharding.fit import num_stage_microbatches
from sharding.rules import RULES

Carry = TypeVar("Carry")
Rows = TypeVar("Rows")

ApplyLayer = Callable[[Carry, Rows, jax.Array, Any], Carry]
"""From (what the layer before gave, what belongs to the rows, the layer's number in model order,
its parameters) to what it gives."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """How the layers are cut into stages; the default is not at all.

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
        """Returns which layer of the model each place of the stack holds, stage by stage, [L]."""
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


def run_layers(
    apply_layers: Sequence[ApplyLayer[Carry, Rows]],
    carry: Carry,
    rows: Rows,
    params_L: Any,
    pipeline: Pipeline,
    *,
    num_unrolled: int = 1,
) -> Carry:
    """Returns what the last layer gives.

    Args:
        apply_layers: for the first layers; those after them repeat the same period.
        carry, rows: trees of arrays [B, ...].
        params_L: a tree of arrays [L, ...] in the order of pipeline.layer_order.
        num_unrolled: layers in an iteration of the scan, of which the largest divisor is taken.
    """
    num_layers = jax.tree.leaves(params_L)[0].shape[0]
    numbers_L = jnp.asarray(pipeline.layer_order(num_layers))
    if pipeline.num_stages == 1:
        return _scan(apply_layers, carry, rows, numbers_L, params_L, num_unrolled)
    return _circulate(apply_layers, carry, rows, numbers_L, params_L, pipeline, num_unrolled)


def _scan(
    apply_layers: Sequence[ApplyLayer[Carry, Rows]],
    carry: Carry,
    rows: Rows,
    numbers_L: jax.Array,
    params_L: Any,
    num_unrolled: int,
) -> Carry:
    """Applies whole periods of layers in a scan, and those of a last one that is cut short."""
    period, num_layers = len(apply_layers), len(numbers_L)
    num_periods = num_layers // period

    def body(carry: Carry, layers: tuple[jax.Array, Any]) -> tuple[Carry, None]:
        for place, apply_layer in enumerate(apply_layers):
            number, params = _take(layers, place) if period > 1 else layers
            carry = apply_layer(carry, rows, number, params)
        return carry, None

    layers_L = (numbers_L, params_L)
    if num_periods:
        whole = jax.tree.map(lambda x_L: x_L[: num_periods * period], layers_L)
        if period > 1:
            whole = jax.tree.map(lambda x_L: x_L.reshape(-1, period, *x_L.shape[1:]), whole)
        most = max(min(num_unrolled // period, num_periods), 1)
        unroll = next(n for n in range(most, 0, -1) if num_periods % n == 0)
        carry = jax.lax.scan(body, carry, whole, unroll=unroll)[0]
    for place in range(num_layers % period):
        number, params = _take(layers_L, num_periods * period + place)
        carry = apply_layers[place](carry, rows, number, params)
    return carry


def _take(tree_L: Any, place: int) -> Any:
    return jax.tree.map(lambda x_L: x_L[place], tree_L)


def _circulate(
    apply_layers: Sequence[ApplyLayer[Carry, Rows]],
    carry: Carry,
    rows: Rows,
    numbers_L: jax.Array,
    params_L: Any,
    pipeline: Pipeline,
    num_unrolled: int,
) -> Carry:
    """Runs the layers in stages.

    Letters: S stages, R groups of a stage, M microbatches. At tick t stage s has taken u = t - s
    turns: it computes microbatch u % M with its group u // M. `waiting` [S, M, ...] is read and
    written at stage 0 alone: a microbatch waits there for its next round, at last for the end.
    """
    S, R, M = pipeline.num_stages, pipeline.num_groups, pipeline.num_microbatches

    def by_group(x_L: jax.Array) -> jax.Array:
        return _on_stages(x_L.reshape(S, R, -1, *x_L.shape[1:]))

    layers_SR = jax.tree.map(by_group, (numbers_L, params_L))
    rows_M = jax.tree.map(lambda x: _microbatches(x, M), rows)
    carry_M = jax.tree.map(lambda x: _microbatches(x, M), carry)

    def run_stage(layers_R: Any, carry: Carry, rows: Rows, group: jax.Array) -> Carry:
        numbers, params = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, group, keepdims=False), layers_R
        )
        return _scan(apply_layers, carry, rows, numbers, params, num_unrolled)

    run_stages = jax.vmap(run_stage, spmd_axis_name="stage")
    stage_S = jnp.arange(S)

    def tick(state: tuple[Carry, Carry], t: jax.Array) -> tuple[tuple[Carry, Carry], None]:
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
        rows_S = jax.tree.map(lambda x_M: _on_stages(x_M[micro_S]), rows_M)
        given = run_stages(layers_SR, taken, rows_S, group_S)
        # Stage s + 1 has what stage s gave, and stage 0 what the last gave.
        arrived = jax.tree.map(lambda x: _on_stages(jnp.roll(x, 1, axis=0)), given)
        back = (t - (S - 1)) % M

        def put_back(wait: jax.Array, came: jax.Array) -> jax.Array:
            kept = jax.lax.dynamic_index_in_dim(wait, back, 1, keepdims=False)
            value = jnp.where(t >= S - 1, came, kept)
            return jax.lax.dynamic_update_index_in_dim(wait, value, back, 1)

        return (jax.tree.map(put_back, waiting, arrived), arrived), None

    # Every stage begins with real activations, so that nothing idle can overflow.
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
    """Pins the first dim to the stages."""
    return _pin(x, RULES["layers"])


def _pin(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """Pins the first dims to mesh axes, and leaves the others to the compiler."""
    rest = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - len(axes))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes, *rest))


def _where(is_true_S: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.where(is_true_S.reshape(-1, *(1,) * (x.ndim - 1)), x, y)
