"""Computes a step twice from one state: a faulty device gives two different results."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from configs.errors import Corrupted
from configs.require import require
from configs.run import RunConfig
from data.batch import Batch
from sharding.distributed.processes import Processes
from sharding.tree_paths import by_path
from train.checkpoints.context import Emit, emit_nothing
from train.state import TrainState, on_devices
from train.step import Metrics, TrainStep

_NUM_ARRAYS = 3  # how many of the differing arrays are named
_LANES = (
    (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35),
    (0x27D4EB2F, 0x21F0AAAD, 0x735A2D97),
)
"""Odd constants of each sum of a digest: for the position of a word, and two for its mixing.

Source: Appleby 2016, MurmurHash3 (fmix32); Wellons 2018, hash-prospector (the second mix).
"""


def check_can_replay(config: RunConfig, platform: str) -> None:
    """Raises SettingsError if a step computed twice may differ on healthy devices."""
    period = config.guard.replay_every_steps
    require(
        period is None or platform != "gpu" or config.train.deterministic,
        f"guard.replay_every_steps={period} needs train.deterministic=True on a GPU, but it is "
        f"{config.train.deterministic}: the fastest kernels add in no fixed order",
    )


def step_twice(
    train_step: TrainStep,
    state: TrainState,
    batch: Batch,
    *,
    step: int,
    processes: Processes,
    emit: Emit = emit_nothing,
) -> tuple[TrainState, Metrics]:
    """Returns the result of a step that was computed twice with equal bits.

    Meanwhile a second state is in device memory, because the step donates its argument. Only
    digests are copied to the host. Every process calls it.

    Raises:
        Corrupted: the results differ; the message names the devices that hold the differences.
    """
    first_state, first_metrics = train_step(_copy(state), batch)
    first = digests({"state": first_state, "metrics": first_metrics})
    del first_state, first_metrics  # before the second is made: there may be no memory for three
    second_state, second_metrics = train_step(state, batch)
    second = digests({"state": second_state, "metrics": second_metrics})
    differing: dict[str, list[str]] = {}
    for device, paths in second.items():
        found_here = [path for path, digest in paths.items() if digest != first[device][path]]
        if found_here:
            differing[device] = found_here
    found = processes.gather("replayed step", differing)
    everywhere = processes.from_first("replayed", [each for each in found if each])
    if everywhere:
        devices = {name: paths for each in everywhere for name, paths in each.items()}
        arrays = next(iter(devices.values()))[:_NUM_ARRAYS]
        emit("corrupted", step=step, devices=sorted(devices), arrays=arrays)
        raise Corrupted(
            f"step {step} gave two different results from the same state and batch on "
            f"{', '.join(sorted(devices))} ({', '.join(arrays)} among others): a device there is "
            "faulty. Nothing of this step was kept; replace the machine and start again"
        )
    return second_state, second_metrics


def _copy(state: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: jax.device_put(leaf, leaf.sharding, may_alias=False), state)


def digests(tree: Any) -> dict[str, dict[str, tuple[int, int]]]:
    """Returns {device: {path: digest}} of the shards on each device of this process.

    Digests are computed on the devices, one for each replica, because a single replica may be
    wrong. Any one changed bit changes the digest.
    """
    arrays = by_path(tree)
    make = digest_maker(tuple(array.sharding for array in arrays.values()))
    return {
        f"{shard.device}": {
            path: (int(one), int(two))
            for path, (one, two) in zip(arrays, np.asarray(shard.data)[0], strict=True)
        }
        for shard in make(list(arrays.values())).addressable_shards
    }


@functools.cache
def digest_maker(layouts: tuple[NamedSharding, ...]) -> Callable[[list[jax.Array]], jax.Array]:
    """Returns the compiled function from arrays in these layouts to digests [device, array, 2].

    Each device reads its own shards, without any communication.
    """
    mesh = layouts[0].mesh

    def digest_shards(shards: list[jax.Array]) -> jax.Array:
        return jnp.stack([_digest(shard) for shard in shards])[None]

    digest_all = jax.shard_map(
        digest_shards,
        mesh=mesh,
        in_specs=([layout.spec for layout in layouts],),
        out_specs=PartitionSpec(mesh.axis_names),
        check_vma=False,  # which assumes that replicas are equal
    )

    @jax.jit
    def digest(arrays: list[jax.Array]) -> jax.Array:
        # The optimizer state may be in host memory.
        return digest_all(jax.device_put(arrays, on_devices(list(layouts))))

    return digest


def _digest(x: jax.Array) -> jax.Array:
    """Returns two sums of the words of an array, each word mixed with its position, uint32 [2].

    At one position the mixing is a bijection of the word; the order of the sum does not matter.
    """
    words = _words(x)
    position = jnp.zeros_like(words)
    for dim in range(words.ndim):
        along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, dim)
        position += along * np.uint32(math.prod(words.shape[dim + 1 :]) % 2**32)
    lanes = [_mixed(words, position, *lane) for lane in _LANES]
    # Both sums in one pass: on CPU two passes would each materialize their terms.
    zero, every_dim = np.uint32(0), range(words.ndim)
    return jnp.stack(jax.lax.reduce(lanes, [zero] * len(lanes), _add, every_dim))


def _add(one: list[jax.Array], other: list[jax.Array]) -> list[jax.Array]:
    return [x + y for x, y in zip(one, other, strict=True)]


def _words(x: jax.Array) -> jax.Array:
    """Returns the bits of each element as uint32; a wider element becomes several words."""
    if x.dtype == jnp.bool:
        return x.astype(jnp.uint32)
    bits = jnp.dtype(f"uint{8 * min(x.dtype.itemsize, 4)}")
    return jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32)


def _mixed(words: jax.Array, position: jax.Array, *lane: int) -> jax.Array:
    for_position, first, second = map(np.uint32, lane)
    words = (words ^ (position * for_position + second)) * first
    words = (words ^ (words >> 15)) * second
    return words ^ (words >> 16)
