"""Computes a step twice from one state: a device that computes wrongly gives two answers."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from configs.check import require
from configs.errors import Corrupted
from configs.run import RunConfig
from data.batch import Batch
from sharding.distributed.processes import Processes
from sharding.tree_paths import by_path
from train.checkpoints.context import Emit, emit_nothing
from train.state import TrainState, on_devices
from train.step import Metrics, TrainStep

_NUM_ARRAYS = 3  # of those that differ that are named
_LANES = (
    (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35),
    (0x27D4EB2F, 0x21F0AAAD, 0x735A2D97),
)
"""Odd constants of each sum of a digest: of the place of a word, and two of what mixes it.

Source: Appleby 2016, MurmurHash3 (fmix32); Wellons 2018, hash-prospector (the second mix).
"""


def check_can_replay(config: RunConfig, platform: str) -> None:
    """Raises SettingsError where two runs of one step may differ though nothing is wrong."""
    period = config.guard.replay_every_steps
    require(
        period is None or platform != "gpu" or config.train.deterministic,
        f"guard.replay_every_steps={period} needs train.deterministic=True on a GPU, but it is "
        f"{config.train.deterministic}: the kernels chosen for speed add in no fixed order",
    )


def step_twice(
    train_step: TrainStep,
    state: TrainState,
    batch: Batch,
    *,
    step: int,
    processes: Processes,
    say: Emit = emit_nothing,
) -> tuple[TrainState, Metrics]:
    """Returns what a step gives, after it gave the same twice, bit for bit.

    For the time of it a second state is in the memory of the devices: the step gives up the one
    that it takes. Nothing of either comes to the host but its digests. Every process calls it.

    Raises:
        Corrupted: it gave two answers; the message names the devices that hold the differences.
    """
    first_state, first_metrics = train_step(_copy(state), batch)
    first = digests({"state": first_state, "metrics": first_metrics})
    del first_state, first_metrics  # before the second is made: there may be no room for three
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
        say("corrupted", step=step, devices=sorted(devices), arrays=arrays)
        raise Corrupted(
            f"step {step} gave two different results from the same state and batch on "
            f"{', '.join(sorted(devices))} (among them {', '.join(arrays)}): a device there "
            "computes wrongly. Nothing of this step was kept; take the machine out and start again"
        )
    return second_state, second_metrics


def _copy(state: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: jax.device_put(leaf, leaf.sharding, may_alias=False), state)


def digests(tree: Any) -> dict[str, dict[str, tuple[int, int]]]:
    """Returns {device: {path: digest}} of what each device of this process holds of the arrays.

    They are made where the arrays are, and each replica has its own: one of them may be wrong where
    the others agree. Any one bit that changes changes a digest.
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
    """Returns the compiled function from arrays that lie so to digests [device, array, 2].

    Each device reads what it holds, and none hears of another.
    """
    mesh = layouts[0].mesh

    def digest_shards(shards: list[jax.Array]) -> jax.Array:
        return jnp.stack([_digest(shard) for shard in shards])[None]

    digest_all = jax.shard_map(
        digest_shards,
        mesh=mesh,
        in_specs=([layout.spec for layout in layouts],),
        out_specs=PartitionSpec(mesh.axis_names),
        check_vma=False,  # replicas are said to be equal, which is the question
    )

    @jax.jit
    def digest(arrays: list[jax.Array]) -> jax.Array:
        # Moments may be in the memory of the host.
        return digest_all(jax.device_put(arrays, on_devices(list(layouts))))

    return digest


def _digest(x: jax.Array) -> jax.Array:
    """Returns two sums of the words of an array, each word mixed with its place, uint32 [2].

    For one place the mixing is a bijection of the word, and a sum has whatever order it likes.
    """
    words = _words(x)
    place = jnp.zeros_like(words)
    for dim in range(words.ndim):
        along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, dim)
        place += along * np.uint32(math.prod(words.shape[dim + 1 :]) % 2**32)
    lanes = [_mixed(words, place, *lane) for lane in _LANES]
    # Both sums in one pass: on CPU two of them would each write out what they add first.
    zero, every_dim = np.uint32(0), range(words.ndim)
    return jnp.stack(jax.lax.reduce(lanes, [zero] * len(lanes), _add, every_dim))


def _add(one: list[jax.Array], other: list[jax.Array]) -> list[jax.Array]:
    return [x + y for x, y in zip(one, other, strict=True)]


def _words(x: jax.Array) -> jax.Array:
    """Returns the bits of each element as uint32, of one with more bits in several words."""
    if x.dtype == jnp.bool:
        return x.astype(jnp.uint32)
    bits = jnp.dtype(f"uint{8 * min(x.dtype.itemsize, 4)}")
    return jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32)


def _mixed(words: jax.Array, place: jax.Array, *lane: int) -> jax.Array:
    of_place, first, second = map(np.uint32, lane)
    words = (words ^ (place * of_place + second)) * first
    words = (words ^ (words >> 15)) * second
    return words ^ (words >> 16)
