"""Positions in attention: rotary embedding (RoPE), its scaling to longer rows; relative bias."""

import math

import jax
import jax.numpy as jnp

from configs.model import ModelConfig
from configs.position import MAX_RELATIVE_DISTANCE, NUM_RELATIVE_BUCKETS


def rotate(
    x_BTNH: jax.Array, positions_BT: jax.Array, frequency_J: jax.Array, factor: float = 1.0
) -> jax.Array:
    """Turns channel pair j of each head by the angle position * frequency_j, times a factor.

    Pairs channel j with j + H/2, where the paper pairs 2j with 2j + 1. Angles are float32 whatever
    the dtype of x. Source: Su et al. 2021, RoFormer, arXiv:2104.09864, eq. 34.
    """
    angle_BT1J = positions_BT[:, :, None, None] * frequency_J[None, None, None, :]
    sin, cos = factor * jnp.sin(angle_BT1J), factor * jnp.cos(angle_BT1J)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
    return turned.astype(x_BTNH.dtype)


def frequencies(config: ModelConfig, *, is_local: bool) -> jax.Array:
    """Returns the turn of each channel pair from one position to the next, [H/2], in radians.

    They are theta^(-2j/H), stretched by rope_scaling but in a local layer with a base of its own.
    """
    half = config.rotated_dim // 2
    has_own = is_local and config.rope_theta_local is not None
    theta = config.rope_theta_local if has_own else config.rope_theta
    assert theta is not None
    frequency_J = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if has_own:
        return frequency_J
    stretched_J = frequency_J / config.rope_scaling.factor
    match config.rope_scaling.kind:
        case "none":
            return frequency_J
        case "linear":
            return stretched_J
        case "llama3":
            kept_J = _kept_llama3(config, frequency_J)
        case "yarn":
            kept_J = _kept_yarn(config, half)
    return kept_J * frequency_J + (1 - kept_J) * stretched_J


def _kept_llama3(config: ModelConfig, frequency_J: jax.Array) -> jax.Array:
    """Returns how much of each wave stays, 1 for short waves and 0 for long ones, [H/2].

    Source: Meta 2024, Llama 3.1's reference code, apply_scaling; arXiv:2407.21783 describes it.
    """
    assert config.rope_scaling.original_len is not None
    turns_J = config.rope_scaling.original_len * frequency_J / (2 * math.pi)
    low, high = config.rope_scaling.low_frequency, config.rope_scaling.high_frequency
    return jnp.clip((turns_J - low) / (high - low), 0, 1)


def _kept_yarn(config: ModelConfig, half: int) -> jax.Array:
    """Returns how much of each wave stays, by its number of turns in the original length, [H/2].

    Source: Peng et al. 2023, YaRN, arXiv:2309.00071, section 3.2, with whole channels as bounds, as
    in its code.
    """
    assert config.rope_scaling.original_len is not None
    length, theta = config.rope_scaling.original_len, config.rope_theta

    def channel_pair(num_turns: float) -> float:
        """Returns the channel pair that turns this often in a row, as a real number."""
        return half * math.log(length / (num_turns * 2 * math.pi)) / math.log(theta)

    low = max(math.floor(channel_pair(config.rope_scaling.beta_fast)), 0)
    high = min(math.ceil(channel_pair(config.rope_scaling.beta_slow)), 2 * half - 1)
    ramp_J = (jnp.arange(half, dtype=jnp.float32) - low) / max(high - low, 0.001)
    return 1 - jnp.clip(ramp_J, 0, 1)


def relative_bias(table_RN: jax.Array, positions_BT: jax.Array, *, is_causal: bool) -> jax.Array:
    """Returns the bias of each head for each query and key, float32 [B, N, T, S].

    Letter: R buckets. A bucket holds one distance where that is short and a growing range of them
    beyond; without a causal mask half of the buckets are for keys that come later. Source: Raffel
    et al. 2019, T5, arXiv:1910.10683, section 2.1, with the buckets of its code.
    """
    distance_BTS = positions_BT[:, None, :] - positions_BT[:, :, None]  # of a key, from the query
    bucket_BTS = jnp.zeros_like(distance_BTS)
    num = NUM_RELATIVE_BUCKETS
    if is_causal:
        distance_BTS = jnp.maximum(-distance_BTS, 0)
    else:
        num //= 2
        bucket_BTS = num * (distance_BTS > 0)
        distance_BTS = jnp.abs(distance_BTS)
    num_exact = num // 2
    # In float32 and in this order, so that a distance falls where the published code puts it.
    ratio = jnp.log(jnp.maximum(distance_BTS, 1).astype(jnp.float32) / num_exact)
    ratio /= math.log(MAX_RELATIVE_DISTANCE / num_exact)
    far_BTS = num_exact + (ratio * (num - num_exact)).astype(jnp.int32)
    near_BTS = jnp.where(distance_BTS < num_exact, distance_BTS, jnp.minimum(far_BTS, num - 1))
    return jnp.moveaxis(table_RN.astype(jnp.float32)[bucket_BTS + near_BTS], -1, 1)
