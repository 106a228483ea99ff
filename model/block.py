"""A block of a Transformer."""

from typing import Literal, NamedTuple

import jax
from flax import nnx

from configs.model import ModelConfig
from model.attention.attention import Attention, EncoderOutput
from model.attention.mask import Mask
from model.attention.mla import LatentAttention
from model.dropout import fold
from model.mlp import MLP
from model.moe.moe import MoE, RouterRecord
from model.norm import LayerNorm, RMSNorm, make_norm
from sharding.rules import constrain

Norm = RMSNorm | LayerNorm | None


class LayerInputs(NamedTuple):
    """What every layer takes beside the residual stream; arrays [B, ...]."""

    positions_BT: jax.Array
    segments_BT: jax.Array
    prefix_BT: jax.Array | None = None
    rng_BT: jax.Array | None = None
    """A PRNG key for each token, for dropout in training."""
    encoder_output: EncoderOutput | None = None
    bias_BNTS: jax.Array | None = None
    """Added to the scores of attention."""


class Block(nnx.Module):
    """Attention and an MLP, or several experts, each added to the residual stream.

    Between the two, and between blocks, no token depends on another: there the residual stream is
    sharded along the sequence as well. Source: Radford et al. 2019, Language models are
    unsupervised multitask learners, section 2.3; Korthikanti et al. 2022, arXiv:2205.05198,
    section 4.2 (sequence parallelism).
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        mask_kind: Literal["causal", "full"] = "causal",
        has_cross_attention: bool = False,
        has_first_norm: bool = True,
        rngs: nnx.Rngs,
    ):
        """Makes a block, whose own attention has the mask_kind; cross-attention comes after it."""
        is_before = config.norm_placement in ("pre", "sandwich")
        is_after = config.norm_placement != "pre"

        def make(needed: bool) -> Norm:
            return make_norm(config) if needed else None

        self.config = config
        self.mask_kind: Literal["causal", "full"] = mask_kind
        self.attention_norm = make(is_before and has_first_norm)
        kind = Attention if config.attention == "mha" else LatentAttention
        self.attention = kind(config, rngs=rngs)
        self.attention_out_norm = make(is_after)
        if has_cross_attention:
            self.cross_attention_norm = make(is_before)
            self.cross_attention = Attention(config, rngs=rngs)
            self.cross_attention_out_norm = make(is_after)
        self.has_cross_attention = has_cross_attention
        self.mlp_norm = make(is_before)
        self.mlp = (MLP if config.num_experts is None else MoE)(config, rngs=rngs)
        self.mlp_out_norm = make(is_after)

    def __call__(
        self,
        x_BTD: jax.Array,
        inputs: LayerInputs,
        *,
        row_index_T: jax.Array | None = None,
        is_local: bool = False,
    ) -> tuple[jax.Array, RouterRecord | None]:
        """Returns the residual stream after the block, [B, T, D], and what its router did."""
        config, record = self.config, None
        positions_BT, segments_BT, rng_BT = inputs.positions_BT, inputs.segments_BT, inputs.rng_BT
        mask = Mask(
            kind=self.mask_kind,
            window=config.attention_window if is_local else None,
            segments_BT=segments_BT,
            prefix_BT=inputs.prefix_BT,
            row_index_T=row_index_T,
        )
        y_BTD = self._enter(x_BTD, self.attention_norm)
        y_BTD = self.attention(
            y_BTD,
            positions_BT,
            mask,
            fold(rng_BT, 0),
            bias_BNTS=inputs.bias_BNTS,
            is_local=is_local,
        )
        x_BTD = self._add(x_BTD, y_BTD, self.attention_out_norm)
        if self.has_cross_attention:
            encoder_output = inputs.encoder_output
            assert encoder_output is not None
            mask = Mask(
                kind="full", segments_BT=segments_BT, key_segments_BS=encoder_output.segments_BS
            )
            y_BTD = self._enter(x_BTD, self.cross_attention_norm)
            y_BTD = self.cross_attention(
                y_BTD, positions_BT, mask, fold(rng_BT, 2), encoder_output=encoder_output
            )
            x_BTD = self._add(x_BTD, y_BTD, self.cross_attention_out_norm)
        y_BTD = self._enter(x_BTD, self.mlp_norm)
        if isinstance(self.mlp, MLP):
            y_BTD = self.mlp(y_BTD, fold(rng_BT, 1))
        else:
            y_BTD, record = self.mlp(
                y_BTD,
                is_token_BT=segments_BT > 0,
                row_index_T=row_index_T,
                rng_BT=fold(rng_BT, 1),
            )
        return self._add(x_BTD, y_BTD, self.mlp_out_norm), record

    def _enter(self, x_BTD: jax.Array, norm: Norm) -> jax.Array:
        """Returns what attention or MLP takes of the residual stream."""
        y_BTD = x_BTD if norm is None else norm(x_BTD)
        return constrain(y_BTD, "act_batch", "act_len", "act_embed")

    def _add(self, x_BTD: jax.Array, y_BTD: jax.Array, norm: Norm) -> jax.Array:
        """Adds what attention or MLP gives to the residual stream."""
        if norm is not None and self.config.norm_placement != "post":
            y_BTD = norm(y_BTD)
        x_BTD = x_BTD + y_BTD
        if norm is not None and self.config.norm_placement == "post":
            x_BTD = norm(x_BTD)
        return constrain(x_BTD, "act_batch", "act_block_len", "act_embed")
