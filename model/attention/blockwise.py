"""Attention of blocks of queries to blocks of keys, a pair at a time, and its gradients.

Letter: P blocks, an even number of pieces into which a device cuts what it has of a row. A pair of
blocks is computed only where the mask lets some query see some key.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from model.attention.mask import Mask, Scoring

BLOCK_LEN = 2048
"""Tokens of a block at most: the scores of one pair of blocks are all that is ever held."""

_MASKED = -1e30
LOWEST = -1e20
"""Below every true score and far above _MASKED: with it as the maximum masked weights are zero."""


class Rule(NamedTuple):
    """What is the same for all blocks and known when the step is compiled."""

    mask: Mask
    """Without arrays."""
    scoring: Scoring


class Queries(NamedTuple):
    """What stays."""

    q_BKGTH: jax.Array
    segments_BT: jax.Array | None
    places_T: jax.Array


class Keys(NamedTuple):
    """What goes around."""

    k_BKSH: jax.Array
    v_BKSH: jax.Array
    segments_BS: jax.Array | None
    prefix_BS: jax.Array | None
    places_S: jax.Array


class Softmax(NamedTuple):
    """What queries have gathered from the keys that have passed by; float32.

    Source: Milakov and Gimelshein 2018, Online normalizer calculation for softmax,
    arXiv:1805.02867, algorithm 3.
    """

    max_BKGT: jax.Array
    sum_BKGT: jax.Array
    """Of the weights exp(score - max)."""
    gathered_BKGTH: jax.Array
    """The sum of weight * value."""


class Asked(NamedTuple):
    """What the backward pass knows of queries."""

    queries: Queries
    dy_BKGTH: jax.Array
    log_sum_BKGT: jax.Array
    """log(sum of exp(score)) over all keys."""
    delta_BKGT: jax.Array
    """The product of dy and y."""


def any_seen(
    mask: Mask, query_places_T: jax.Array, key_places_S: jax.Array, *, has_prefix: bool = False
) -> jax.Array:
    """Returns False only where no query sees a key, judged by the extremes of their places.

    Segments are left out, and every key may be in a prefix: they differ between rows, and this must
    be one boolean for all of them.
    """
    seen = jnp.bool_(True)
    looks_ahead = mask.kind == "full" or has_prefix
    if not looks_ahead:
        seen &= jnp.max(query_places_T) >= jnp.min(key_places_S)
    if mask.window is not None:
        seen &= jnp.min(query_places_T) - jnp.max(key_places_S) < mask.window
        if looks_ahead:
            seen &= jnp.min(key_places_S) - jnp.max(query_places_T) < mask.window
    return seen


def sees_any(rule: Rule, queries: Queries, keys: Keys) -> jax.Array:
    """Returns False only where no query of a block sees a key of the other."""
    has_prefix = keys.prefix_BS is not None
    return any_seen(rule.mask, queries.places_T, keys.places_S, has_prefix=has_prefix)


def add_sinks(softmax_P: Softmax, sinks_KG: jax.Array) -> Softmax:
    """Returns the softmax of all blocks over the sinks too, which have no value."""
    sinks_PBKGT = sinks_KG[None, None, :, :, None].astype(jnp.float32)
    max_PBKGT = jnp.maximum(softmax_P.max_BKGT, sinks_PBKGT)
    scale_PBKGT = jnp.exp(softmax_P.max_BKGT - max_PBKGT)
    return Softmax(
        max_PBKGT,
        softmax_P.sum_BKGT * scale_PBKGT + jnp.exp(sinks_PBKGT - max_PBKGT),
        softmax_P.gathered_BKGTH * scale_PBKGT[..., None],
    )


def add_keys(rule: Rule, queries: Queries, keys: Keys, softmax: Softmax) -> Softmax:
    """Returns the softmax over these keys too."""
    score_BKGTS = _masked(rule, _scores(rule, queries, keys), queries, keys)
    max_BKGT = jnp.maximum(softmax.max_BKGT, jnp.max(score_BKGTS, axis=-1))
    weight_BKGTS = jnp.exp(score_BKGTS - max_BKGT[..., None])
    scale_BKGT = jnp.exp(softmax.max_BKGT - max_BKGT)
    more_BKGTH = _matmul("BKGTS,BKSH->BKGTH", weight_BKGTS.astype(keys.v_BKSH.dtype), keys.v_BKSH)
    return Softmax(
        max_BKGT,
        softmax.sum_BKGT * scale_BKGT + jnp.sum(weight_BKGTS, axis=-1),
        softmax.gathered_BKGTH * scale_BKGT[..., None] + more_BKGTH,
    )


def add_gradients(
    rule: Rule, asked: Asked, keys: Keys, dkv_2BKSH: jax.Array, dq_BKGTH: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns d/dk beside d/dv, and d/dq, with what these queries and keys add."""
    q_BKGTH, dy_BKGTH = asked.queries.q_BKGTH, asked.dy_BKGTH
    score_BKGTS = _scores(rule, asked.queries, keys)
    masked_BKGTS = _masked(rule, score_BKGTS, asked.queries, keys)
    weight_BKGTS = jnp.exp(masked_BKGTS - asked.log_sum_BKGT[..., None])
    d_weight_BKGTS = _matmul("BKGTH,BKSH->BKGTS", dy_BKGTH, keys.v_BKSH)
    d_score_BKGTS = weight_BKGTS * (d_weight_BKGTS - asked.delta_BKGT[..., None])
    if rule.scoring.softcap is not None:  # the derivative of tanh
        d_score_BKGTS *= 1 - jnp.square(score_BKGTS / rule.scoring.softcap)
    d_score_BKGTS = (d_score_BKGTS * rule.scoring.scale).astype(q_BKGTH.dtype)
    weight_BKGTS = weight_BKGTS.astype(dy_BKGTH.dtype)
    dk_BKSH = _matmul("BKGTS,BKGTH->BKSH", d_score_BKGTS, q_BKGTH)
    dv_BKSH = _matmul("BKGTS,BKGTH->BKSH", weight_BKGTS, dy_BKGTH)
    more_BKGTH = _matmul("BKGTS,BKSH->BKGTH", d_score_BKGTS, keys.k_BKSH)
    return dkv_2BKSH + jnp.stack([dk_BKSH, dv_BKSH]), dq_BKGTH + more_BKGTH


def _scores(rule: Rule, queries: Queries, keys: Keys) -> jax.Array:
    """Returns the scores of all queries and keys in float32, as if all were seen."""
    return rule.scoring(_matmul("BKGTH,BKSH->BKGTS", queries.q_BKGTH, keys.k_BKSH))


def _masked(rule: Rule, score_BKGTS: jax.Array, queries: Queries, keys: Keys) -> jax.Array:
    """Returns scores, _MASKED where a query does not see a key."""
    allowed_BTS = rule.mask.between(
        queries.places_T, keys.places_S, queries.segments_BT, keys.segments_BS, keys.prefix_BS
    )
    return jnp.where(allowed_BTS[:, None, None], score_BKGTS, _MASKED)


def _matmul(letters: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(letters, x, y, preferred_element_type=jnp.float32)


def cut(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array | None,
    prefix_BT: jax.Array | None,
    places_T: jax.Array,
) -> tuple[Queries, Keys]:
    """Returns the queries and the keys of this device in blocks, every array with a first dim P."""
    segments_PBT = None if segments_BT is None else blocks(segments_BT, -1)
    prefix_PBT = None if prefix_BT is None else blocks(prefix_BT, -1)
    places_PT = blocks(places_T[None], -1)[:, 0]
    q_PBKGTH = blocks(grouped(q_BTNH, k_BTKH.shape[2]), -2)
    k_PBKSH, v_PBKSH = blocks(k_BTKH, -2), blocks(v_BTKH, -2)
    queries_P = Queries(q_PBKGTH, segments_PBT, places_PT)
    return queries_P, Keys(k_PBKSH, v_PBKSH, segments_PBT, prefix_PBT, places_PT)


def grouped(x_BTN: jax.Array, K: int) -> jax.Array:
    """Returns [B, T, K, G, ...]: the query heads of each key/value head."""
    return x_BTN.reshape(*x_BTN.shape[:2], K, -1, *x_BTN.shape[3:])


def blocks(x_BT: jax.Array, axis: int) -> jax.Array:
    """Returns [P, B, ..., T / P, ...] of an array [B, T, ...], the T / P at an axis."""
    length = x_BT.shape[1]
    assert length % 2 == 0, length
    fitting = (n for n in range(2, length + 1, 2) if length % n == 0 and length <= n * BLOCK_LEN)
    x_BPT = x_BT.reshape(x_BT.shape[0], next(fitting), -1, *x_BT.shape[2:])
    return jnp.moveaxis(x_BPT.swapaxes(0, 1), 2, axis)


def whole(x_P: jax.Array, axis: int) -> jax.Array:
    """Returns [B, T, ...] of the blocks that blocks makes."""
    x_BPT = jnp.moveaxis(x_P, axis, 2).swapaxes(0, 1)
    return x_BPT.reshape(x_BPT.shape[0], -1, *x_BPT.shape[3:])
