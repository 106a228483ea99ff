"""Whether the state of a run fits on the devices that are here, said before it is made there."""

import math
import os
from collections.abc import Iterable
from typing import Any

import jax

from configs.check import require
from configs.run import RunConfig
from train.record.console import logger
from train.state import abstract_state, gradient_layout, on_devices, state_layout


def check_memory(config: RunConfig, mesh: jax.sharding.Mesh) -> None:
    """Says what the state takes on each device; activations come on top of it.

    Raises:
        SettingsError: state and gradients alone are more than a device has.
    """
    has = device_memory_bytes(mesh)
    needs = state_bytes_per_device(config, mesh)
    words = f"parameters, optimizer state and gradients take {_size(needs)} of each device"
    if has is None:
        logger.info(f"memory: {words}, which does not say how much it has")
        return
    require(
        needs <= has,
        f"{words}, which has {_size(has)}: give a larger mesh.fsdp (it is {mesh.shape['fsdp']}), "
        "more devices, or mesh.offload_optimizer True",
    )
    logger.info(f"memory: {words}, which has {_size(has)}")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


def state_bytes_per_device(config: RunConfig, mesh: jax.sharding.Mesh) -> int:
    """Returns the bytes of parameters, optimizer state and gradients on the fullest device."""
    state, layout = abstract_state(config, mesh), state_layout(config, mesh)
    on_device = [
        (leaf, where)
        for leaf, where in zip(jax.tree.leaves(state), jax.tree.leaves(layout), strict=True)
        if where.memory_kind == on_devices(where).memory_kind
    ]
    gradients = zip(
        jax.tree.leaves(state.params), jax.tree.leaves(gradient_layout(config, mesh)), strict=True
    )
    return _bytes((*on_device, *gradients))


def _bytes(leaves: Iterable[tuple[Any, Any]]) -> int:
    return sum(
        math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, where in leaves
    )


def device_memory_bytes(mesh: jax.sharding.Mesh) -> int | None:
    """Returns the memory of a device of this process; of a CPU its share of the machine's."""
    device = next(d for d in mesh.devices.flat if d.process_index == jax.process_index())
    if device.platform == "cpu":
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return pages // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit")
