"""Dropout whose mask depends on a token's row and its index in it alone: no layout changes it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def fold(rng: jax.Array | None, number: jax.Array | int) -> jax.Array | None:
    """Returns PRNG keys of the same shape, a number folded into each; None stays None."""
    if rng is None:
        return None
    folded = jax.vmap(jax.random.fold_in, (0, None))(rng.reshape(-1), number)
    return folded.reshape(rng.shape)


def token_rng(rng_B: jax.Array | None, row_index_T: jax.Array) -> jax.Array | None:
    """Returns a PRNG key for each token, [B, T], from that of its row and its index in it."""
    if rng_B is None:
        return None
    fold_index = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(fold_index, (0, None))(rng_B, row_index_T)


def kept(rng_BT: jax.Array, rate: float, shape: Sequence[int]) -> jax.Array:
    """Returns booleans [B, T, shape...], each False with probability rate."""

    def sample(key: jax.Array) -> jax.Array:
        return jax.random.bernoulli(key, 1 - rate, tuple(shape))

    return jax.vmap(jax.vmap(sample))(rng_BT)


def dropout(x: jax.Array, rate: float, rng_BT: jax.Array | None) -> jax.Array:
    """Zeroes each element of x[B, T, ...] with probability rate and divides the rest by 1 - rate.

    rng_BT is a PRNG key for each token; None is evaluation, which returns x.
    """
    if rng_BT is None or rate == 0:
        return x
    return jnp.where(kept(rng_BT, rate, x.shape[2:]), x / (1 - rate), 0).astype(x.dtype)
