"""The training step: one pure function of (state, batch)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from configs.run import RunConfig
from data.batch import Batch
from sharding.rules import constrain
from train.loss import cross_entropy
from train.optimizer import Params, make_optimizer
from train.schedule import make_schedule
from train.state import ModelShape, TrainState, shape_of


class Metrics(NamedTuple):
    """What a step says of itself; all scalars."""

    loss: jax.Array
    """Cross entropy in nats per token, before the update."""
    grad_norm: jax.Array
    """Global norm of the gradient of that loss, before clipping."""
    learning_rate: jax.Array
    num_tokens: jax.Array
    """Targets that counted, int32."""
    finite: jax.Array
    """False if loss or gradient were not finite; then the update was left out."""


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(config: RunConfig) -> TrainStep:
    """Returns the step that the settings describe, to be compiled by the caller.

    Dropout is drawn from (seed, step, row of the global batch, layer), so that neither the mesh nor
    the number of microbatches changes it. A step whose loss or gradient is not finite leaves
    parameters and optimizer as they were; the step counter advances.
    """
    shape = shape_of(config.model)
    tx = make_optimizer(config.optim)
    schedule = make_schedule(config.optim, config.train.num_steps)
    dropout_key = jax.random.fold_in(jax.random.key(config.train.seed), 1)
    has_dropout = config.model.dropout > 0 or config.model.attention_dropout > 0

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        keys_B = None
        if has_dropout:
            step_key = jax.random.fold_in(dropout_key, state.step)
            rows_B = jnp.arange(batch.tokens_BT.shape[0])
            keys_B = jax.vmap(jax.random.fold_in, (None, 0))(step_key, rows_B)

        loss_sum, grads = _accumulate(
            shape, state.params, batch, keys_B, config.train.num_microbatches
        )
        weight = jnp.maximum(jnp.sum(batch.weights_BT), 1)
        loss, grads = loss_sum / weight, jax.tree.map(lambda g: g / weight, grads)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        learning_rate = jnp.asarray(schedule(state.step), jnp.float32)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
        num_tokens = jnp.sum(batch.weights_BT > 0, dtype=jnp.int32)
        metrics = Metrics(loss, grad_norm, learning_rate, num_tokens, finite)
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def _accumulate(
    shape: ModelShape,
    params: Params,
    batch: Batch,
    keys_B: jax.Array | None,
    num_microbatches: int,
) -> tuple[jax.Array, Params]:
    """Returns the summed loss of the batch and its gradient, computed in num_microbatches parts."""

    def loss_fn(params: Params, rows: tuple[Batch, jax.Array | None]) -> jax.Array:
        batch, keys_B = rows
        decoder = shape.merge(params)
        hidden_BTD = decoder(batch.tokens_BT, batch.positions_BT, batch.segments_BT, keys_B)
        return cross_entropy(decoder.logits(hidden_BTD), batch)

    loss_and_grad = jax.value_and_grad(loss_fn)
    if num_microbatches == 1:
        return loss_and_grad(params, (batch, keys_B))

    def cut(x: jax.Array) -> jax.Array:
        # Every num_microbatches-th row, so that each device keeps rows that it already has.
        parts = x.reshape(-1, num_microbatches, *x.shape[1:]).swapaxes(0, 1)
        return constrain(parts, None, "act_batch", *(None,) * (x.ndim - 1))

    def add(sums: tuple[jax.Array, Params], rows: tuple[Batch, jax.Array | None]):
        return jax.tree.map(jnp.add, sums, loss_and_grad(params, rows)), None

    zeros = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params))
    sums, _ = jax.lax.scan(add, zeros, jax.tree.map(cut, (batch, keys_B)))
    return sums


def compile_train_step(config: RunConfig, state: TrainState, batch: Batch) -> TrainStep:
    """Returns the compiled step for a state and batch of these shapes and layouts.

    The state that is passed in is given up: its memory becomes that of the state that comes out.
    """
    layout = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = jax.jit(make_train_step(config), donate_argnums=0, out_shardings=(layout, None))
    return step.lower(state, batch).compile()
