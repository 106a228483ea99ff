"""Attention as its formula: all scores at once, differentiated by JAX."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from model.attention.mask import MASKED, Mask, Scoring
from model.dropout import kept
from model.matmul import in_float32


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask,
    *,
    scoring: Scoring,
    bias_BNTS: jax.Array | None = None,
    sinks_N: jax.Array | None = None,
    dropout_rng_BT: jax.Array | None = None,
    dropout_rate: float = 0.0,
) -> jax.Array:
    """Returns softmax(score(q k)) v as [B, T, N, H], the softmax in float32.

    Query head n attends to key/value head n // (N / K). Values may have another width than keys,
    which the result has then. Source: Vaswani et al. 2017, Attention is all you need,
    arXiv:1706.03762, eq. 1; Ainslie et al. 2023, GQA, arXiv:2305.13245; Xiao et al. 2023,
    arXiv:2309.17453 (sinks).

    Args:
        bias_BNTS: added to the scores.
        sinks_N: a score of each head that takes part in the softmax and has no value.
        dropout_rng_BT: a PRNG key for each query, for dropout of its probabilities.
    """
    (B, T, N, H), (S, K) = q_BTNH.shape, k_BSKH.shape[1:3]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    score_BKGTS = scoring(in_float32(partial(jnp.einsum, "BTKGH,BSKH->BKGTS"), q_BTKGH, k_BSKH))
    if bias_BNTS is not None:
        score_BKGTS = score_BKGTS + bias_BNTS.reshape(B, K, N // K, T, S)
    score_BKGTS = jnp.where(mask.allowed_BTS(T, S)[:, None, None], score_BKGTS, MASKED)
    if sinks_N is None:
        probability_BKGTS = jax.nn.softmax(score_BKGTS, axis=-1)
    else:
        sinks_BKGT1 = sinks_N.astype(jnp.float32).reshape(1, K, N // K, 1, 1)
        sinks_BKGT1 = jnp.broadcast_to(sinks_BKGT1, (B, K, N // K, T, 1))
        scores = jnp.concatenate((score_BKGTS, sinks_BKGT1), axis=-1)
        probability_BKGTS = jax.nn.softmax(scores, axis=-1)[..., :-1]
    probability_BKGTS = probability_BKGTS.astype(v_BSKH.dtype)
    if dropout_rng_BT is not None and dropout_rate > 0:
        kept_BTKGS = kept(dropout_rng_BT, dropout_rate, (K, N // K, S))
        scaled_BKGTS = (probability_BKGTS / (1 - dropout_rate)).astype(v_BSKH.dtype)
        probability_BKGTS = jnp.where(jnp.moveaxis(kept_BTKGS, 1, 3), scaled_BKGTS, 0)
    y_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", probability_BKGTS, v_BSKH)
    return checkpoint_name(y_BTKGH.reshape(B, T, N, v_BSKH.shape[-1]), "attention")
