"""The alphabet of array axes and the one table that maps logical axes to mesh axes.

Arrays are named `noun_AXES` after their logical shape, in the letters einsum strings use too:

    B batch      T query position   S key position   D embed    N query heads   K key/value heads
    G = N / K    H head dim         F mlp            V vocab    L layers

A layout is a table: changing it moves arrays and never changes the loss beyond the order of
additions. An axis that the table does not know is a KeyError.
"""

import math

import jax
from jax.sharding import NamedSharding, PartitionSpec

RULES: dict[str, str | tuple[str, ...] | None] = {
    # Parameters.
    "layers": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "positions": None,
    "norm": None,
    # Activations.
    "act_batch": ("data", "fsdp"),
    "act_len": None,
    "act_embed": None,
    "act_heads": "tensor",
    "act_kv_heads": "tensor",
    "act_head_dim": None,
    "act_mlp": "tensor",
    "act_vocab": "tensor",
}


def spec(*axes: str | None) -> PartitionSpec:
    """Returns the partition of an array whose dims have these logical axes, None for unnamed."""
    return PartitionSpec(*(None if axis is None else RULES[axis] for axis in axes))


def sharding(mesh: jax.sharding.Mesh, *axes: str | None) -> NamedSharding:
    """Returns where an array with these logical axes lives on the mesh."""
    return NamedSharding(mesh, spec(*axes))


def num_shards(axis: str) -> int:
    """Returns how many parts the mesh that is set cuts a logical axis into; 1 without a mesh."""
    names, mesh = RULES[axis], jax.sharding.get_abstract_mesh()
    if mesh.empty or names is None:
        return 1
    return math.prod(mesh.shape[name] for name in ((names,) if isinstance(names, str) else names))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins the layout of an activation inside the compiled step; needs a mesh set by jax.set_mesh.

    Without a mesh (a single module in a test or at a prompt) it returns x as it is.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(*axes))
