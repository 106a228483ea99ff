"""Runs a command with a fault: `python -m launch.faults.run_with_fault NAME FIRST LAST -- COMMAND`.

The product has no switch for faults: its functions are wrapped from outside. Faults are tied to
batches of the data order, so that a run that skips those does not meet them again.
"""

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import train.checkpoints.save
import train.loop
import train.run_context
import train.step
from data.batch import Batch
from data.step_ranges import StepRange
from launch.cli import main
from model.language_model import LanguageModel
from train.state import TrainState
from train.step import Metrics, TrainStep

_MARK = np.nextafter(np.float32(1), np.float32(2))
"""The weight of one token, a little above 1, by which the compiled step knows a bad batch."""
HUGE = 1e4
"""The factor of the gradient of a spike."""


def _marked(batch: Batch) -> Batch:
    weights_BT = np.array(batch.weights_BT)
    weights_BT[0, 0] = _MARK
    return batch._replace(weights_BT=weights_BT)


def _scrambled(batch: Batch) -> Batch:
    """Returns a batch of noise: uniformly random ids."""
    rng = np.random.default_rng(0)
    noise = {
        name: rng.integers(0, ids_BT.max() + 1, ids_BT.shape, ids_BT.dtype)
        for name in ("tokens_BT", "targets_BT")
        for ids_BT in (np.asarray(getattr(batch, name)),)
    }
    return batch._replace(**noise)


def _stalled(batch: Batch) -> Batch:
    time.sleep(3600)
    return batch


def _slow(batch: Batch) -> Batch:
    time.sleep(0.2)
    return batch


_BATCH_FAULTS = {"bad_batches": _scrambled, "stalled_data": _stalled, "slow_data": _slow}


def in_batches(corrupt: Callable[[Batch], Batch], first: int, last: int) -> None:
    """Spoils some batches of the sequence, wherever a run meets them."""
    original = train.run_context.train_batches

    def train_batches(data: Any, config: Any, steps: StepRange, **kwargs: Any) -> Any:
        def maybe(step: int, batch: Batch) -> Batch:
            return corrupt(batch) if first <= steps.row(step) // steps.batch_size <= last else batch

        return original(data, config, steps, **kwargs).map_with_index(maybe)

    train.run_context.train_batches = train_batches


def in_gradients(factor: float, array: str | None = None) -> None:
    """Multiplies gradients of a marked batch: all of them, or those of one array.

    The loss is unchanged, as with an operation whose backward pass alone overflows.
    """
    original = train.step.batch_sums

    def batch_sums(model: LanguageModel, batch: Batch, rng_B: jax.Array | None = None) -> Any:
        is_marked = jnp.any(batch.weights_BT > 1)

        def touch(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
            is_hit = array in (None, path[0].key)
            return _scaled(x, is_marked, factor) if is_hit else x

        graph, state = nnx.split(model)
        return original(nnx.merge(graph, jax.tree.map_with_path(touch, state)), batch, rng_B)

    train.step.batch_sums = batch_sums


def in_losses(factor: float) -> None:
    """Multiplies the loss of a marked batch."""
    original = train.step.batch_sums

    def batch_sums(model: LanguageModel, batch: Batch, rng_B: jax.Array | None = None) -> Any:
        sums = original(model, batch, rng_B)
        return sums._replace(
            loss_sum=sums.loss_sum * jnp.where(jnp.any(batch.weights_BT > 1), factor, 1.0)
        )

    train.step.batch_sums = batch_sums


def _scaled(x: jax.Array, is_marked: jax.Array, factor: float) -> jax.Array:
    """Returns x; multiplies its gradient."""

    @jax.custom_gradient
    def same(x: jax.Array) -> Any:
        return x, lambda grad: jnp.where(is_marked, grad * factor, grad)

    return same(x)


def flip_bit(array: jax.Array, device: Any) -> jax.Array:
    """Returns an array with one bit flipped on one device."""
    pieces = []
    for shard in array.addressable_shards:
        piece = np.array(shard.data)
        if shard.device == device:
            piece.view(np.uint8).reshape(-1)[0] ^= 1
        pieces.append(jax.device_put(piece, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, pieces)


def with_infinite_moment(state: TrainState) -> TrainState:
    """Returns a state in which a second moment of AdamW is infinite; losses are unchanged."""

    def touch(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        is_second = "nu" in jax.tree_util.keystr(path) and "norm" in jax.tree_util.keystr(path)
        return jax.device_put(jnp.full_like(x, jnp.inf), x.sharding) if is_second else x

    return state._replace(opt_state=jax.tree.map_with_path(touch, state.opt_state))


def with_flipped_bit(state: TrainState, device: Any = None) -> TrainState:
    """Returns a state with one bit flipped on one device; None is the last device here."""
    flip = functools.partial(flip_bit, device=device or jax.local_devices()[-1])
    norm = jax.tree.map(flip, state.params["norm"])
    return state._replace(params={**state.params, "norm": norm})


def after_call(
    train_step: TrainStep, call: int, change: Callable[[TrainState], TrainState]
) -> TrainStep:
    """Returns a step that changes what its n-th call returns, n = `call` from 1."""
    calls = 0

    def wrong(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        nonlocal calls
        calls += 1
        state, metrics = train_step(state, batch)
        return change(state) if calls == call else state, metrics

    return wrong


def in_a_state(call: int, change: Callable[[TrainState], TrainState]) -> None:
    """Changes the state that one call of the compiled step returns."""
    original = train.loop.compile_train_step

    def compile_train_step(*args: Any, **kwargs: Any) -> TrainStep:
        return after_call(original(*args, **kwargs), call, change)

    train.loop.compile_train_step = compile_train_step


def in_listings() -> None:
    """Hides every second file of a checkpoint from each process, another one from each."""
    original = train.checkpoints.save.list_files

    def list_files(checkpoint: Path) -> set[str]:
        return set(sorted(original(checkpoint))[jax.process_index() :: 2])

    train.checkpoints.save.list_files = list_files


_CHANGES = {"flipped_bit": with_flipped_bit, "infinite_moment": with_infinite_moment}


def compose(fault: str, first: int, last: int) -> None:
    """Wraps functions of the product with one fault.

    Args:
        first, last: batches of the data order from 0; of a fault of the state, the call of the
            step.
    """
    if fault in _CHANGES:
        in_a_state(first, _CHANGES[fault])
        return
    if fault == "stale_listing":
        in_listings()
        return
    corrupt = _BATCH_FAULTS.get(fault, _marked)
    if fault == "nan_gradient":
        in_gradients(float("nan"), "norm")
    elif fault == "spike":
        in_gradients(HUGE)
    elif fault == "infinite_loss":
        in_losses(float("inf"))
    in_batches(corrupt, first, last)


if __name__ == "__main__":
    name, first, last, separator, *command = sys.argv[1:]
    compose(name, int(first), int(last))
    sys.exit(main(command))
