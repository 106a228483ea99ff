"""The loop over the layers of a model: a scan, with recomputation, in stages of a pipeline.

The layers are one module whose parameters are stacked, [L, ...]. The scan runs over their numbers
and parameters; whether a layer is local is known at compile time and repeats with a period.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

from configs.model import ModelConfig
from model.block import Block, LayerInputs
from model.dropout import fold
from model.moe.moe import RouterRecord
from model.parameters import stacked
from sharding.pipeline import Pipeline, run_stages

ApplyLayer = Callable[[Any, Any, jax.Array, Any], Any]
"""From (carry, inputs, the layer's number in model order, its parameters) to the next carry."""

Remat: TypeAlias = Callable[..., ApplyLayer]
"""From (layer, in_loop=) to the layer with what its backward pass computes again."""


def make_blocks(
    config: ModelConfig, num: int, *, axis: str = "layers", rngs: nnx.Rngs, **settings: Any
) -> Block:
    """Returns num blocks as one whose parameters are stacked, [L, ...], under a logical axis."""
    return stacked(lambda rngs: Block(config, rngs=rngs, **settings), num, axis, rngs)


def run_layers(
    layers: Any,
    x_BTD: jax.Array,
    inputs: LayerInputs,
    record: RouterRecord | None = None,
    *,
    row_index_T: jax.Array | None = None,
    first: int = 0,
    pipeline: Pipeline | None = None,
) -> tuple[jax.Array, RouterRecord | None]:
    """Returns the residual stream after all layers of a stack, and the sum of what routers did.

    Args:
        layers: a Block or a Cell whose parameters are stacked.
        record: what routers did before.
        first: number in the model of the first layer.
    """
    config, pipeline = layers.config, pipeline or Pipeline()
    graph, params_L = nnx.split(layers)

    def apply_layer(
        is_local: bool, carry: Any, inputs: LayerInputs, number: jax.Array, params: Any
    ) -> Any:
        x_BTD, record = carry
        layer = nnx.merge(graph, params)
        inputs = inputs._replace(rng_BT=fold(inputs.rng_BT, first + number))
        x_BTD, more = layer(x_BTD, inputs, row_index_T=row_index_T, is_local=is_local)
        if more is not None:
            assert record is not None
            record = record.add(more, number)
        return x_BTD, record

    period = [partial(apply_layer, config.is_local(first + i)) for i in range(config.period)]
    num_layers, num_unrolled = len(jax.tree.leaves(params_L)[0]), config.num_unrolled_layers
    if config.is_recurrent:
        num_unrolled = 1
    elif num_unrolled == "auto":
        num_unrolled = num_layers if pipeline.unrolls else 1
    run = partial(
        scan_layers,
        period,
        num_unrolled=num_unrolled,
        remat=partial(_with_remat, config),
        in_loop=pipeline.num_stages > 1,
    )
    layers_L = (jnp.asarray(pipeline.layer_order(num_layers)), params_L)
    if pipeline.num_stages == 1:
        return run((x_BTD, record), inputs, layers_L)
    return run_stages(run, (x_BTD, record), inputs, layers_L, pipeline)


def _as_it_is(apply_layer: ApplyLayer, *, in_loop: bool) -> ApplyLayer:
    return apply_layer


def scan_layers(
    period: Sequence[ApplyLayer],
    carry: Any,
    inputs: Any,
    layers_L: Any,
    *,
    num_unrolled: int = 1,
    remat: Remat = _as_it_is,
    in_loop: bool = False,
) -> Any:
    """Returns the carry after the last layer: whole periods in a scan, then the rest of one.

    Args:
        period: how the first layers are applied; those after them repeat it.
        layers_L: numbers and parameters of the layers, in the order they are applied in.
        num_unrolled: layers in an iteration of the scan, of which the largest divisor is taken.
        in_loop: all of it runs in a loop.
    """
    in_scan = [remat(apply_layer, in_loop=True) for apply_layer in period]
    outside = [remat(apply_layer, in_loop=in_loop) for apply_layer in period]
    num_layers = len(jax.tree.leaves(layers_L)[0])
    num_periods, num_left = divmod(num_layers, len(period))

    def apply_period(carry: Any, layers: Any) -> tuple[Any, None]:
        for i, apply_layer in enumerate(in_scan if num_periods > unroll else outside):
            number, params = _take(layers, i) if len(period) > 1 else layers
            carry = apply_layer(carry, inputs, number, params)
        return carry, None

    most = max(min(num_unrolled // len(period), num_periods), 1)
    unroll = next(n for n in range(most, 0, -1) if num_periods % n == 0)
    if num_periods:
        whole = jax.tree.map(lambda x_L: x_L[: num_layers - num_left], layers_L)
        if len(period) > 1:
            whole = jax.tree.map(lambda x_L: x_L.reshape(-1, len(period), *x_L.shape[1:]), whole)
        carry = jax.lax.scan(apply_period, carry, whole, unroll=unroll)[0]
    for i in range(num_left):
        number, params = _take(layers_L, num_layers - num_left + i)
        carry = outside[i](carry, inputs, number, params)
    return carry


def _take(tree_L: Any, i: int) -> Any:
    return jax.tree.map(lambda x_L: x_L[i], tree_L)


def _with_remat(config: ModelConfig, apply_layer: ApplyLayer, *, in_loop: bool) -> ApplyLayer:
    """Returns a layer with what its backward pass computes again.

    The backward pass of a loop is a loop of its own. Elsewhere both stand in one computation, where
    the compiler would find that the same is computed twice, and keep the first instead.
    """
    policies = jax.checkpoint_policies
    match "none" if config.is_recurrent else config.remat:
        case "none":
            return apply_layer
        case "dots":
            policy = policies.dots_with_no_batch_dims_saveable
            if config.num_experts is not None:  # whose grouped matmuls are no dots to JAX
                names = policies.save_only_these_names("gate", "up", "mlp_out")
                policy = policies.save_from_both_policies(policy, names)
        case "full":
            policy = policies.nothing_saveable
        case "named":
            policy = policies.save_and_offload_only_these_names(
                names_which_can_be_saved=list(config.remat_saved),
                names_which_can_be_offloaded=list(config.remat_offloaded),
                offload_src="device",
                offload_dst="pinned_host",
            )
    return jax.checkpoint(apply_layer, policy=policy, prevent_cse=not in_loop)
