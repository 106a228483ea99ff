"""The Transformer: a decoder (GPT), an encoder (BERT), or an encoder beside a decoder (T5)."""

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from configs.model import ModelConfig
from configs.position import NUM_RELATIVE_BUCKETS
from model.attention.attention import EncoderOutput
from model.attention.positions import relative_bias
from model.block import LayerInputs
from model.dropout import dropout, fold, token_rng
from model.embedding import sinusoids
from model.inputs import Inputs
from model.language_model import LanguageModel
from model.layers import make_blocks, run_layers
from model.moe.moe import RouterRecord
from model.mtp import MTPModule
from model.norm import LayerNorm, RMSNorm, make_norm
from model.parameters import normal, stacked
from sharding.pipeline import Pipeline
from sharding.rules import constrain

_ENCODER = 1_000_000
"""Folded into the PRNG keys of the encoder, beyond the number of any layer."""


class Transformer(LanguageModel):
    """Blocks of attention and an MLP, and a norm at the end.

    The parameters of all blocks are stacked, [L, ...], in the order of pipeline.layer_order. The
    leading layers, which differ from the others, are a stack of their own, and so is the encoder
    beside a decoder.
    """

    def __init__(self, config: ModelConfig, pipeline: Pipeline | None = None, *, rngs: nnx.Rngs):
        super().__init__(config)
        D, std = config.embed_dim, config.init_std
        self.pipeline = pipeline or Pipeline()
        self.make_embedding(rngs)
        if config.num_positions is not None:
            shape = (config.num_positions, D)
            self.positions = normal(rngs, shape, "positions", "embed", std=std)
        if config.num_token_types is not None:
            shape = (config.num_token_types, D)
            self.types = normal(rngs, shape, "positions", "embed", std=std)
        self.embed_norm = make_norm(config) if config.embed_norm else None
        kind = "full" if config.architecture == "encoder" else "causal"
        if num := config.num_leading_layers:
            self.leading_layers = make_blocks(
                config.leading(),
                num,
                axis="leading_layers",
                mask_kind=kind,
                has_first_norm=config.first_norm,
                rngs=rngs,
            )
        has_encoder = config.num_encoder_layers is not None
        self.layers = make_blocks(
            config,
            config.num_stacked_layers,
            mask_kind=kind,
            has_cross_attention=has_encoder,
            rngs=rngs,
        )
        has_last_norm = config.norm_placement != "post"
        self.norm = make_norm(config) if has_last_norm else None
        if config.num_encoder_layers is not None:
            num = config.num_encoder_layers
            self.encoder_layers = make_blocks(
                config, num, axis="encoder_layers", mask_kind="full", rngs=rngs
            )
            self.encoder_norm = make_norm(config) if has_last_norm else None
        if config.position == "relative":
            shape, axes = (NUM_RELATIVE_BUCKETS, config.num_heads), ("positions", "heads")
            self.relative_bias = normal(rngs, shape, *axes, std=std)
            if has_encoder:
                self.encoder_relative_bias = normal(rngs, shape, *axes, std=std)
        if config.mtp_depth:
            self.mtp = stacked(
                lambda rngs: MTPModule(config, rngs=rngs), config.mtp_depth, "leading_layers", rngs
            )
        self.make_head(rngs)

    def run(
        self, inputs: Inputs, rng_B: jax.Array | None = None, row_index_T: jax.Array | None = None
    ) -> tuple[jax.Array, RouterRecord | None]:
        encoder_output = None if inputs.encoder is None else self.encode(inputs.encoder, rng_B)
        return self.decode(inputs, encoder_output, rng_B, row_index_T)

    def decode(
        self,
        inputs: Inputs,
        encoder_output: EncoderOutput | None = None,
        rng_B: jax.Array | None = None,
        row_index_T: jax.Array | None = None,
    ) -> tuple[jax.Array, RouterRecord | None]:
        """Returns what `run` does, given the output of the encoder."""
        config = self.config
        is_encoder = config.architecture == "encoder"
        x_BTD, layer_inputs = self._begin(inputs, rng_B, row_index_T, is_encoder=is_encoder)
        layer_inputs = layer_inputs._replace(encoder_output=encoder_output)
        record = RouterRecord.zeros(config, len(x_BTD))
        num_leading = config.num_leading_layers
        if num_leading:
            x_BTD, _ = run_layers(self.leading_layers, x_BTD, layer_inputs, row_index_T=row_index_T)
        x_BTD, record = run_layers(
            self.layers,
            x_BTD,
            layer_inputs,
            record,
            row_index_T=row_index_T,
            first=num_leading,
            pipeline=self.pipeline,
        )
        return self._end(x_BTD, self.norm), record

    def encode(self, inputs: Inputs, rng_B: jax.Array | None = None) -> EncoderOutput:
        """Returns the output of the encoder beside a decoder."""
        x_BSD, layer_inputs = self._begin(inputs, fold(rng_B, _ENCODER), None, is_encoder=True)
        x_BSD, _ = run_layers(self.encoder_layers, x_BSD, layer_inputs)
        return EncoderOutput(self._end(x_BSD, self.encoder_norm), inputs.segments_BT)

    def _begin(
        self,
        inputs: Inputs,
        rng_B: jax.Array | None,
        row_index_T: jax.Array | None,
        *,
        is_encoder: bool,
    ) -> tuple[jax.Array, LayerInputs]:
        """Returns the residual stream before the first block, and the inputs of all blocks."""
        config, length = self.config, inputs.tokens_BT.shape[1]
        rng_BT = token_rng(rng_B, jnp.arange(length) if row_index_T is None else row_index_T)
        x_BTD = self._embed(inputs)
        if self.embed_norm is not None:
            x_BTD = self.embed_norm(x_BTD)
        x_BTD = dropout(x_BTD, config.dropout, fold(rng_BT, config.num_layers))
        bias_BNTS = None
        if config.position == "relative":
            has_own = is_encoder and config.num_encoder_layers is not None
            table_RN = self.encoder_relative_bias if has_own else self.relative_bias
            bias_BNTS = relative_bias(table_RN[...], inputs.positions_BT, is_causal=not is_encoder)
        layer_inputs = LayerInputs(
            positions_BT=inputs.positions_BT,
            segments_BT=inputs.segments_BT,
            prefix_BT=inputs.prefix_BT,
            rng_BT=rng_BT,
            bias_BNTS=bias_BNTS,
        )
        return x_BTD, layer_inputs

    def _embed(self, inputs: Inputs) -> jax.Array:
        config, dtype = self.config, self.config.dtype
        x_BTD = self.embed_tokens(inputs.tokens_BT)
        if config.position == "learned":
            x_BTD = x_BTD + self.positions[...].astype(dtype)[inputs.positions_BT]
        elif config.position == "sinusoidal":
            x_BTD = x_BTD + sinusoids(inputs.positions_BT, config.embed_dim).astype(dtype)
        if config.num_token_types is not None:
            types_BT = inputs.types_BT
            types_BT = jnp.zeros_like(inputs.tokens_BT) if types_BT is None else types_BT
            x_BTD = x_BTD + self.types[...].astype(dtype)[types_BT]
        return constrain(x_BTD, "act_batch", "act_block_len", "act_embed")

    def _end(self, x_BTD: jax.Array, norm: RMSNorm | LayerNorm | None) -> jax.Array:
        y_BTD = x_BTD if norm is None else norm(x_BTD)
        return constrain(y_BTD, "act_batch", "act_len", "act_embed")

    def run_mtp(
        self,
        x_BTD: jax.Array,
        inputs: Inputs,
        next_tokens: Sequence[jax.Array],
        row_index_T: jax.Array | None = None,
    ) -> list[jax.Array]:
        """Returns the hidden states that predict one token further than x, two tokens further, ...

        Args:
            next_tokens: the next token of each position, the one after it, ...; each [B, T].
        """
        layer_inputs = LayerInputs(inputs.positions_BT, inputs.segments_BT, inputs.prefix_BT)
        graph, params = nnx.split(self.mtp)
        hidden = []
        for depth, tokens_BT in enumerate(next_tokens):
            module: MTPModule = nnx.merge(graph, jax.tree.map(operator.itemgetter(depth), params))
            x_BTD = module(x_BTD, self.embed_tokens(tokens_BT), layer_inputs, row_index_T)
            hidden.append(self._end(x_BTD, self.norm))
        return hidden


def balance_experts(
    config: ModelConfig, params: Any, old: Any, load_LE: jax.Array, finite: jax.Array
) -> Any:
    """Returns the parameters with the router biases moved towards an even load.

    Source: DeepSeek-AI 2024, DeepSeek-V3, arXiv:2412.19437, section 2.1.2.

    Args:
        params, old: parameters by module path, after a step's update and before.
        load_LE: choices that fell on each expert in the step, layers in the order of the stack.
        finite: False leaves the biases as they were.
    """
    load_LE = load_LE.astype(jnp.float32)
    towards_LE = jnp.sign(jnp.mean(load_LE, axis=-1, keepdims=True) - load_LE)
    bias_LE = old["layers"]["mlp"]["router_bias"]
    moved_LE = bias_LE + jnp.where(finite, config.router_bias_rate, 0) * towards_LE
    mlp = {**params["layers"]["mlp"], "router_bias": moved_LE}
    return {**params, "layers": {**params["layers"], "mlp": mlp}}
