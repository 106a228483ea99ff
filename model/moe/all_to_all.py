"""Rows sent to the devices of their experts and back: an all-to-all of slices of any size.

To be called inside shard_map, on a mesh that shards the experts. Letters beyond those of
sharding/rules.py: M rows of a buffer, P devices along the axis, X = E / P experts of a device,
U slices of rows that a device sends, one for each expert.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sharding.rules import mesh_axes, num_shards

_AXES = mesh_axes("experts")


class Itinerary(NamedTuple):
    """Slices of rows sent from every device to every other, in the form of lax.ragged_all_to_all.

    Slice u goes to, and comes from, device u // X.
    """

    from_U: jax.Array
    """First row of what is sent."""
    num_sent_U: jax.Array
    to_U: jax.Array
    """First row where the receiver puts it."""
    num_received_U: jax.Array


def itineraries(sizes_E: jax.Array) -> tuple[Itinerary, Itinerary, jax.Array]:
    """Returns the itineraries to the experts and back, and the rows of each expert here, [X].

    Rows are sorted by expert at both ends, at the receiver by the device they came from as well.
    """
    P, here = num_shards("experts"), jax.lax.axis_index(_AXES)
    sizes_PE = jax.lax.all_gather(sizes_E, _AXES)
    left_PE = jnp.cumsum(sizes_PE, axis=1) - sizes_PE
    total_PX = jnp.sum(sizes_PE, axis=0).reshape(P, -1)
    first_E = (jnp.cumsum(total_PX, axis=1) - total_PX).reshape(-1)
    arrived_PE = first_E[None] + jnp.cumsum(sizes_PE, axis=0) - sizes_PE

    def of_my_experts(x_PE: jax.Array) -> jax.Array:
        return x_PE.reshape(P, P, -1)[:, here].reshape(-1)

    sent, received = sizes_PE[here], of_my_experts(sizes_PE)
    there = Itinerary(left_PE[here], sent, arrived_PE[here], received)
    back = Itinerary(of_my_experts(arrived_PE), received, of_my_experts(left_PE), sent)
    return there, back, total_PX[here]


def _send(
    rows: jax.Array, there: Itinerary, back: Itinerary, num_rows: int, most: int
) -> jax.Array:
    """Returns the rows [num_rows, D] that arrive here, zeros where none does.

    Args:
        back: undoes `there`, for the gradient.
        most: rows of the largest slice that is possible.
    """
    del back
    return jax.lax.platform_dependent(
        rows,
        there,
        cpu=functools.partial(_padded_all_to_all, num_rows=num_rows, most=most),
        default=functools.partial(_ragged_all_to_all, num_rows=num_rows),
    )


exchange = jax.custom_vjp(_send, nondiff_argnums=(3, 4))


def _forward(
    rows: jax.Array, there: Itinerary, back: Itinerary, num_rows: int, most: int
) -> tuple[jax.Array, tuple]:
    no_columns = rows[:, :0]  # how many rows there are, and nothing else
    return _send(rows, there, back, num_rows, most), (no_columns, there, back)


def _backward(num_rows: int, most: int, saved: tuple, gradient: jax.Array) -> tuple:
    del num_rows
    no_columns, there, back = saved
    return exchange(gradient, back, there, len(no_columns), most), None, None


exchange.defvjp(_forward, _backward)


def _ragged_all_to_all(rows: jax.Array, way: Itinerary, *, num_rows: int) -> jax.Array:
    arrived = jnp.zeros((num_rows, rows.shape[1]), rows.dtype)
    return jax.lax.ragged_all_to_all(rows, arrived, *way, axis_name=_AXES)


def _padded_all_to_all(rows: jax.Array, way: Itinerary, *, num_rows: int, most: int) -> jax.Array:
    """Does the same on CPU, which has no such collective: all slices are as long as the longest."""
    step = jnp.arange(most)[None]
    sent = jnp.where(step < way.num_sent_U[:, None], way.from_U[:, None] + step, len(rows))
    slices = jax.lax.all_to_all(
        rows.at[sent].get(mode="fill", fill_value=0), _AXES, 0, 0, tiled=True
    )
    to_U = jax.lax.all_to_all(way.to_U, _AXES, 0, 0, tiled=True)
    put = jnp.where(step < way.num_received_U[:, None], to_U[:, None] + step, num_rows)
    return jnp.zeros((num_rows, rows.shape[1]), rows.dtype).at[put].set(slices, mode="drop")
