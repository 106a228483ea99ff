"""The decoder-only Transformer: an embedding, blocks scanned over layers, a norm, a head."""

import jax
import jax.numpy as jnp
from flax import nnx

from configs.model import ModelConfig
from model.attention import Attention, Mask
from model.dropout import dropout, fold
from model.mlp import MLP
from model.norm import make_norm
from model.parameters import broadcast, normal, project
from sharding.rules import constrain

_REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Source: Radford et al. 2019, Language models are unsupervised multitask learners, section 2.3.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        mask: Mask,
        keys_B: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the residual stream after the block, [B, T, D]."""
        attention_keys_B, mlp_keys_B = fold(keys_B, 0), fold(keys_B, 1)
        x_BTD = x_BTD + self.attention(
            self.attention_norm(x_BTD), positions_BT, mask, attention_keys_B
        )
        x_BTD = x_BTD + self.mlp(self.mlp_norm(x_BTD), mlp_keys_B)
        return constrain(x_BTD, "act_batch", "act_len", "act_embed")


class Decoder(nnx.Module):
    """Tokens in, the final hidden states out; `logits` turns those into predictions.

    The parameters of all blocks are stacked in model order, [L, ...].
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        V, D, std = config.num_padded_tokens, config.embed_dim, config.init_std
        self.config = config
        self.embedding = normal(rngs, (V, D), "vocab", "embed", std=std)
        if config.num_positions is not None:
            shape = (config.num_positions, D)
            self.positions = normal(rngs, shape, "positions", "embed", std=std)
        stack = nnx.vmap(
            lambda rngs: Block(config, rngs=rngs),
            in_axes=0,
            out_axes=0,
            transform_metadata={nnx.PARTITION_NAME: "layers", "axes": "layers"},
        )
        self.layers = stack(rngs.split(config.num_layers))
        self.norm = make_norm(config)
        if not config.tied_head:
            self.head = normal(rngs, (D, V), "embed", "vocab", std=std)

    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segments_BT: jax.Array,
        keys_B: jax.Array | None = None,
    ) -> jax.Array:
        """Returns hidden states [B, T, D] after the last norm, in config.dtype.

        Args:
            tokens_BT: ids below the padded vocabulary.
            positions_BT: place of each token in its document.
            segments_BT: a token sees earlier tokens of its own segment only.
            keys_B: one random key a row, for dropout in training; None in evaluation.
        """
        config = self.config
        table_VD = self.embedding[...].astype(config.dtype)
        x_BTD = constrain(table_VD, "act_vocab", "act_embed")[tokens_BT]
        if config.num_positions is not None:
            x_BTD = x_BTD + self.positions[...].astype(config.dtype)[positions_BT]
        x_BTD = constrain(x_BTD, "act_batch", "act_len", "act_embed")
        x_BTD = dropout(x_BTD, config.dropout, fold(keys_B, config.num_layers))

        mask = Mask(kind="causal", segments_BT=segments_BT)
        graph, params_L = nnx.split(self.layers)

        def apply_block(x_BTD, layer):
            number, params = layer
            block: Block = nnx.merge(graph, params)
            return block(x_BTD, positions_BT, mask, fold(keys_B, number)), None

        if config.remat != "none":
            apply_block = jax.checkpoint(
                apply_block, policy=_REMAT_POLICIES[config.remat], prevent_cse=False
            )
        x_BTD, _ = jax.lax.scan(
            apply_block,
            x_BTD,
            (jnp.arange(config.num_layers), params_L),
            unroll=config.num_unrolled_layers,
        )
        return self.norm(x_BTD)

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Returns float32 logits [B, T, V], V padded; the padding can never be chosen."""
        config = self.config
        head_DV = self.embedding[...].T if config.tied_head else self.head[...]
        logits_BTV = project(x_BTD, head_DV, axes=("act_vocab",), out_dtype=jnp.float32)
        if config.logit_softcap is not None:
            logits_BTV = config.logit_softcap * jnp.tanh(logits_BTV / config.logit_softcap)
        is_token_V = jnp.arange(config.num_padded_tokens) < config.num_tokens
        return jnp.where(broadcast(is_token_V, logits_BTV), logits_BTV, -1e30)
