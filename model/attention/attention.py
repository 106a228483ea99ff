"""Attention with projected heads: MHA, GQA, and cross-attention."""

from typing import NamedTuple

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from configs.model import ModelConfig
from model.attention.backends import attend
from model.attention.mask import Mask
from model.attention.positions import frequencies, rotate
from model.dropout import dropout, fold
from model.norm import RMSNorm
from model.parameters import normal, project, value_of, zeros
from sharding.rules import constrain


class EncoderOutput(NamedTuple):
    """What the decoder's cross-attention attends to."""

    hidden_BSD: jax.Array
    segments_BS: jax.Array
    """Which segment of the decoder's sequence attends to each token."""


class Attention(nnx.Module):
    """Multi-head or grouped-query attention with its four projections.

    Keys and values are those of the sequence itself, or of the encoder's output.
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
        rng_BT: jax.Array | None = None,
        *,
        encoder_output: EncoderOutput | None = None,
        bias_BNTS: jax.Array | None = None,
        is_local: bool = False,
    ) -> jax.Array:
        """Returns the attention output of each position, [B, T, D].

        Args:
            encoder_output: where keys and values come from; None is x itself.
            bias_BNTS: added to the scores.
            is_local: whether the layer is a local one, which may rotate by another base.
        """
        config = self.config
        heads, kv_heads = ("act_heads", "act_head_dim"), ("act_kv_heads", "act_head_dim")
        source_BSD = x_BTD if encoder_output is None else encoder_output.hidden_BSD
        q_BTNH = project(x_BTD, self.query[...], value_of(self.query_bias), axes=heads)
        k_BSKH = project(source_BSD, self.key[...], value_of(self.key_bias), axes=kv_heads)
        v_BSKH = project(source_BSD, self.value[...], value_of(self.value_bias), axes=kv_heads)
        if config.qk_norm:
            q_BTNH, k_BSKH = self.query_norm(q_BTNH), self.key_norm(k_BSKH)
        if config.position == "rotary" and encoder_output is None:
            frequency_J = frequencies(config, is_local=is_local)
            q_BTNH = rotate(q_BTNH, positions_BT, frequency_J, config.rope_scaling.attention_factor)
            k_BSKH = rotate(k_BSKH, positions_BT, frequency_J, config.rope_scaling.attention_factor)
        q_BTNH = checkpoint_name(q_BTNH, "query")
        k_BSKH, v_BSKH = checkpoint_name(k_BSKH, "key"), checkpoint_name(v_BSKH, "value")
        y_BTNH = attend(
            config,
            q_BTNH,
            k_BSKH,
            v_BSKH,
            mask,
            bias_BNTS=bias_BNTS,
            sinks_N=value_of(self.sinks),
            dropout_rng_BT=fold(rng_BT, 0),
        )
        y_BTNH = constrain(y_BTNH, "act_batch", "act_len", *heads)
        y_BTD = project(
            y_BTNH, self.out[...], value_of(self.out_bias), axes=("act_embed",), num_contracted=2
        )
        return dropout(checkpoint_name(y_BTD, "attention_out"), config.dropout, fold(rng_BT, 1))


def _head_norm(config: ModelConfig, num_heads: int) -> RMSNorm:
    dims, axes = (config.head_dim,), ("head_dim",)
    if config.qk_norm_over == "heads":
        axis = "heads" if num_heads == config.num_heads else "kv_heads"
        dims, axes = (num_heads, config.head_dim), (axis, "head_dim")
    return RMSNorm(dims, axes, config)
