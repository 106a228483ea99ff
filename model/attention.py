"""Attention: which keys a query sees, the plain computation, and the module around it."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from configs.model import ModelConfig
from model.dropout import dropout, fold
from model.norm import RMSNorm
from model.parameters import normal, project, zeros
from model.rotary import rotate
from sharding.rules import constrain

_MASKED = -1e30  # not -inf: a row that sees nothing must give a finite gradient


@dataclass(frozen=True, kw_only=True)
class Mask:
    """What each query sees, described; not an array of T x S that a backend would have to read."""

    kind: Literal["causal", "full"]
    """causal: keys up to the query's own place in the row. full: all of them."""
    segments_BT: jax.Array | None = None
    """Queries see keys of their own segment only; None is one segment."""

    def allowed_BTS(self, length: int) -> jax.Array:
        """Returns the description as booleans [B or 1, T, S], for a backend that needs them."""
        allowed = jnp.ones((1, length, length), bool)
        if self.kind == "causal":
            allowed = jnp.tril(allowed)
        if self.segments_BT is not None:
            allowed = allowed & (self.segments_BT[:, :, None] == self.segments_BT[:, None, :])
        return allowed


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask,
    *,
    dropout_rate: float = 0.0,
    keys_B: jax.Array | None = None,
) -> jax.Array:
    """Returns softmax(q k / sqrt(H)) v as [B, T, N, H], the softmax in float32.

    Query head n reads key/value head n // (N / K). Source: Vaswani et al. 2017, Attention is all
    you need, arXiv:1706.03762, eq. 1; Ainslie et al. 2023, GQA, arXiv:2305.13245.
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
    probability_BKGTS = dropout(probability_BKGTS, dropout_rate, keys_B)
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
        keys_B: jax.Array | None = None,
    ) -> jax.Array:
        """Returns what each position gathers from those it sees, [B, T, D].

        Args:
            keys_B: one random key a row, for dropout in training; None in evaluation.
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
        y_BTNH = attend(
            q_BTNH,
            k_BTKH,
            v_BTKH,
            mask,
            dropout_rate=config.attention_dropout,
            keys_B=fold(keys_B, 0),
        )
        y_BTNH = constrain(y_BTNH, "act_batch", "act_len", *heads)
        y_BTD = project(y_BTNH, self.out[...], biases[3], axes=("act_embed",), num_contracted=2)
        return dropout(y_BTD, config.dropout, fold(keys_B, 1))
