"""The mesh of devices: its axes, and the order of devices along them."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType

from configs.require import require
from configs.run import AXES, MeshConfig

_CROSSING = ("stage", "data", "fsdp")
"""Axes that may cross the slower network between slices, in this order."""


def mesh_sizes(config: MeshConfig, num_devices: int) -> dict[str, int]:
    """Returns {axis: size} from the outermost axis to the innermost, "rest" replaced.

    Raises:
        SettingsError: the sizes do not multiply to the number of devices.
    """
    asked = {axis: getattr(config, axis) for axis in AXES}
    product = math.prod(size for size in asked.values() if size != "rest")
    text = " x ".join(f"mesh.{axis}={size}" for axis, size in asked.items() if size != 1) or "1"
    way_out = f"there are {num_devices} devices (--virtual-devices N splits a CPU into N)"
    if "rest" not in asked.values():
        require(product == num_devices, f"{text} is a mesh of {product}, but {way_out}")
    require(
        num_devices % product == 0,
        f"{text}: {product} must divide the number of devices, but {way_out}",
    )
    rest = num_devices // product
    return {axis: rest if size == "rest" else size for axis, size in asked.items()}


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """Returns a mesh over all devices, ordered by JAX for their topology.

    With several slices, neighbours along every axis that does not cross them are in one slice.

    Raises:
        SettingsError: the sizes do not multiply to the number of devices, or the outermost axes
            cannot be divided among the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(config, len(devices))
    across = slices_along(sizes, config.num_slices)
    within = [sizes[axis] // across[axis] for axis in AXES]
    grids = [
        mesh_utils.create_device_mesh(within, part, allow_split_physical_axes=True)
        for part in _slices(devices, config.num_slices)
    ]
    # [slices...] x [within...] to one dim an axis, the slices the outer part of it.
    n = len(AXES)
    grid = np.stack(grids).reshape(*across.values(), *within)
    grid = grid.transpose([dim for i in range(n) for dim in (i, n + i)])
    grid = grid.reshape(*sizes.values())
    return jax.sharding.Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * n)


def slices_along(sizes: dict[str, int], num_slices: int) -> dict[str, int]:
    """Returns {axis: number of slices along it}; their product is num_slices.

    Raises:
        SettingsError: the outermost axes do not divide among the slices.
    """
    across = dict.fromkeys(sizes, 1)
    left = num_slices
    for axis in _CROSSING:
        across[axis] = math.gcd(sizes[axis], left)
        left //= across[axis]
    cut = " x ".join(f"mesh.{axis}={sizes[axis]}" for axis in _CROSSING)
    product = math.prod(sizes[axis] for axis in _CROSSING)
    fitting = [str(n) for n in range(1, product + 1) if product % n == 0]
    require(
        left == 1,
        f"mesh.num_slices={num_slices} must divide {cut}, the axes that may cross a slower "
        f"network; mesh.num_slices may be {', '.join(fitting)}",
    )
    return across


def _slices(devices: Sequence[Any], num_slices: int) -> list[list[Any]]:
    """Returns the devices of each slice: by slice_index, else in order of process and id.

    Raises:
        SettingsError: num_slices is not the number of slices, or does not divide the devices.
    """
    indices = [getattr(device, "slice_index", None) for device in devices]
    known = {index for index in indices if index is not None}
    if len(known) > 1:
        require(
            len(known) == num_slices,
            f"mesh.num_slices={num_slices} must be {len(known)}, the slices of these devices",
        )
        return [[d for d in devices if d.slice_index == i] for i in sorted(known)]
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    require(
        len(ordered) % num_slices == 0,
        f"mesh.num_slices={num_slices} must divide the number of devices, {len(ordered)}",
    )
    size = len(ordered) // num_slices
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]
