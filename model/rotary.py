"""Rotary position embedding."""

import jax
import jax.numpy as jnp


def rotate(x_BTNH: jax.Array, positions_BT: jax.Array, theta: float) -> jax.Array:
    """Turns channel pair j of each head by the angle position * theta^(-2j/H).

    Pairs channel j with j + H/2, where the paper pairs 2j with 2j + 1. Angles are float32 whatever
    the dtype of x. Source: Su et al. 2021, RoFormer, arXiv:2104.09864, eq. 34.
    """
    half = x_BTNH.shape[-1] // 2
    frequency_J = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BT1J = positions_BT[:, :, None, None] * frequency_J[None, None, None, :]
    sin, cos = jnp.sin(angle_BT1J), jnp.cos(angle_BT1J)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
    return turned.astype(x_BTNH.dtype)
