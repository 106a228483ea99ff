"""The Transformer: a decoder (GPT), an encoder (BERT), or an encoder beside a decoder (T5)."""

import operator
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from configs.model import ModelConfig
from model.attention.attention import Memory
from model.attention.relative_bias import relative_bias
from model.block import Rows, make_stack, run_stack
from model.dropout import dropout, fold, token_keys
from model.embedding import sinusoids
from model.inputs import Inputs
from model.language_model import LanguageModel
from model.moe.moe import RouterRecord
from model.mtp import FutureHead, make_future_heads
from model.norm import make_norm
from model.parameters import normal
from sharding.pipeline import Pipeline
from sharding.rules import constrain

_ENCODER = 1_000_000
"""Folded into the keys of the encoder, beyond the number of any layer."""


class Transformer(LanguageModel):
    """Blocks of attention and an MLP, and a norm at the end.

    The parameters of all blocks are stacked, [L, ...], in the order of pipeline.layer_order. First
    blocks that differ from the others are a stack of their own, and so is the encoder beside a
    decoder.
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
        if config.num_leading_layers:
            self.first_layers = make_stack(
                config.leading(),
                config.num_leading_layers,
                axis="first_layers",
                has_first_norm=config.first_norm,
                rngs=rngs,
            )
        has_encoder = config.num_encoder_layers is not None
        num_layers = config.num_layers - config.num_leading_layers
        self.layers = make_stack(config, num_layers, reads_memory=has_encoder, rngs=rngs)
        has_last_norm = config.norm_placement != "post"
        self.norm = make_norm(config) if has_last_norm else None
        if config.num_encoder_layers is not None:
            num = config.num_encoder_layers
            self.encoder_layers = make_stack(config, num, axis="encoder_layers", rngs=rngs)
            self.encoder_norm = make_norm(config) if has_last_norm else None
        if config.position == "relative":
            shape, axes = (config.num_relative_buckets, config.num_heads), ("positions", "heads")
            self.relative_bias = normal(rngs, shape, *axes, std=std)
            if has_encoder:
                self.encoder_relative_bias = normal(rngs, shape, *axes, std=std)
        if config.mtp_depth:
            self.future = make_future_heads(config, rngs=rngs)
        self.make_head(rngs)

    def run(
        self,
        inputs: Inputs,
        keys_B: jax.Array | None = None,
        places_T: jax.Array | None = None,
    ) -> tuple[jax.Array, RouterRecord | None]:
        """Returns the hidden states, and what the routers of all layers did where there are any."""
        memory = None if inputs.encoder is None else self.encode(inputs.encoder, keys_B)
        return self.decode(inputs, memory, keys_B, places_T)

    def decode(
        self,
        inputs: Inputs,
        memory: Memory | None = None,
        keys_B: jax.Array | None = None,
        places_T: jax.Array | None = None,
    ) -> tuple[jax.Array, RouterRecord | None]:
        """Returns what `run` does, given the encoded text."""
        config = self.config
        kind = "full" if config.architecture == "encoder" else "causal"
        x_BTD, rows = self._begin(inputs, keys_B, places_T, kind=kind)
        rows = rows._replace(memory=memory)
        record = RouterRecord.zeros(config, len(x_BTD))
        num_first = config.num_leading_layers
        if num_first:
            x_BTD, _ = run_stack(self.first_layers, x_BTD, rows, None, kind=kind, places_T=places_T)
        x_BTD, record = run_stack(
            self.layers,
            x_BTD,
            rows,
            record,
            kind=kind,
            places_T=places_T,
            pipeline=self.pipeline,
            first=num_first,
        )
        return self._end(x_BTD, self.norm), record

    def encode(self, inputs: Inputs, keys_B: jax.Array | None = None) -> Memory:
        """Returns the encoded text, for the decoder beside it to read."""
        keys_B = fold(keys_B, _ENCODER)
        x_BSD, rows = self._begin(inputs, keys_B, None, kind="full")
        x_BSD, _ = run_stack(self.encoder_layers, x_BSD, rows, None, kind="full")
        return Memory(self._end(x_BSD, self.encoder_norm), inputs.segments_BT)

    def _begin(
        self,
        inputs: Inputs,
        keys_B: jax.Array | None,
        places_T: jax.Array | None,
        *,
        kind: Literal["causal", "full"],
    ) -> tuple[jax.Array, Rows]:
        """Returns the residual stream before the first block, and what belongs to its rows."""
        config, length = self.config, inputs.tokens_BT.shape[1]
        keys_BT = token_keys(keys_B, jnp.arange(length) if places_T is None else places_T)
        x_BTD = self._embed(inputs)
        if self.embed_norm is not None:
            x_BTD = self.embed_norm(x_BTD)
        x_BTD = dropout(x_BTD, config.dropout, fold(keys_BT, config.num_layers))
        bias_BNTS = None
        if config.position == "relative":
            of_encoder = kind == "full" and config.num_encoder_layers is not None
            table_RN = self.encoder_relative_bias if of_encoder else self.relative_bias
            bias_BNTS = relative_bias(
                config, table_RN[...], inputs.positions_BT, is_causal=kind == "causal"
            )
        rows = Rows(
            positions_BT=inputs.positions_BT,
            segments_BT=inputs.segments_BT,
            prefix_BT=inputs.prefix_BT,
            keys_BT=keys_BT,
            bias_BNTS=bias_BNTS,
        )
        return x_BTD, rows

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

    def _end(self, x_BTD: jax.Array, norm: nnx.Module | None) -> jax.Array:
        y_BTD = x_BTD if norm is None else norm(x_BTD)  # pyright: ignore[reportCallIssue]
        return constrain(y_BTD, "act_batch", "act_len", "act_embed")

    def predict_future(
        self,
        x_BTD: jax.Array,
        inputs: Inputs,
        next_BTK: jax.Array,
        places_T: jax.Array | None = None,
    ) -> list[jax.Array]:
        """Returns the hidden states that predict one token further, two tokens further, ...

        Args:
            x_BTD: the hidden states that predict the next token.
            next_BTK: of each place the next token, the one after it, ...: one a prediction.
        """
        rows = Rows(inputs.positions_BT, inputs.segments_BT, inputs.prefix_BT)
        graph, params_K = nnx.split(self.future)
        hidden = []
        for k in range(self.config.mtp_depth):
            head: FutureHead = nnx.merge(graph, jax.tree.map(operator.itemgetter(k), params_K))
            x_BTD = head(x_BTD, self.embed_tokens(next_BTK[..., k]), rows, places_T)
            hidden.append(self._end(x_BTD, self.norm))
        return hidden
