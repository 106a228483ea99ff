"""The digest of parameters: it identifies a model, whatever its mesh."""

import functools
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from sharding.tree_paths import by_path

DIGEST_VERSION = 2
"""Version 1, or none, is that of with_first_names(params), the names before RENAMED_ARRAYS."""


def params_digest(params: Mapping[str, Any]) -> str:
    """Returns the SHA-256 over sorted paths, shapes, dtypes and little-endian bytes of arrays.

    Every process that holds a part of an array must call it; each gets the same digest.
    """
    total = hashlib.sha256()
    for name, array in sorted(by_path(params).items()):
        total.update(f"{name}\0{array.shape}\0{array.dtype.name}\0".encode())
        for piece in on_host(array):
            total.update(piece.astype(piece.dtype.newbyteorder("<")).tobytes())
    return total.hexdigest()


def on_host(array: Any) -> Iterator[np.ndarray]:
    """Yields an array in order: at once where this process holds all of it, else in pieces."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        yield from gather_pieces(array)
    else:
        yield jax.device_get(array)


def gather_pieces(array: jax.Array, piece_bytes: int = 1 << 26) -> Iterator[np.ndarray]:
    """Yields whole rows of an array, each piece from all devices, of at most so many bytes.

    A row is what the first dim counts, such as a layer; a piece has at least one.
    """
    assert isinstance(array.sharding, NamedSharding)
    gather_rows = _row_gatherer(array.sharding.mesh)
    num_rows = array.shape[0] if array.ndim else 1
    num_together = max(1, piece_bytes * num_rows // max(array.nbytes, 1))
    for first in range(0, num_rows, num_together):
        yield np.asarray(gather_rows(array, first, min(num_together, num_rows - first)))


@functools.cache
def _row_gatherer(mesh: jax.sharding.Mesh) -> Any:
    @functools.partial(
        jax.jit, static_argnums=2, out_shardings=NamedSharding(mesh, PartitionSpec())
    )
    def gather_rows(array: jax.Array, first: jax.Array, size: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(array, first, size) if array.ndim else array

    return gather_rows
