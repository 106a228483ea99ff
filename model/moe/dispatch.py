"""Tokens sent to the experts that were chosen for them, and the results sent back.

Below `compute_experts` all functions are those of one device and its shards. Letters beyond those
of sharding/rules.py: I tokens of a device, M rows of a buffer, P devices along the expert axis,
X = E / P experts of a device.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from configs.model import ModelConfig
from model.mlp import activate
from model.moe.all_to_all import exchange, itineraries
from model.moe.grouped_matmul import grouped_matmul
from sharding.rules import mesh_axes, num_shards, spec


class Experts(NamedTuple):
    """The weights of experts, in the dtype that they compute in."""

    gate_EDF: jax.Array | None
    up_EDF: jax.Array
    down_EFD: jax.Array


class Chosen(NamedTuple):
    """The experts that compute each token."""

    expert_BTA: jax.Array
    """int32; E, which is no expert, where there is no token."""
    weight_BTA: jax.Array
    """float32."""


def compute_experts(
    config: ModelConfig,
    experts: Experts,
    x_BTD: jax.Array,
    chosen: Chosen,
    row_index_T: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Returns sum_a weight_a expert_a(x), [B, T, D], and how many choices of each row were dropped.

    A device has its own experts and its shard of each, never another's: tokens are sent and weights
    are not, but for their sharding over the width of the model, which is gathered here.
    """
    has_capacity = config.expert_dispatch == "capacity"
    compute = functools.partial(_with_capacity if has_capacity else _dropless, config)
    if row_index_T is None:
        row_index_T = jnp.arange(x_BTD.shape[1])
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return compute(experts, x_BTD, chosen, row_index_T)
    # The capacity of an expert is counted along the whole row.
    tokens = spec("act_batch", None if has_capacity else "act_len", None)
    into, out = spec("experts", None, "mlp"), spec("experts", "mlp", None)
    gate = None if experts.gate_EDF is None else into
    return jax.shard_map(
        compute,
        in_specs=(Experts._make((gate, into, out)), tokens, tokens, PartitionSpec()),
        out_specs=(spec("act_batch", "act_block_len", "act_embed"), spec("act_batch")),
        check_vma=False,  # custom gradients and ragged_all_to_all do not declare what varies
    )(experts, x_BTD, chosen, row_index_T)


def _dropless(
    config: ModelConfig, experts: Experts, x_BTD: jax.Array, chosen: Chosen, row_index_T: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Computes every choice, in buffers that hold the worst case: every token sent to one device.

    Source: Gale et al. 2022, MegaBlocks, arXiv:2211.15841, section 3 (grouped matmuls).
    """
    del row_index_T
    (B, T, D), (E, A) = x_BTD.shape, _num_experts(config)
    P, num_rows = num_shards("experts"), B * T * A
    row_IA, sizes_E = _sort_by_group(chosen.expert_BTA.reshape(-1, A), E)
    rows_MD = _to_rows(x_BTD.reshape(-1, D), row_IA, num_rows)
    if P == 1:
        rows_MD = _apply_sorted(config, experts, rows_MD, sizes_E)
    else:
        there, back, sizes_X = itineraries(sizes_E)
        most = B * T  # of a slice: a token chooses an expert once
        arrived_MD = exchange(rows_MD, there, back, P * B * T * min(A, E // P), most)
        arrived_MD = _apply_sorted(config, experts, arrived_MD, sizes_X)
        rows_MD = exchange(arrived_MD, back, there, num_rows, most)
    y_ID = _from_rows(rows_MD, row_IA, chosen.weight_BTA.reshape(-1, A))
    return _add_parts(y_ID.reshape(B, T, D), "mlp"), jnp.zeros(B, jnp.float32)


def _apply_sorted(
    config: ModelConfig, experts: Experts, rows_MD: jax.Array, sizes_X: jax.Array
) -> jax.Array:
    """Applies expert x to the next sizes_X[x] rows; rows behind the last are undefined."""
    gate_MF = None
    if experts.gate_EDF is not None:
        gate_MF = grouped_matmul(rows_MD, experts.gate_EDF, sizes_X)
    up_MF = grouped_matmul(rows_MD, experts.up_EDF, sizes_X)
    return grouped_matmul(activate(config, up_MF, gate_MF), experts.down_EFD, sizes_X)


def _with_capacity(
    config: ModelConfig, experts: Experts, x_BTD: jax.Array, chosen: Chosen, row_index_T: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Computes the choices within an expert's capacity, C = ceil(factor * A T / E) in a row.

    Takes whole rows; under context parallelism each device has a part of the capacity. A choice may
    be dropped for that of a later token: this dispatch is not causal. Source: Lepikhin et al.
    2020, GShard, arXiv:2006.16668, algorithm 1, whose groups are rows here.
    """
    (B, T, D), (E, A) = x_BTD.shape, _num_experts(config)
    C = min(math.ceil(config.expert_capacity_factor * A * T / E), T)
    queue = jax.vmap(functools.partial(_queue_positions, row_index_T=row_index_T, num_experts=E))
    position_BTA = queue(chosen.expert_BTA)
    is_dropped_BTA = (chosen.expert_BTA < E) & (position_BTA >= C)

    num_here = -(-C // num_shards("act_len"))
    here_BTA = position_BTA - _index("act_len") * num_here
    is_here_BTA = (position_BTA < C) & (here_BTA >= 0) & (here_BTA < num_here)
    num_rows = E * B * num_here
    row_BTA = (chosen.expert_BTA * B + jnp.arange(B)[:, None, None]) * num_here + here_BTA
    row_IA = jnp.where(is_here_BTA, row_BTA, num_rows).reshape(-1, A)

    rows_MD = _to_rows(x_BTD.reshape(-1, D), row_IA, num_rows)
    rows_XMD = _swap_experts(rows_MD.reshape(E, -1, D))
    gate_XMF = None if experts.gate_EDF is None else rows_XMD @ experts.gate_EDF
    hidden_XMF = activate(config, rows_XMD @ experts.up_EDF, gate_XMF)
    rows_EMD = _swap_devices(hidden_XMF @ experts.down_EFD)
    y_ID = _from_rows(rows_EMD.reshape(-1, D), row_IA, chosen.weight_BTA.reshape(-1, A))
    y_BTD = _add_parts(y_ID.reshape(B, T, D), "mlp", "act_len")
    return y_BTD, jnp.sum(is_dropped_BTA, axis=(1, 2), dtype=jnp.float32)


def _queue_positions(expert_TA: jax.Array, row_index_T: jax.Array, num_experts: int) -> jax.Array:
    """Returns how many choices of a row are before each in the queue of its expert, [T, A].

    First choices come before second ones, and those of the same rank by their index in the row. A
    choice of no expert is at a large index.
    """
    T, A = expert_TA.shape
    queue_AT = expert_TA[jnp.argsort(row_index_T)].T
    row_AT, sizes_E = _sort_by_group(queue_AT, num_experts)
    before_AT = (jnp.cumsum(sizes_E) - sizes_E).at[queue_AT].get(mode="fill", fill_value=-T * A)
    return (row_AT - before_AT).T[row_index_T]


def _swap_experts(rows_EMD: jax.Array) -> jax.Array:
    """Returns the rows of all devices for the experts of this one, [X, P M, D]."""
    P = num_shards("experts")
    if P == 1:
        return rows_EMD
    rows_PXMD = rows_EMD.reshape(P, -1, *rows_EMD.shape[1:])
    rows_PXMD = jax.lax.all_to_all(rows_PXMD, mesh_axes("experts"), 0, 0, tiled=True)
    return rows_PXMD.swapaxes(0, 1).reshape(rows_PXMD.shape[1], -1, rows_EMD.shape[-1])


def _swap_devices(rows_XMD: jax.Array) -> jax.Array:
    """Undoes _swap_experts."""
    P = num_shards("experts")
    if P == 1:
        return rows_XMD
    X, _, D = rows_XMD.shape
    rows_PXMD = rows_XMD.reshape(X, P, -1, D).swapaxes(0, 1)
    rows_PXMD = jax.lax.all_to_all(rows_PXMD, mesh_axes("experts"), 0, 0, tiled=True)
    return rows_PXMD.reshape(X * P, -1, D)


def _num_experts(config: ModelConfig) -> tuple[int, int]:
    """Returns E and A."""
    assert config.num_experts is not None
    assert config.num_active_experts is not None
    return config.num_experts, config.num_active_experts


def _sort_by_group(group: jax.Array, num_groups: int) -> tuple[jax.Array, jax.Array]:
    """Returns where each element lands once sorted by group, in order within it, and their sizes.

    Elements of no group (num_groups) land nowhere: at group.size.
    """
    flat = group.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    place = jnp.zeros_like(flat).at[order].set(jnp.arange(flat.size, dtype=flat.dtype))
    place = jnp.where(flat < num_groups, place, flat.size)
    sizes = jnp.sum(flat[None] == jnp.arange(num_groups)[:, None], axis=1, dtype=jnp.int32)
    return place.reshape(group.shape), sizes


def _to_rows(x_ID: jax.Array, row_IA: jax.Array, num_rows: int) -> jax.Array:
    """Returns a buffer [M, D] with each token in those of its rows that are in it, else zeros."""
    choice_M = _inverse(row_IA, num_rows)
    return _take(x_ID, choice_M // row_IA.shape[1], row_IA)


def _from_rows(rows_MD: jax.Array, row_IA: jax.Array, weight_IA: jax.Array) -> jax.Array:
    """Returns the weighted sum of the rows of each token, [I, D], added up in float32."""
    choice_M1 = _inverse(row_IA, len(rows_MD))[:, None]
    rows_IAD = _take(rows_MD, row_IA.reshape(-1), choice_M1).reshape(*row_IA.shape, -1)
    y_ID = jnp.sum(weight_IA[..., None] * rows_IAD.astype(jnp.float32), axis=1)
    return y_ID.astype(rows_MD.dtype)


def _inverse(row_IA: jax.Array, num_rows: int) -> jax.Array:
    """Returns which choice each row of a buffer holds, [M]; I A, which is none, for no choice."""
    choices = jnp.arange(row_IA.size, dtype=row_IA.dtype)
    empty_M = jnp.full(num_rows, row_IA.size, row_IA.dtype)
    return empty_M.at[row_IA.reshape(-1)].set(choices, mode="drop")


@jax.custom_vjp
def _take(x: jax.Array, source_M: jax.Array, readers: jax.Array) -> jax.Array:
    """Returns x[source_M], zeros where there is no such row.

    readers [rows of x, any] are the rows of the result that are copies of each row of x, so that
    the gradient gathers too: a scatter would add in an order of its own.
    """
    del readers
    return x.at[source_M].get(mode="fill", fill_value=0)


def _take_forward(x: jax.Array, source_M: jax.Array, readers: jax.Array) -> tuple:
    return _take(x, source_M, readers), readers


def _take_backward(readers: jax.Array, gradient: jax.Array) -> tuple:
    return jnp.sum(gradient.at[readers].get(mode="fill", fill_value=0), axis=1), None, None


_take.defvjp(_take_forward, _take_backward)


def _index(axis: str) -> jax.Array | int:
    """Returns the index of this device's shard of a logical axis."""
    return jax.lax.axis_index(mesh_axes(axis)) if num_shards(axis) > 1 else 0


def _add_parts(y_BTD: jax.Array, *axes: str) -> jax.Array:
    """Returns the sum over the shards of these axes, itself sharded along the sequence."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return y_BTD
    cuts = {name for axis in axes for name in mesh_axes(axis) if mesh.shape[name] > 1}
    along_row = tuple(name for name in mesh_axes("act_block_len") if name in cuts)
    if along_row:
        y_BTD = jax.lax.psum_scatter(y_BTD, along_row, scatter_dimension=1, tiled=True)
    others = tuple(cuts - set(along_row))
    return jax.lax.psum(y_BTD, others) if others else y_BTD
