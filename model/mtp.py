"""Predictions of tokens beyond the next, each from the one before and the tokens in between."""

import jax
import jax.numpy as jnp
from flax import nnx

from configs.model import ModelConfig
from model.attention.mask import Mask
from model.block import Block, Rows
from model.norm import make_norm
from model.parameters import normal, project, stacked


class FutureHead(nnx.Module):
    """A projection of a hidden state and the next token, and a block.

    The block has one MLP, also where the model has experts. Source: DeepSeek-AI 2024, DeepSeek-V3,
    arXiv:2412.19437, section 2.2.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D = config.embed_dim
        self.hidden_norm, self.token_norm = make_norm(config), make_norm(config)
        self.project = normal(rngs, (2 * D, D), "embed", "head_dim", std=config.init_std)
        self.block = Block(config.leading(), rngs=rngs)

    def __call__(
        self, x_BTD: jax.Array, tokens_BTD: jax.Array, rows: Rows, places_T: jax.Array | None
    ) -> jax.Array:
        """Returns hidden states [B, T, D] that see one token further than x.

        Args:
            tokens_BTD: embedding of the token that x predicts.
        """
        both = jnp.concatenate((self.hidden_norm(x_BTD), self.token_norm(tokens_BTD)), axis=-1)
        x_BTD = project(both, self.project[...], axes=(None,))
        mask = Mask(
            kind="causal",
            segments_BT=rows.segments_BT,
            prefix_BT=rows.prefix_BT,
            places_T=places_T,
        )
        return self.block(x_BTD, rows, mask)[0]


def make_future_heads(config: ModelConfig, *, rngs: nnx.Rngs) -> FutureHead:
    """Returns the heads of all tokens further, stacked."""
    num = config.mtp_depth
    return stacked(lambda rngs: FutureHead(config, rngs=rngs), num, "first_layers", rngs)
