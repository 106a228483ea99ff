"""How parameters are initialized and used: logical axes on each, one helper for projections."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from model.matmul import in_float32
from sharding.rules import constrain, num_shards

Module = TypeVar("Module", bound=nnx.Module)

_HIDDEN = {1: ("act_mlp",), 2: ("act_heads", "act_head_dim")}
"""What is contracted into the residual stream, by the number of its dims."""


def normal(rngs: nnx.Rngs, shape: Sequence[int], *axes: str, std: float) -> nnx.Param[jax.Array]:
    """Returns a parameter sampled from N(0, std^2), with a logical axis for each dim."""
    return _param(std * jax.random.normal(rngs.params(), tuple(shape), jnp.float32), axes)


def zeros(shape: Sequence[int], *axes: str) -> nnx.Param[jax.Array]:
    return _param(jnp.zeros(tuple(shape), jnp.float32), axes)


def ones(shape: Sequence[int], *axes: str) -> nnx.Param[jax.Array]:
    return _param(jnp.ones(tuple(shape), jnp.float32), axes)


def _param(value: jax.Array, axes: tuple[str, ...]) -> nnx.Param[jax.Array]:
    assert value.ndim == len(axes), (value.shape, axes)
    return nnx.Param(value, axes=axes)


def stacked(make: Callable[[nnx.Rngs], Module], num: int, axis: str, rngs: nnx.Rngs) -> Module:
    """Returns num modules as one whose parameters have a further first dim, of a logical axis."""
    metadata = {nnx.PARTITION_NAME: axis, "axes": axis}
    return nnx.vmap(make, transform_metadata=metadata)(rngs.split(num))


def value_of(param: nnx.Param[jax.Array] | None) -> jax.Array | None:
    """Returns the array of a parameter that a module may lack."""
    return None if param is None else param[...]


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
    axes: tuple[str | None, ...],
    num_contracted: int = 1,
    as_float32: bool = False,
) -> jax.Array:
    """Returns x[B, T, in...] times kernel[in..., out...] plus bias[out...].

    The kernel is cast to the dtype of x; so is the result, or it is float32.

    The contracted dims are the last num_contracted of x and the first of the kernel. Where the rows
    are whole, everything is flattened to one matmul of two dims: XLA's CPU backend is several times
    slower on the gradient of one that contracts two leading axes, and elsewhere it makes no
    difference. A sequence that is sharded must keep its dim, or else it would be gathered.

    Args:
        axes: logical axes of the out dims, which pin the layout of the result; where it is the
            residual stream again (act_embed) it is sharded along the sequence.
    """
    batch, out = x.shape[:-num_contracted], kernel.shape[num_contracted:]
    size = math.prod(kernel.shape[:num_contracted])
    is_residual = axes == ("act_embed",)
    length = "act_block_len" if is_residual else "act_len"
    contracted = _HIDDEN[num_contracted] if is_residual else (None,) * num_contracted
    kernel = _gathered(kernel.astype(x.dtype), (*contracted, *axes))
    flat_kernel = kernel.reshape(size, -1)
    flat_x = x.reshape(-1, size) if num_shards("act_block_len") == 1 else x.reshape(*batch, size)
    multiply = partial(in_float32, jnp.matmul) if as_float32 else jnp.matmul
    y = multiply(flat_x, flat_kernel).reshape(*batch, *out)
    if bias is not None:
        y = y + broadcast(bias, y).astype(y.dtype)
    return constrain(y, "act_batch", length, *axes)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(kernel: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """Pins a kernel to the layout that it is multiplied in, and its gradient to none.

    Left to itself the compiler may gather a kernel once for each matmul of the backward pass. The
    gradient is summed where the parameter lies.
    """
    return constrain(kernel, *axes)


_gathered.defvjp(
    lambda kernel, axes: (constrain(kernel, *axes), None),
    lambda axes, saved, gradient: (gradient,),
)
