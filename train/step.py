"""The training step: one pure function of (state, batch)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from configs.model import ModelConfig
from configs.run import RunConfig
from data.batch import Batch
from model.moe.moe import RouterSums
from model.transformer import balance_experts
from sharding.pipeline import pipeline_of
from sharding.rules import constrain
from sharding.tree_paths import by_path, nested
from train.checkpoints.renamed_arrays import with_first_names
from train.loss import Sums, aux_weights, batch_sums
from train.optimizer import Params, make_optimizer
from train.schedule import make_schedule
from train.state import TrainState, gradient_layout, on_devices, shape_of, state_layout


class Metrics(NamedTuple):
    """Metrics of a step; all scalars, except for the norms of layers."""

    loss: jax.Array
    """Cross entropy in nats per token, before the update."""
    grad_norm: jax.Array
    """Global norm of the gradient of that loss, before clipping."""
    learning_rate: jax.Array
    num_tokens: jax.Array
    """Tokens without padding, those of an encoder included, int32."""
    finite: jax.Array
    """False if the loss or the gradient was not finite; then the update was left out."""
    aux_metrics: dict[str, jax.Array]
    """Auxiliary losses and, with experts, routing statistics: the load-balance loss, 1 for an even
    load, the fraction of choices dropped for lack of capacity, and the load of each expert over its
    even share [E], the mean of all layers."""
    layer_norms: dict[str, jax.Array]
    """Gradient norm by path of the parameter; [L] in model order if it is stacked over layers."""


Microbatch = tuple[Batch, jax.Array | None]
"""A batch or a part of it, and an rng for each of its rows if there is dropout."""
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(config: RunConfig, mesh: jax.sharding.Mesh) -> TrainStep:
    """Returns the training step of the settings, to be compiled by the caller on this mesh.

    Dropout depends on (seed, step, row of the global batch, position in it, layer), so neither the
    mesh nor the number of microbatches changes it. A step whose loss or gradient is not finite
    leaves parameters and optimizer state unchanged; the step counter advances.
    """
    model = config.model
    pipeline = pipeline_of(config, mesh)
    shape = shape_of(model, pipeline)
    is_stacked = shape.is_stacked()
    order_L = pipeline.layer_order(model.num_stacked_layers)
    model_order_L = order_L.argsort()
    layout, grads_layout = state_layout(config, mesh), gradient_layout(config, mesh)
    tx = make_optimizer(config.optim, shape.axes())
    schedule = make_schedule(config.optim, config.train.num_steps)
    dropout_rng = jax.random.fold_in(jax.random.key(config.train.seed), 1)
    factors = {"next_sentence/loss": 1.0} if model.next_sentence else {}
    if model.mtp_depth:
        factors["future/loss"] = model.mtp_weight
    has_dropout = model.dropout > 0 or model.attention_dropout > 0

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng_B = None
        if has_dropout:
            step_rng = jax.random.fold_in(dropout_rng, state.step)
            rows_B = jnp.arange(batch.tokens_BT.shape[0])
            rng_B = jax.vmap(jax.random.fold_in, (None, 0))(step_rng, rows_B)
        weight = jnp.maximum(jnp.sum(batch.weights_BT), 1)
        weights = {name: jnp.maximum(x, 1) for name, x in aux_weights(model, batch).items()}
        num_routed = count_routed(model, jnp.sum(batch.segments_BT > 0, dtype=jnp.int32))

        def loss_fn(params: Params, part: Microbatch) -> tuple[jax.Array, Sums]:
            sums = batch_sums(shape.merge(params), *part)
            loss = sums.loss_sum / weight
            if sums.routers is not None:
                loss += model.balance_weight * sums.routers.balance / num_routed
                loss += model.router_z_weight * sums.routers.z / num_routed
            for name, factor in factors.items():
                loss += factor * sums.aux[name] / weights[name]
            return loss, sums

        def sums_and_grads(part: Microbatch) -> tuple[Sums, Params]:
            grads, sums = jax.grad(loss_fn, has_aux=True)(state.params, part)
            return sums, jax.lax.with_sharding_constraint(grads, grads_layout)

        sums, grads = _accumulate(sums_and_grads, (batch, rng_B), config.train.num_microbatches)
        loss = sums.loss_sum / weight
        layer_norms = _layer_norms(grads, is_stacked, model_order_L)
        norms = jax.tree.leaves(with_first_names(nested(layer_norms)))  # in their lasting order
        grad_norm = jnp.sqrt(sum(jnp.sum(jnp.square(norm)) for norm in norms))
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        learning_rate = jnp.asarray(schedule(state.step), jnp.float32)
        moments = state.opt_state
        if config.mesh.offload_optimizer:
            moments = jax.device_put(moments, on_devices(layout.opt_state))
        updates, opt_state = tx.update(grads, moments, state.params)
        params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state),
            (state.params, moments),
        )
        if model.router_bias:
            assert sums.routers is not None
            load_LE = sums.routers.load_LE[order_L]
            params = balance_experts(model, params, state.params, load_LE, finite)
        if config.mesh.offload_optimizer:
            opt_state = jax.device_put(opt_state, layout.opt_state)
        metrics = Metrics(
            loss=loss,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            num_tokens=_num_tokens(batch),
            finite=finite,
            aux_metrics={
                **{name: sums.aux[name] / weights[name] for name in sums.aux},
                **router_means(sums.routers, num_routed, model.num_active_experts),
            },
            layer_norms=layer_norms,
        )
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def _num_tokens(batch: Batch) -> jax.Array:
    num = jnp.sum(batch.segments_BT > 0, dtype=jnp.int32)
    if batch.encoder is None:
        return num
    return num + jnp.sum(batch.encoder.segments_BS > 0, dtype=jnp.int32)


def _accumulate(
    sums_and_grads: Callable[[Microbatch], tuple[Sums, Params]],
    batch: Microbatch,
    num_microbatches: int,
) -> tuple[Sums, Params]:
    """Returns the sums and the gradient of a batch, accumulated over microbatches."""
    if num_microbatches == 1:
        return sums_and_grads(batch)

    def split(x: jax.Array) -> jax.Array:
        # Every num_microbatches-th row, so that each device keeps the rows it already has.
        parts = x.reshape(-1, num_microbatches, *x.shape[1:]).swapaxes(0, 1)
        return constrain(parts, None, "act_batch", *(None,) * (x.ndim - 1))

    def add(total: tuple[Sums, Params], part: Microbatch) -> tuple[tuple[Sums, Params], None]:
        return jax.tree.map(jnp.add, total, sums_and_grads(part)), None

    parts = jax.tree.map(split, batch)
    shapes = jax.eval_shape(sums_and_grads, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, parts)[0]


def _layer_norms(
    grads: Params, is_stacked: Params, model_order_L: np.ndarray
) -> dict[str, jax.Array]:
    """Returns the norm of each array, or of each of its layers, by path; all are replicated."""

    def norm(grad: jax.Array, stacked: bool) -> jax.Array:
        squares = jnp.square(grad.astype(jnp.float32))
        if not stacked:
            return jnp.sqrt(jnp.sum(squares))
        sums_L = constrain(jnp.sum(squares, axis=range(1, grad.ndim)), None)
        return jnp.sqrt(sums_L)[model_order_L]

    return by_path(jax.tree.map(norm, grads, is_stacked))


def count_routed(model: ModelConfig, num_tokens: jax.Array) -> jax.Array:
    """Returns the number of tokens of a batch times the layers that route them, at least one token.

    Float32, because times layers and choices a large batch exceeds int32.
    """
    return model.num_stacked_layers * jnp.maximum(num_tokens, 1).astype(jnp.float32)


def router_means(
    sums: RouterSums | None, num_routed: jax.Array, num_active_experts: int | None
) -> dict[str, jax.Array]:
    """Returns routing statistics by the names of metrics.jsonl; empty without experts."""
    if sums is None:
        return {}
    assert num_active_experts is not None
    num_choices = num_routed * num_active_experts
    load_E = jnp.sum(sums.load_LE.astype(jnp.float32), axis=0)
    return {
        "moe/balance": sums.balance / num_routed,
        "moe/z": sums.z / num_routed,
        "moe/dropped_fraction": sums.dropped / num_choices,
        "moe/load": load_E * len(load_E) / num_choices,
    }


def compile_train_step(
    config: RunConfig,
    state: TrainState,
    batch: Batch,
    *,
    compiler_options: Mapping[str, Any] | None = None,
) -> TrainStep:
    """Returns the compiled step for a state and batch of these shapes and layouts.

    It donates its state: the returned state takes over the memory.
    """
    layout = jax.tree.map(lambda leaf: leaf.sharding, state)
    mesh = batch.tokens_BT.sharding.mesh
    train_step = make_train_step(config, mesh)
    step = jax.jit(train_step, donate_argnums=0, out_shardings=(layout, None))
    with jax.set_mesh(mesh):
        return step.lower(state, batch).compile(dict(compiler_options or {}))
