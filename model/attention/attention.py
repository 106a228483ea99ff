"""Attention: the plain computation, the choice among several, and the module around them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from configs.model import ModelConfig
from model.attention.mask import Mask, Scoring
from model.attention.ring import ring_attend
from model.attention.rope import frequencies, rotate
from model.dropout import dropout, fold, kept
from model.norm import RMSNorm
from model.parameters import normal, project, value_of, zeros
from sharding.rules import constrain, num_shards

_MASKED = -1e30  # not -inf: a row that sees nothing must give a finite gradient


class Memory(NamedTuple):
    """An encoded text that another one attends to."""

    hidden_BSD: jax.Array
    segments_BS: jax.Array
    """Which segment of the other text reads which tokens."""


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask,
    *,
    scoring: Scoring | None = None,
    bias_BNTS: jax.Array | None = None,
    sinks_N: jax.Array | None = None,
    dropout_rate: float = 0.0,
    keys_BT: jax.Array | None = None,
) -> jax.Array:
    """Returns softmax(score(q k)) v as [B, T, N, H], the softmax in float32.

    Query head n reads key/value head n // (N / K). Values may have another width than keys, which
    the result has then. Source: Vaswani et al. 2017, Attention is all you need, arXiv:1706.03762,
    eq. 1; Ainslie et al. 2023, GQA, arXiv:2305.13245; Xiao et al. 2023, arXiv:2309.17453 (sinks).

    Args:
        scoring: None scales by one over the root of H.
        bias_BNTS: added to the scores.
        sinks_N: a score of each head that takes part in the softmax and has no value.
        keys_BT: one random key a query for dropout of its probabilities; None in evaluation.
    """
    (B, T, N, H), (S, K) = q_BTNH.shape, k_BSKH.shape[1:3]
    scoring = scoring or Scoring(H**-0.5)
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    product_BKGTS = jnp.einsum(
        "BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32
    )
    score_BKGTS = scoring(product_BKGTS)
    if bias_BNTS is not None:
        score_BKGTS = score_BKGTS + bias_BNTS.reshape(B, K, N // K, T, S)
    allowed_BTS = mask.allowed_BTS(T, None if mask.key_segments_BS is None else S)[:, None, None]
    score_BKGTS = jnp.where(allowed_BTS, score_BKGTS, _MASKED)
    if sinks_N is None:
        probability_BKGTS = jax.nn.softmax(score_BKGTS, axis=-1)
    else:
        sinks_BKGT1 = sinks_N.astype(jnp.float32).reshape(1, K, N // K, 1, 1)
        sinks_BKGT1 = jnp.broadcast_to(sinks_BKGT1, (B, K, N // K, T, 1))
        scores = jnp.concatenate((score_BKGTS, sinks_BKGT1), axis=-1)
        probability_BKGTS = jax.nn.softmax(scores, axis=-1)[..., :-1]
    probability_BKGTS = probability_BKGTS.astype(v_BSKH.dtype)
    if keys_BT is not None and dropout_rate > 0:
        kept_BTKGS = kept(keys_BT, dropout_rate, (K, N // K, S))
        scaled_BKGTS = (probability_BKGTS / (1 - dropout_rate)).astype(v_BSKH.dtype)
        probability_BKGTS = jnp.where(jnp.moveaxis(kept_BTKGS, 1, 3), scaled_BKGTS, 0)
    y_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", probability_BKGTS, v_BSKH)
    return y_BTKGH.reshape(B, T, N, v_BSKH.shape[-1])


def attend_along_context(
    config: ModelConfig,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask,
    *,
    bias_BNTS: jax.Array | None = None,
    sinks_N: jax.Array | None = None,
    keys_BT: jax.Array | None = None,
) -> jax.Array:
    """Returns attention where the row is whole, or cut over the context axis.

    The result is named here and not by the caller: the ring names what it keeps for its own
    backward pass, and under a second name it would be kept twice.
    """
    scale = config.attention_scale or q_BTNH.shape[-1] ** -0.5
    scoring = Scoring(scale, config.attention_softcap)
    if num_shards("act_len") > 1 and config.context_attention == "ring":
        return ring_attend(q_BTNH, k_BSKH, v_BSKH, mask, scoring=scoring, sinks_N=sinks_N)
    kv_axes = ("act_batch", None, "act_kv_heads", "act_head_dim")  # gathered along the row
    y_BTNH = attend(
        q_BTNH,
        constrain(k_BSKH, *kv_axes),
        constrain(v_BSKH, *kv_axes),
        mask,
        scoring=scoring,
        bias_BNTS=bias_BNTS,
        sinks_N=sinks_N,
        dropout_rate=config.attention_dropout,
        keys_BT=keys_BT,
    )
    return checkpoint_name(y_BTNH, "attention")


class Attention(nnx.Module):
    """Multi-head or grouped-query attention with its four projections.

    Keys and values are those of the text itself, or of an encoded one.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D, H = config.embed_dim, config.head_dim
        N, K = config.num_heads, config.num_kv_heads
        std = config.init_std
        self.config = config
        self.query = normal(rngs, (D, N, H), "embed", "heads", "head_dim", std=std)
        self.key = normal(rngs, (D, K, H), "embed", "kv_heads", "head_dim", std=std)
        self.value = normal(rngs, (D, K, H), "embed", "kv_heads", "head_dim", std=std)
        std_out = std / (2 * config.num_layers) ** 0.5
        self.out = normal(rngs, (N, H, D), "heads", "head_dim", "embed", std=std_out)
        has_bias = config.bias or config.qkv_bias
        self.query_bias = zeros((N, H), "heads", "head_dim") if has_bias else None
        self.key_bias = zeros((K, H), "kv_heads", "head_dim") if has_bias else None
        self.value_bias = zeros((K, H), "kv_heads", "head_dim") if has_bias else None
        self.out_bias = zeros((D,), "norm") if config.bias else None
        if config.qk_norm:
            self.query_norm, self.key_norm = (_head_norm(config, num) for num in (N, K))
        self.sinks = zeros((N,), "sinks") if config.attention_sinks else None

    def __call__(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        mask: Mask,
        keys_BT: jax.Array | None = None,
        *,
        memory: Memory | None = None,
        bias_BNTS: jax.Array | None = None,
        is_local: bool = False,
    ) -> jax.Array:
        """Returns what each position gathers from those it sees, [B, T, D].

        Args:
            keys_BT: one random key a token, for dropout in training; None in evaluation.
            memory: where keys and values come from; None is x itself.
            bias_BNTS: added to the scores.
            is_local: whether the layer is a local one, which may rotate by another base.
        """
        config = self.config
        heads, kv_heads = ("act_heads", "act_head_dim"), ("act_kv_heads", "act_head_dim")
        source_BSD = x_BTD if memory is None else memory.hidden_BSD
        q_BTNH = project(x_BTD, self.query[...], value_of(self.query_bias), axes=heads)
        k_BSKH = project(source_BSD, self.key[...], value_of(self.key_bias), axes=kv_heads)
        v_BSKH = project(source_BSD, self.value[...], value_of(self.value_bias), axes=kv_heads)
        if config.qk_norm:
            q_BTNH, k_BSKH = self.query_norm(q_BTNH), self.key_norm(k_BSKH)
        if config.position == "rotary" and memory is None:
            frequency_J = frequencies(config, is_local=is_local)
            q_BTNH = rotate(q_BTNH, positions_BT, frequency_J, config.rope_attention_factor)
            k_BSKH = rotate(k_BSKH, positions_BT, frequency_J, config.rope_attention_factor)
        q_BTNH = checkpoint_name(q_BTNH, "query")
        k_BSKH, v_BSKH = checkpoint_name(k_BSKH, "key"), checkpoint_name(v_BSKH, "value")
        y_BTNH = attend_along_context(
            config,
            q_BTNH,
            k_BSKH,
            v_BSKH,
            mask,
            bias_BNTS=bias_BNTS,
            sinks_N=value_of(self.sinks),
            keys_BT=fold(keys_BT, 0),
        )
        y_BTNH = constrain(y_BTNH, "act_batch", "act_len", *heads)
        y_BTD = project(
            y_BTNH, self.out[...], value_of(self.out_bias), axes=("act_embed",), num_contracted=2
        )
        return dropout(checkpoint_name(y_BTD, "attention_out"), config.dropout, fold(keys_BT, 1))


def _head_norm(config: ModelConfig, num_heads: int) -> RMSNorm:
    dims, axes = (config.head_dim,), ("head_dim",)
    if config.qk_norm_over == "heads":
        axis = "heads" if num_heads == config.num_heads else "kv_heads"
        dims, axes = (num_heads, config.head_dim), (axis, "head_dim")
    return RMSNorm(dims, axes, config)
