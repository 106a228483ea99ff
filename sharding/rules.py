"""The alphabet of array axes and the one table that maps logical axes to mesh axes.

Arrays are named `noun_AXES` after their logical shape, in the letters einsum strings use too:

    B batch      T query position   S key position   D embed    N query heads   K key/value heads
    G = N / K    H head dim         F mlp            V vocab    L layers        E experts
    A experts per token             C capacity: tokens of an expert in a sequence

A module may add letters of its own and explains them.

A layout is a table: changing it moves arrays and never changes the loss beyond the order of
additions. An axis that the table does not know is a KeyError.
"""

import math
from collections.abc import Mapping

import jax
from jax.sharding import NamedSharding, PartitionSpec

Rules = Mapping[str, str | tuple[str, ...] | None]

RULES: Rules = {
    # Parameters, their gradients and optimizer state.
    "layers": "stage",
    "leading_layers": None,
    "encoder_layers": None,
    "vocab": ("tensor", "stage"),
    "embed": ("fsdp", "expert", "context"),
    "heads": "tensor",
    "kv_heads": "tensor",
    "sinks": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "experts": "expert",
    "expert_embed": ("fsdp", "context"),
    "positions": None,
    "router": None,
    "router_embed": None,
    "latent": None,
    "gates": None,
    "norm": None,
    # Activations.
    "act_batch": ("data", "fsdp", "expert"),
    "act_len": "context",
    "act_block_len": ("context", "tensor"),  # between blocks, where positions are independent
    "act_embed": None,
    "act_heads": "tensor",
    "act_kv_heads": "tensor",
    "act_head_dim": None,
    "act_mlp": "tensor",
    "act_vocab": ("tensor", "stage"),
    "act_experts": None,
}
WHOLE_PARAMETERS: Rules = {**RULES, "embed": None, "expert_embed": None}
"""The table of parameters with mesh.sharded_state=optimizer, which are not sharded then."""


def mesh_axes(axis: str, rules: Rules = RULES) -> tuple[str, ...]:
    """Returns the mesh axes that shard a logical axis, the outermost first."""
    names = rules[axis]
    return () if names is None else (names,) if isinstance(names, str) else names


def spec(*axes: str | None, rules: Rules = RULES) -> PartitionSpec:
    """Returns the partition of an array whose dims have these logical axes, None for unnamed."""
    return PartitionSpec(*(None if axis is None else rules[axis] for axis in axes))


def sharding(
    mesh: jax.sharding.Mesh, *axes: str | None, rules: Rules = RULES, memory: str | None = None
) -> NamedSharding:
    """Returns the sharding of an array with these logical axes, by default in device memory."""
    return NamedSharding(mesh, spec(*axes, rules=rules), memory_kind=memory)


def num_shards(axis: str) -> int:
    """Returns the number of shards of a logical axis on the mesh that is set; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[name] for name in mesh_axes(axis))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins the layout of an activation inside the compiled step; needs a mesh set by jax.set_mesh.

    A dim of size 1 is not sharded. Without a mesh (a module in a test or at a prompt) it returns x.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    whole = [None if size == 1 else axis for size, axis in zip(x.shape, axes, strict=True)]
    return jax.lax.with_sharding_constraint(x, spec(*whole))
