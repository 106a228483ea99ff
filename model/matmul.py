"""Matmuls of narrow arrays whose results are float32, and whose gradients are as narrow again."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

Product = Callable[..., jax.Array]
"""jnp.matmul, or jnp.einsum with its letters."""


def in_float32(product: Product, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns product(x, y) in float32.

    JAX would multiply the float32 gradient, which costs several times a matmul of bfloat16; it is
    rounded to the dtype of x and y first.
    """
    return product(x, y) if x.dtype == jnp.float32 else _in_float32(product, x, y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_float32(product: Product, x: jax.Array, y: jax.Array) -> jax.Array:
    return product(x, y, preferred_element_type=jnp.float32)


def _backward(
    product: Product, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, ...]:
    return jax.vjp(product, *saved)[1](gradient.astype(saved[0].dtype))


_in_float32.defvjp(lambda product, x, y: (_in_float32(product, x, y), (x, y)), _backward)
