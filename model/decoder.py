"""The decoder-only Transformer: an embedding, a stack of blocks, a norm, a head."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from configs.model import ModelConfig
from model.attention import Attention
from model.dropout import dropout, fold, token_keys
from model.embedding import look_up
from model.mask import Mask
from model.mlp import MLP
from model.moe import MoE, RouterRecord
from model.norm import make_norm
from model.parameters import broadcast, normal, project
from sharding.pipeline import Pipeline, run_layers
from sharding.rules import constrain


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), the MLP one or several experts.

    Between the two, and between blocks, every token is by itself: there the residual stream is cut
    along the row as well. Source: Radford et al. 2019, Language models are unsupervised multitask
    learners, section 2.3; Korthikanti et al. 2022, arXiv:2205.05198, section 4.2 (the cut).
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = make_norm(config)
        self.mlp = (MLP if config.num_experts is None else MoE)(config, rngs=rngs)

    def __call__(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        mask: Mask,
        keys_BT: jax.Array | None = None,
    ) -> tuple[jax.Array, RouterRecord | None]:
        """Returns the residual stream after the block, [B, T, D], and what its router did."""
        whole_rows = ("act_batch", "act_len", "act_embed")
        normed_BTD = constrain(self.attention_norm(x_BTD), *whole_rows)
        x_BTD = x_BTD + self.attention(normed_BTD, positions_BT, mask, fold(keys_BT, 0))
        normed_BTD = constrain(self.mlp_norm(x_BTD), *whole_rows)
        record = None
        if isinstance(self.mlp, MLP):
            y_BTD = self.mlp(normed_BTD, fold(keys_BT, 1))
        else:
            assert mask.segments_BT is not None
            y_BTD, record = self.mlp(
                normed_BTD,
                is_token_BT=mask.segments_BT > 0,
                places_T=mask.places_T,
                keys_BT=fold(keys_BT, 1),
            )
        return constrain(x_BTD + y_BTD, "act_batch", "act_block_len", "act_embed"), record


class Decoder(nnx.Module):
    """Tokens in, the final hidden states out; `logits` turns those into predictions.

    The parameters of all blocks are stacked, [L, ...], in the order of pipeline.layer_order.
    """

    def __init__(self, config: ModelConfig, pipeline: Pipeline | None = None, *, rngs: nnx.Rngs):
        V, D, std = config.num_padded_tokens, config.embed_dim, config.init_std
        self.config = config
        self.pipeline = pipeline or Pipeline()
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
        places_T: jax.Array | None = None,
    ) -> jax.Array:
        """Returns hidden states [B, T, D] after the last norm, in config.dtype.

        Args:
            tokens_BT: ids below the padded vocabulary.
            positions_BT: place of each token in its document.
            segments_BT: a token sees earlier tokens of its own segment only; 0 is padding.
            keys_B: one random key a row, for dropout in training; None in evaluation.
            places_T: where in its row each column stands; None is in order.
        """
        return self.run(tokens_BT, positions_BT, segments_BT, keys_B, places_T)[0]

    def run(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segments_BT: jax.Array,
        keys_B: jax.Array | None = None,
        places_T: jax.Array | None = None,
    ) -> tuple[jax.Array, RouterRecord | None]:
        """Returns the hidden states, and what the routers of all layers did where there are any."""
        config = self.config
        length = tokens_BT.shape[1]
        keys_BT = token_keys(keys_B, jnp.arange(length) if places_T is None else places_T)
        x_BTD = self._embed(tokens_BT, positions_BT)
        x_BTD = dropout(x_BTD, config.dropout, fold(keys_BT, config.num_layers))
        graph, params_L = nnx.split(self.layers)

        def apply_block(carry: Any, rows: Any, number: jax.Array, params: Any) -> Any:
            x_BTD, sums = carry
            positions_BT, segments_BT, keys_BT = rows
            block: Block = nnx.merge(graph, params)
            mask = Mask(
                kind="causal",
                window=config.attention_window,
                segments_BT=segments_BT,
                places_T=places_T,
            )
            x_BTD, record = block(x_BTD, positions_BT, mask, fold(keys_BT, number))
            return x_BTD, jax.tree.map(jnp.add, sums, record)

        zeros_B = jnp.zeros(len(tokens_BT), jnp.float32)
        x_BTD, record = run_layers(
            _with_remat(apply_block, config),
            (x_BTD, RouterRecord(zeros_B, zeros_B) if config.num_experts else None),
            (positions_BT, segments_BT, keys_BT),
            params_L,
            self.pipeline,
            num_unrolled=config.num_unrolled_layers,
        )
        return constrain(self.norm(x_BTD), "act_batch", "act_len", "act_embed"), record

    def _embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        dtype = self.config.dtype
        table_VD = constrain(self.embedding[...].astype(dtype), "act_vocab", "act_embed")
        x_BTD = look_up(table_VD, tokens_BT)
        if self.config.num_positions is not None:
            x_BTD = x_BTD + self.positions[...].astype(dtype)[positions_BT]
        return constrain(x_BTD, "act_batch", "act_block_len", "act_embed")

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Returns float32 logits [B, T, V], V padded; the padding can never be chosen."""
        config = self.config
        head_DV = self.embedding[...].T if config.tied_head else self.head[...]
        logits_BTV = project(x_BTD, head_DV, axes=("act_vocab",), out_dtype=jnp.float32)
        if config.logit_softcap is not None:
            logits_BTV = config.logit_softcap * jnp.tanh(logits_BTV / config.logit_softcap)
        is_token_V = jnp.arange(config.num_padded_tokens) < config.num_tokens
        return jnp.where(broadcast(is_token_V, logits_BTV), logits_BTV, -1e30)


def _with_remat(apply_block: Any, config: ModelConfig) -> Any:
    """Returns the block with what its backward pass computes again."""
    policies = jax.checkpoint_policies
    match config.remat:
        case "none":
            return apply_block
        case "dots":
            policy = policies.dots_with_no_batch_dims_saveable
            if config.num_experts is not None:  # whose grouped matmuls are no dots to JAX
                names = policies.save_only_these_names("gate", "up", "mlp_out")
                policy = policies.save_from_both_policies(policy, names)
        case "full":
            policy = policies.nothing_saveable
        case "named":
            policy = policies.save_and_offload_only_these_names(
                names_which_can_be_saved=list(config.remat_saved),
                names_which_can_be_offloaded=list(config.remat_offloaded),
                offload_src="device",
                offload_dst="pinned_host",
            )
    return jax.checkpoint(apply_block, policy=policy, prevent_cse=False)
