"""Sharded arrays filled piece by piece, so that a host never holds one of them twice."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

PIECE_BYTES = 2**26
"""Bytes of an array transferred at a time: 64 MiB."""


def zeros(shape: tuple[int, ...], dtype: np.dtype, where: NamedSharding) -> jax.Array:
    """Returns zeros, created sharded."""
    return jax.jit(functools.partial(jnp.zeros, shape, dtype), out_shardings=where)()


def fill(
    array: jax.Array, source: Any, where: NamedSharding, index: tuple[int, ...] = ()
) -> jax.Array:
    """Returns an array with a part of it set; the given array is donated.

    Args:
        source: of the part's shape, in memory or on disk: its slices become NumPy arrays.
            It is read in slices along the first axis that is not sharded, or whole.
        index: of the part, along the first axes of the array.
    """
    inner = NamedSharding(where.mesh, PartitionSpec(*tuple(where.spec)[len(index) :]))
    start = np.array([*index, *(0 for _ in source.shape)], np.int32)
    for piece, offset in _slices(source, array.dtype, inner):
        there = jax.device_put(np.ascontiguousarray(piece, dtype=array.dtype), inner)
        start[len(index) :] = offset
        array = _setter(where)(array, there, start)
        array.block_until_ready()
    return array


def _slices(
    source: Any, dtype: np.dtype, where: NamedSharding
) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """Yields pieces of a source, each with the index where it begins."""
    here = where.shard_shape(source.shape)
    axis = next((i for i, num in enumerate(source.shape) if here[i] == num), None)
    if axis is None:
        yield source, (0,) * len(here)
        return
    num_bytes = int(np.prod(source.shape)) * dtype.itemsize
    length = max(1, source.shape[axis] * PIECE_BYTES // max(1, num_bytes))
    for first in range(0, source.shape[axis], length):
        index = (slice(None),) * axis + (slice(first, min(first + length, source.shape[axis])),)
        yield source[index], tuple(first if i == axis else 0 for i in range(len(here)))


@functools.cache
def _setter(where: NamedSharding) -> Any:
    @functools.partial(jax.jit, donate_argnums=0, out_shardings=where)
    def put(array: jax.Array, piece: jax.Array, start: jax.Array) -> jax.Array:
        leading = (1,) * (array.ndim - piece.ndim)
        return jax.lax.dynamic_update_slice(array, piece.reshape(leading + piece.shape), start)

    return put
