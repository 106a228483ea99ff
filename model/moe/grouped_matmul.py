"""Rows sorted by group, times the matrix of their group.

Letters beyond those of sharding/rules.py: M rows, X groups, R rows of a block.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

_BLOCK = 128
"""Rows of a group in a step on CPU [R]: few, or small groups are padded; many, or else reading the
matrix costs more than multiplying by it."""


def _multiply(x_MD: jax.Array, weights_XDF: jax.Array, sizes_X: jax.Array) -> jax.Array:
    """Returns [M, F]: the next sizes_X[x] rows times matrix x; rows behind the last are undefined.

    XLA's CPU backend has no such product, and would multiply every row by every matrix.
    """
    return jax.lax.platform_dependent(
        x_MD, weights_XDF, sizes_X, cpu=_by_blocks, default=jax.lax.ragged_dot
    )


grouped_matmul = jax.custom_vjp(_multiply)


def _forward(*inputs: jax.Array) -> tuple[jax.Array, tuple]:
    return _multiply(*inputs), inputs


def _backward(saved: tuple, gradient_MF: jax.Array) -> tuple:
    gradients = jax.lax.platform_dependent(
        *saved, gradient_MF, cpu=_gradients_by_blocks, default=_gradients
    )
    return *gradients, None


grouped_matmul.defvjp(_forward, _backward)


def _gradients(
    x_MD: jax.Array, weights_XDF: jax.Array, sizes_X: jax.Array, gradient_MF: jax.Array
) -> tuple[jax.Array, jax.Array]:
    multiply = functools.partial(jax.lax.ragged_dot, group_sizes=sizes_X)
    return jax.vjp(multiply, x_MD, weights_XDF)[1](gradient_MF)


def _gradients_by_blocks(
    x_MD: jax.Array, weights_XDF: jax.Array, sizes_X: jax.Array, gradient_MF: jax.Array
) -> tuple[jax.Array, jax.Array]:
    dx_MD = _by_blocks(gradient_MF, weights_XDF, sizes_X, is_transposed=True)
    ends_X = jnp.cumsum(sizes_X)
    x_MD, gradient_MF = _padded(x_MD), _padded(gradient_MF)

    def add(group: jax.Array, start: jax.Array, sum_XDF: jax.Array) -> jax.Array:
        is_inside_R = start + jnp.arange(_BLOCK) < ends_X[group]
        x_RD = jnp.where(is_inside_R[:, None], _block(x_MD, start), 0)
        product_DF = jnp.matmul(
            x_RD.T, _block(gradient_MF, start), preferred_element_type=jnp.float32
        )
        return sum_XDF.at[group].add(product_DF)

    sum_XDF = _for_each_block(sizes_X, add, jnp.zeros(weights_XDF.shape, jnp.float32))
    return dx_MD, sum_XDF.astype(weights_XDF.dtype)


def _by_blocks(
    x_MD: jax.Array, weights_XDF: jax.Array, sizes_X: jax.Array, *, is_transposed: bool = False
) -> jax.Array:
    """Returns the product with each matrix, or its transpose.

    A block that reaches into the next group is overwritten there by what comes later.
    """
    num_rows, width = len(x_MD), weights_XDF.shape[1 if is_transposed else 2]
    x_MD = _padded(x_MD)

    def write(group: jax.Array, start: jax.Array, y_MF: jax.Array) -> jax.Array:
        weights_DF = weights_XDF[group]
        y_RF = _block(x_MD, start) @ (weights_DF.T if is_transposed else weights_DF)
        return jax.lax.dynamic_update_slice_in_dim(y_MF, y_RF, start, 0)

    y_MF = _for_each_block(sizes_X, write, jnp.zeros((len(x_MD), width), x_MD.dtype))
    return y_MF[:num_rows]


def _for_each_block(sizes_X: jax.Array, update: Callable, state: jax.Array) -> jax.Array:
    """Returns the state after update(group, first row, state) for every block of rows, in order."""
    starts_X = jnp.cumsum(sizes_X) - sizes_X
    num_blocks_X = -(-sizes_X // _BLOCK)
    last_X = jnp.cumsum(num_blocks_X)

    def step(i: jax.Array, state: jax.Array) -> jax.Array:
        group = jnp.sum(i >= last_X)
        block = i - (last_X - num_blocks_X)[group]
        return update(group, starts_X[group] + block * _BLOCK, state)

    return jax.lax.fori_loop(0, last_X[-1], step, state)


def _padded(x_MD: jax.Array) -> jax.Array:
    return jnp.pad(x_MD, ((0, _BLOCK), (0, 0)))


def _block(x_MD: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x_MD, start, _BLOCK)
