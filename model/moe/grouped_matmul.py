"""Rows sorted by group, times the matrix of their group."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

_Update = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""From (group, first row of a block, state) to the next state."""

_BLOCK = 128
"""Rows that share a group in a step on CPU: few, or small groups are padded; many, or else reading
the matrix costs more than multiplying by it."""


def _multiply(x_MD: jax.Array, weights_KDF: jax.Array, sizes_K: jax.Array) -> jax.Array:
    """Returns [M, F]: the next sizes_K[k] rows times matrix k; what is behind the last is anything.

    XLA's CPU backend has no such product, and would multiply every row by every matrix.
    """
    return jax.lax.platform_dependent(
        x_MD, weights_KDF, sizes_K, cpu=_by_blocks, default=jax.lax.ragged_dot
    )


grouped_matmul = jax.custom_vjp(_multiply)


def _forward(
    x_MD: jax.Array, weights_KDF: jax.Array, sizes_K: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    return _multiply(x_MD, weights_KDF, sizes_K), (x_MD, weights_KDF, sizes_K)


def _backward(
    saved: tuple[jax.Array, jax.Array, jax.Array], gradient_MF: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    dx_MD, dweights_KDF = jax.lax.platform_dependent(
        *saved, gradient_MF, cpu=_gradients_by_blocks, default=_gradients
    )
    return dx_MD, dweights_KDF, None


grouped_matmul.defvjp(_forward, _backward)


def _gradients(
    x_MD: jax.Array, weights_KDF: jax.Array, sizes_K: jax.Array, gradient_MF: jax.Array
) -> tuple[jax.Array, jax.Array]:
    multiply = functools.partial(jax.lax.ragged_dot, group_sizes=sizes_K)
    return jax.vjp(multiply, x_MD, weights_KDF)[1](gradient_MF)


def _gradients_by_blocks(
    x_MD: jax.Array, weights_KDF: jax.Array, sizes_K: jax.Array, gradient_MF: jax.Array
) -> tuple[jax.Array, jax.Array]:
    dx_MD = _by_blocks(gradient_MF, weights_KDF, sizes_K, is_transposed=True)
    ends_K = jnp.cumsum(sizes_K)
    x_MD, gradient_MF = _padded(x_MD), _padded(gradient_MF)

    def add(group: jax.Array, start: jax.Array, sum_KDF: jax.Array) -> jax.Array:
        is_inside_L = start + jnp.arange(_BLOCK) < ends_K[group]
        x_LD = jnp.where(is_inside_L[:, None], _block(x_MD, start), 0)
        product_DF = jnp.matmul(
            x_LD.T, _block(gradient_MF, start), preferred_element_type=jnp.float32
        )
        return sum_KDF.at[group].add(product_DF)

    sum_KDF = _for_each_block(sizes_K, add, jnp.zeros(weights_KDF.shape, jnp.float32))
    return dx_MD, sum_KDF.astype(weights_KDF.dtype)


def _by_blocks(
    x_MD: jax.Array, weights_KDF: jax.Array, sizes_K: jax.Array, *, is_transposed: bool = False
) -> jax.Array:
    """Returns the product with each matrix, or its transpose.

    A block that reaches into the next group is overwritten there by what comes later.
    """
    num_rows, width = len(x_MD), weights_KDF.shape[1 if is_transposed else 2]
    x_MD = _padded(x_MD)

    def write(group: jax.Array, start: jax.Array, y_MF: jax.Array) -> jax.Array:
        weights_DF = weights_KDF[group]
        y_LF = _block(x_MD, start) @ (weights_DF.T if is_transposed else weights_DF)
        return jax.lax.dynamic_update_slice_in_dim(y_MF, y_LF, start, 0)

    y_MF = _for_each_block(sizes_K, write, jnp.zeros((len(x_MD), width), x_MD.dtype))
    return y_MF[:num_rows]


def _for_each_block(sizes_K: jax.Array, update: _Update, state: jax.Array) -> jax.Array:
    """Returns the state after the update with every block of rows, in order."""
    starts_K = jnp.cumsum(sizes_K) - sizes_K
    num_blocks_K = -(-sizes_K // _BLOCK)
    last_K = jnp.cumsum(num_blocks_K)

    def step(i: jax.Array, state: jax.Array) -> jax.Array:
        group = jnp.sum(i >= last_K)
        block = i - (last_K - num_blocks_K)[group]
        return update(group, starts_K[group] + block * _BLOCK, state)

    return jax.lax.fori_loop(0, last_K[-1], step, state)


def _padded(x_MD: jax.Array) -> jax.Array:
    return jnp.pad(x_MD, ((0, _BLOCK), (0, 0)))


def _block(x_MD: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x_MD, start, _BLOCK)
