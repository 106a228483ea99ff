"""Checks that the state of a run fits into device memory, before it is made."""

import math
import os

import jax

from configs.require import require
from configs.run import RunConfig
from train.record.console import logger
from train.state import abstract_state, gradient_layout, on_devices, state_layout


def check_memory(config: RunConfig, mesh: jax.sharding.Mesh) -> None:
    """Logs the memory of the state per device; activations need more on top of it.

    Raises:
        SettingsError: state and gradients alone exceed the memory of a device.
    """
    available = device_memory_bytes(mesh)
    needed = state_bytes_per_device(config, mesh)
    message = f"parameters, optimizer state and gradients need {_size(needed)} per device"
    if available is None:
        logger.info(f"memory: {message}; the device does not report how much it has")
        return
    require(
        needed <= available,
        f"{message}, which has {_size(available)}: give a larger mesh.fsdp (now "
        f"{mesh.shape['fsdp']}), more devices, or mesh.offload_optimizer True",
    )
    logger.info(f"memory: {message}, which has {_size(available)}")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


def state_bytes_per_device(config: RunConfig, mesh: jax.sharding.Mesh) -> int:
    """Returns the bytes of parameters, optimizer state and one gradient on a device."""
    state, layout = abstract_state(config, mesh), state_layout(config, mesh)
    leaves = jax.tree.leaves((state, state.params))
    layouts = jax.tree.leaves((layout, gradient_layout(config, mesh)))
    return sum(
        math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, where in zip(leaves, layouts, strict=True)
        if where.memory_kind == on_devices(where).memory_kind
    )


def device_memory_bytes(mesh: jax.sharding.Mesh) -> int | None:
    """Returns the memory of a device of this process; a CPU device has a share of the host's."""
    device = next(d for d in mesh.devices.flat if d.process_index == jax.process_index())
    if device.platform == "cpu":
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return pages // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit")
