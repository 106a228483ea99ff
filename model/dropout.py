"""Dropout whose mask depends on the row alone, so that no layout or microbatching changes it."""

import jax
import jax.numpy as jnp


def fold(keys_B: jax.Array | None, number: jax.Array | int) -> jax.Array | None:
    """Returns a new key for each row, made from its key and a number; None stays None."""
    return None if keys_B is None else jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)


def dropout(x: jax.Array, rate: float, keys_B: jax.Array | None) -> jax.Array:
    """Zeroes each element of x[B, ...] with probability rate and divides the rest by 1 - rate.

    Args:
        keys_B: one key for each row, or None for evaluation, which returns x.
    """
    if keys_B is None or rate == 0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys_B)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
