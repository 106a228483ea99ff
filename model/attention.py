"""Attention: the plain computation, the choice among several, and the module around them."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from configs.model import ModelConfig
from model.dropout import dropout, fold, kept
from model.mask import Mask
from model.norm import RMSNorm
from model.parameters import normal, project, zeros
from model.ring import ring_attend
from model.rotary import rotate
from sharding.rules import constrain, num_shards

_MASKED = -1e30  # not -inf: a row that sees nothing must give a finite gradient


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask,
    *,
    dropout_rate: float = 0.0,
    keys_BT: jax.Array | None = None,
) -> jax.Array:
    """Returns softmax(q k / sqrt(H)) v as [B, T, N, H], the softmax in float32.

    Query head n reads key/value head n // (N / K). Source: Vaswani et al. 2017, Attention is all
    you need, arXiv:1706.03762, eq. 1; Ainslie et al. 2023, GQA, arXiv:2305.13245.

    Args:
        keys_BT: one random key a query for dropout of its probabilities; None in evaluation.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    score_BKGTS = jnp.einsum(
        "BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32
    )
    allowed_BTS = mask.allowed_BTS(T)[:, None, None]
    score_BKGTS = jnp.where(allowed_BTS, score_BKGTS * H**-0.5, _MASKED)
    probability_BKGTS = jax.nn.softmax(score_BKGTS, axis=-1).astype(v_BSKH.dtype)
    if keys_BT is not None and dropout_rate > 0:
        kept_BTKGS = kept(keys_BT, dropout_rate, (K, N // K, T))
        scaled_BKGTS = (probability_BKGTS / (1 - dropout_rate)).astype(v_BSKH.dtype)
        probability_BKGTS = jnp.where(jnp.moveaxis(kept_BTKGS, 1, 3), scaled_BKGTS, 0)
    return jnp.einsum("BKGTS,BSKH->BTKGH", probability_BKGTS, v_BSKH).reshape(B, T, N, H)


class Attention(nnx.Module):
    """Multi-head or grouped-query self-attention with its four projections."""

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
        if config.bias:
            self.query_bias = zeros((N, H), "heads", "head_dim")
            self.key_bias = zeros((K, H), "kv_heads", "head_dim")
            self.value_bias = zeros((K, H), "kv_heads", "head_dim")
            self.out_bias = zeros((D,), "norm")
        if config.qk_norm:
            self.query_norm = RMSNorm(H, config.norm_epsilon, axis="head_dim")
            self.key_norm = RMSNorm(H, config.norm_epsilon, axis="head_dim")

    def __call__(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        mask: Mask,
        keys_BT: jax.Array | None = None,
    ) -> jax.Array:
        """Returns what each position gathers from those it sees, [B, T, D].

        Args:
            keys_BT: one random key a token, for dropout in training; None in evaluation.
        """
        config = self.config
        biases = (
            (self.query_bias[...], self.key_bias[...], self.value_bias[...], self.out_bias[...])
            if config.bias
            else (None,) * 4
        )
        heads, kv_heads = ("act_heads", "act_head_dim"), ("act_kv_heads", "act_head_dim")
        q_BTNH = project(x_BTD, self.query[...], biases[0], axes=heads)
        k_BTKH = project(x_BTD, self.key[...], biases[1], axes=kv_heads)
        v_BTKH = project(x_BTD, self.value[...], biases[2], axes=kv_heads)
        if config.qk_norm:
            q_BTNH, k_BTKH = self.query_norm(q_BTNH), self.key_norm(k_BTKH)
        if config.position == "rotary":
            q_BTNH = rotate(q_BTNH, positions_BT, config.rope_theta)
            k_BTKH = rotate(k_BTKH, positions_BT, config.rope_theta)
        q_BTNH = checkpoint_name(q_BTNH, "query")
        k_BTKH, v_BTKH = checkpoint_name(k_BTKH, "key"), checkpoint_name(v_BTKH, "value")
        y_BTNH = self._attend(q_BTNH, k_BTKH, v_BTKH, mask, fold(keys_BT, 0))
        y_BTNH = constrain(y_BTNH, "act_batch", "act_len", *heads)
        y_BTD = project(y_BTNH, self.out[...], biases[3], axes=("act_embed",), num_contracted=2)
        return dropout(checkpoint_name(y_BTD, "attention_out"), config.dropout, fold(keys_BT, 1))

    def _attend(
        self,
        q_BTNH: jax.Array,
        k_BTKH: jax.Array,
        v_BTKH: jax.Array,
        mask: Mask,
        keys_BT: jax.Array | None,
    ) -> jax.Array:
        """Computes attention where the row is whole, or cut over the context axis.

        The result is named here and not by the caller: the ring names what it keeps for its own
        backward pass, and under a second name it would be kept twice.
        """
        config = self.config
        if num_shards("act_len") > 1 and config.context_attention == "ring":
            return ring_attend(q_BTNH, k_BTKH, v_BTKH, mask)
        kv_axes = ("act_batch", None, "act_kv_heads", "act_head_dim")  # gathered along the row
        y_BTNH = attend(
            q_BTNH,
            constrain(k_BTKH, *kv_axes),
            constrain(v_BTKH, *kv_axes),
            mask,
            dropout_rate=config.attention_dropout,
            keys_BT=keys_BT,
        )
        return checkpoint_name(y_BTNH, "attention")
