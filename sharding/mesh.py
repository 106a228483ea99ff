"""The mesh of devices, and what a set of settings asks of it."""

import dataclasses
import math

import jax
from jax.sharding import AxisType

from configs.check import require
from configs.run import MeshConfig, RunConfig


def mesh_sizes(config: MeshConfig, num_devices: int) -> dict[str, int]:
    """Returns {axis: size} in the order of the settings, "rest" replaced by what is left.

    Raises:
        SettingsError: the sizes do not multiply to the number of devices.
    """
    asked: dict[str, int | str] = dataclasses.asdict(config)
    given = {axis: size for axis, size in asked.items() if isinstance(size, int)}
    product = math.prod(given.values())
    text = " x ".join(f"mesh.{axis}={size}" for axis, size in asked.items())
    way_out = f"this machine has {num_devices} devices (--virtual-devices N splits a CPU into N)"
    if len(given) == len(asked):
        require(product == num_devices, f"{text} is a mesh of {product}, but {way_out}")
    require(
        num_devices % product == 0,
        f"{text}: {product} must divide the number of devices, but {way_out}",
    )
    rest = num_devices // product
    return {axis: size if isinstance(size, int) else rest for axis, size in asked.items()}


def make_mesh(config: MeshConfig) -> jax.sharding.Mesh:
    """Returns a mesh over all devices, in the order that JAX finds best for their topology.

    Raises:
        SettingsError: the sizes do not multiply to the number of devices.
    """
    sizes = mesh_sizes(config, jax.device_count())
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes)
    )


def check_fit(config: RunConfig, sizes: dict[str, int]) -> None:
    """Refuses settings whose batch or shapes the mesh cannot cut evenly.

    The vocabulary is checked where it is known.

    Raises:
        SettingsError: names the field, both values and what would do.
    """
    replicas = sizes["data"] * sizes["fsdp"]
    train = config.train
    share = replicas * train.num_microbatches
    require(
        train.batch_size % share == 0,
        f"train.batch_size={train.batch_size} must be a multiple of {share}: mesh.data="
        f"{sizes['data']} x mesh.fsdp={sizes['fsdp']} x train.num_microbatches="
        f"{train.num_microbatches}",
    )
    eval_batch_size = config.eval.batch_size or train.batch_size
    require(
        eval_batch_size % replicas == 0,
        f"eval.batch_size={eval_batch_size} must be a multiple of {replicas}: mesh.data="
        f"{sizes['data']} x mesh.fsdp={sizes['fsdp']}",
    )
    model = config.model
    cuts = [
        ("num_heads", model.num_heads, "tensor"),
        ("num_kv_heads", model.num_kv_heads, "tensor"),
        ("mlp_dim", model.mlp_dim, "tensor"),
        ("embed_dim", model.embed_dim, "fsdp"),
    ]
    if model.vocab_size != "tokenizer":
        cuts.append(("vocab_size (padded)", model.num_padded_tokens, "tensor"))
    for name, value, axis in cuts:
        fitting = [str(n) for n in range(1, min(value, jax.device_count()) + 1) if value % n == 0]
        require(
            value % sizes[axis] == 0,
            f"model.{name}={value} must be a multiple of mesh.{axis}={sizes[axis]}; "
            f"mesh.{axis} may be {', '.join(fitting)}",
        )
