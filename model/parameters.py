"""How parameters are born and used: logical axes on each, one helper for every projection."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from sharding.rules import constrain


def normal(rngs: nnx.Rngs, shape: Sequence[int], *axes: str, std: float) -> nnx.Param[jax.Array]:
    """Returns a parameter drawn from N(0, std^2), with a logical axis for each dim."""
    return _param(std * jax.random.normal(rngs.params(), tuple(shape), jnp.float32), axes)


def zeros(shape: Sequence[int], *axes: str) -> nnx.Param[jax.Array]:
    """Returns a parameter of zeros, with a logical axis for each dim."""
    return _param(jnp.zeros(tuple(shape), jnp.float32), axes)


def ones(shape: Sequence[int], *axes: str) -> nnx.Param[jax.Array]:
    """Returns a parameter of ones, with a logical axis for each dim."""
    return _param(jnp.ones(tuple(shape), jnp.float32), axes)


def _param(value: jax.Array, axes: tuple[str, ...]) -> nnx.Param[jax.Array]:
    assert value.ndim == len(axes), (value.shape, axes)
    return nnx.Param(value, axes=axes)


def broadcast(vector: jax.Array, like: jax.Array) -> jax.Array:
    """Returns vector[out...] with leading dims of 1, so that it meets the last dims of `like`.

    Ranks are never promoted silently here: the tests make JAX refuse that.
    """
    return vector.reshape((1,) * (like.ndim - vector.ndim) + vector.shape)


def project(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    axes: tuple[str, ...],
    num_contracted: int = 1,
    out_dtype: jnp.dtype | None = None,
) -> jax.Array:
    """Returns x[B, T, in...] times kernel[in..., out...] plus bias[out...].

    The kernel is cast to the dtype of x; the result has out_dtype, or that of x.

    The contracted dims are the last num_contracted of x and the first of the kernel. Everything is
    flattened to one matmul of two dims: XLA's CPU backend is several times slower on the gradient
    of one that contracts two leading axes, and elsewhere it makes no difference.

    Args:
        axes: logical axes of the out dims, which pin the layout of the result.
    """
    batch, out = x.shape[:-num_contracted], kernel.shape[num_contracted:]
    size = math.prod(kernel.shape[:num_contracted])
    flat_kernel = kernel.reshape(size, -1).astype(x.dtype)
    y = jnp.matmul(x.reshape(-1, size), flat_kernel, preferred_element_type=out_dtype or x.dtype)
    y = y.reshape(*batch, *out)
    if bias is not None:
        y = y + broadcast(bias, y).astype(y.dtype)
    return constrain(y, "act_batch", "act_len", *axes)
