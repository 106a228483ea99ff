"""Dropout whose mask depends on a token's row and place alone: no layout changes it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def fold(keys: jax.Array | None, number: jax.Array | int) -> jax.Array | None:
    """Returns a new key for each key, of whatever shape, and a number; None stays None."""
    if keys is None:
        return None
    folded = jax.vmap(jax.random.fold_in, (0, None))(keys.reshape(-1), number)
    return folded.reshape(keys.shape)


def token_keys(keys_B: jax.Array | None, places_T: jax.Array) -> jax.Array | None:
    """Returns a key for each token, [B, T], from that of its row and its place in it."""
    if keys_B is None:
        return None
    fold_places = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(fold_places, (0, None))(keys_B, places_T)


def kept(keys_BT: jax.Array, rate: float, shape: Sequence[int]) -> jax.Array:
    """Returns booleans [B, T, shape...], each False with probability rate."""

    def draw(key: jax.Array) -> jax.Array:
        return jax.random.bernoulli(key, 1 - rate, tuple(shape))

    return jax.vmap(jax.vmap(draw))(keys_BT)


def dropout(x: jax.Array, rate: float, keys_BT: jax.Array | None) -> jax.Array:
    """Zeroes each element of x[B, T, ...] with probability rate and divides the rest by 1 - rate.

    Args:
        keys_BT: one key for each token, or None for evaluation, which returns x.
    """
    if keys_BT is None or rate == 0:
        return x
    return jnp.where(kept(keys_BT, rate, x.shape[2:]), x / (1 - rate), 0).astype(x.dtype)
