"""Attention of one block of queries to one block of keys, and its gradients.

Letter: P blocks, the first dim of arrays that hold all blocks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from model.attention.mask import MASKED, Mask, Scoring

LOWEST = -1e20
"""Below every true score and far above MASKED: with it as the maximum masked weights are zero."""


class Queries(NamedTuple):
    """Queries of a block, or of all with a first dim P; in context parallelism they stay."""

    q_BKGTH: jax.Array
    segments_BT: jax.Array | None
    row_index_T: jax.Array


class Keys(NamedTuple):
    """Keys and values of a block, or of all with a first dim P; the ring sends them on."""

    k_BKSH: jax.Array
    v_BKSH: jax.Array
    segments_BS: jax.Array | None
    prefix_BS: jax.Array | None
    row_index_S: jax.Array


class Softmax(NamedTuple):
    """The softmax of queries over the keys so far; float32.

    Source: Milakov and Gimelshein 2018, Online normalizer calculation for softmax,
    arXiv:1805.02867, algorithm 3.
    """

    max_BKGT: jax.Array
    sum_BKGT: jax.Array
    """Of the weights exp(score - max)."""
    values_BKGTH: jax.Array
    """The sum of weight * value."""


class BackwardQueries(NamedTuple):
    """What the backward pass knows of queries."""

    queries: Queries
    dy_BKGTH: jax.Array
    logsumexp_BKGT: jax.Array
    """log(sum of exp(score)) over all keys, and the sinks."""
    delta_BKGT: jax.Array
    """The product of dy and y."""


def any_allowed(
    mask: Mask, query_index_T: jax.Array, key_index_S: jax.Array, *, has_prefix: bool = False
) -> jax.Array:
    """Returns False only where no query attends to a key, by the extremes of their row indices.

    Segments are left out, and every key may be in a prefix: they differ between rows, and this must
    be one boolean for all of them.
    """
    allowed = jnp.bool_(True)
    attends_ahead = mask.kind == "full" or has_prefix
    if not attends_ahead:
        allowed &= jnp.max(query_index_T) >= jnp.min(key_index_S)
    if mask.window is not None:
        allowed &= jnp.min(query_index_T) - jnp.max(key_index_S) < mask.window
        if attends_ahead:
            allowed &= jnp.min(key_index_S) - jnp.max(query_index_T) < mask.window
    return allowed


def may_attend(mask: Mask, queries: Queries, keys: Keys) -> jax.Array:
    """Returns False only where no query of a block attends to a key of the other."""
    has_prefix = keys.prefix_BS is not None
    return any_allowed(mask, queries.row_index_T, keys.row_index_S, has_prefix=has_prefix)


def add_sinks(sums_P: Softmax, sinks_KG: jax.Array) -> Softmax:
    """Returns the softmax of all blocks over the sinks too, which have no value."""
    sinks_PBKGT = sinks_KG[None, None, :, :, None].astype(jnp.float32)
    max_PBKGT = jnp.maximum(sums_P.max_BKGT, sinks_PBKGT)
    scale_PBKGT = jnp.exp(sums_P.max_BKGT - max_PBKGT)
    return Softmax(
        max_PBKGT,
        sums_P.sum_BKGT * scale_PBKGT + jnp.exp(sinks_PBKGT - max_PBKGT),
        sums_P.values_BKGTH * scale_PBKGT[..., None],
    )


def add_block(mask: Mask, scoring: Scoring, queries: Queries, keys: Keys, sums: Softmax) -> Softmax:
    """Returns the softmax of a block of queries over a block of keys too."""
    score_BKGTS = _masked(mask, _scores(scoring, queries, keys), queries, keys)
    max_BKGT = jnp.maximum(sums.max_BKGT, jnp.max(score_BKGTS, axis=-1))
    weight_BKGTS = jnp.exp(score_BKGTS - max_BKGT[..., None])
    scale_BKGT = jnp.exp(sums.max_BKGT - max_BKGT)
    more_BKGTH = _matmul("BKGTS,BKSH->BKGTH", weight_BKGTS.astype(keys.v_BKSH.dtype), keys.v_BKSH)
    return Softmax(
        max_BKGT,
        sums.sum_BKGT * scale_BKGT + jnp.sum(weight_BKGTS, axis=-1),
        sums.values_BKGTH * scale_BKGT[..., None] + more_BKGTH,
    )


def add_block_gradients(
    mask: Mask,
    scoring: Scoring,
    given: BackwardQueries,
    keys: Keys,
    dkv_2BKSH: jax.Array,
    dq_BKGTH: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns d/dk beside d/dv, and d/dq, with what a pair of blocks adds."""
    q_BKGTH, dy_BKGTH = given.queries.q_BKGTH, given.dy_BKGTH
    score_BKGTS = _scores(scoring, given.queries, keys)
    masked_BKGTS = _masked(mask, score_BKGTS, given.queries, keys)
    weight_BKGTS = jnp.exp(masked_BKGTS - given.logsumexp_BKGT[..., None])
    d_weight_BKGTS = _matmul("BKGTH,BKSH->BKGTS", dy_BKGTH, keys.v_BKSH)
    d_score_BKGTS = weight_BKGTS * (d_weight_BKGTS - given.delta_BKGT[..., None])
    if scoring.softcap is not None:  # the derivative of tanh
        d_score_BKGTS *= 1 - jnp.square(score_BKGTS / scoring.softcap)
    d_score_BKGTS = (d_score_BKGTS * scoring.scale).astype(q_BKGTH.dtype)
    weight_BKGTS = weight_BKGTS.astype(dy_BKGTH.dtype)
    dk_BKSH = _matmul("BKGTS,BKGTH->BKSH", d_score_BKGTS, q_BKGTH)
    dv_BKSH = _matmul("BKGTS,BKGTH->BKSH", weight_BKGTS, dy_BKGTH)
    more_BKGTH = _matmul("BKGTS,BKSH->BKGTH", d_score_BKGTS, keys.k_BKSH)
    return dkv_2BKSH + jnp.stack([dk_BKSH, dv_BKSH]), dq_BKGTH + more_BKGTH


def _scores(scoring: Scoring, queries: Queries, keys: Keys) -> jax.Array:
    return scoring(_matmul("BKGTH,BKSH->BKGTS", queries.q_BKGTH, keys.k_BKSH))


def _masked(mask: Mask, score_BKGTS: jax.Array, queries: Queries, keys: Keys) -> jax.Array:
    """Returns scores, MASKED where a query does not attend to a key."""
    between = (queries.row_index_T, keys.row_index_S, queries.segments_BT, keys.segments_BS)
    allowed_BTS = mask.between(*between, keys.prefix_BS)
    return jnp.where(allowed_BTS[:, None, None], score_BKGTS, MASKED)


def _matmul(letters: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(letters, x, y, preferred_element_type=jnp.float32)
