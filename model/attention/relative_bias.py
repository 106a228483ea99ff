"""A bias of attention by the distance of query and key."""

import math

import jax
import jax.numpy as jnp

from configs.position import MAX_RELATIVE_DISTANCE, NUM_RELATIVE_BUCKETS


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
