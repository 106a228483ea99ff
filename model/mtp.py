"""Multi-token prediction (MTP): tokens beyond the next, one module for each of them."""

import jax
import jax.numpy as jnp
from flax import nnx

from configs.model import ModelConfig
from model.block import Block, LayerInputs
from model.norm import make_norm
from model.parameters import normal, project


class MTPModule(nnx.Module):
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
        self,
        x_BTD: jax.Array,
        tokens_BTD: jax.Array,
        inputs: LayerInputs,
        row_index_T: jax.Array | None,
    ) -> jax.Array:
        """Returns the hidden states that predict one token further; tokens: what x predicts."""
        both = jnp.concatenate((self.hidden_norm(x_BTD), self.token_norm(tokens_BTD)), axis=-1)
        x_BTD = project(both, self.project[...], axes=(None,))
        return self.block(x_BTD, inputs, row_index_T=row_index_T)[0]
