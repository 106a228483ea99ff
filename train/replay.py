"""Computes a step twice from one state: a device that computes wrongly gives two answers."""

import hashlib
from collections.abc import Iterator

import jax
import numpy as np

from configs.check import require
from configs.errors import Corrupted
from configs.run import RunConfig
from data.batch import Batch
from sharding.paths import by_path
from sharding.processes import Processes
from train.recovery import Say, say_nothing
from train.state import TrainState
from train.step import Metrics, TrainStep

_NUM_ARRAYS = 3  # of those that differ that are named


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
    say: Say = say_nothing,
) -> tuple[TrainState, Metrics]:
    """Returns what a step gives, after it gave the same twice, bit for bit.

    For the time of it a second state is in the memory of the devices: the step gives up the one
    that it takes. Every process calls it.

    Raises:
        Corrupted: it gave two answers; the message names the devices that hold the differences.
    """
    first_state, first_metrics = train_step(_copy(state), batch)
    first = {path: _digests(array) for path, array in _arrays(first_state, first_metrics)}
    del first_state, first_metrics
    second_state, second_metrics = train_step(state, batch)
    differing: dict[str, list[str]] = {}
    for path, array in _arrays(second_state, second_metrics):
        for device, digest in _digests(array).items():
            if digest != first[path][device]:
                differing.setdefault(device, []).append(path)
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


def _arrays(state: TrainState, metrics: Metrics) -> Iterator[tuple[str, jax.Array]]:
    for name, tree in (("state", state), ("metrics", metrics)):
        for path, array in by_path(tree).items():
            yield f"{name}/{path}", array


def _digests(array: jax.Array) -> dict[str, str]:
    """Returns {device: digest} of the parts of an array that this process holds.

    A replica has a digest of its own: one of them may be wrong where the others agree.
    """
    return {
        str(shard.device): hashlib.sha256(np.asarray(shard.data).tobytes()).hexdigest()
        for shard in array.addressable_shards
    }
