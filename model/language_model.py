"""What all language models share: the embedding of tokens, and the heads."""

import jax
import jax.numpy as jnp
from flax import nnx

from configs.model import ModelConfig
from model.embedding import look_up
from model.inputs import Inputs
from model.moe.moe import RouterRecord
from model.norm import make_norm
from model.parameters import broadcast, normal, project, value_of, zeros
from sharding.rules import constrain


def finish_logits(
    config: ModelConfig, product_V: jax.Array, bias_V: jax.Array | None, is_token_V: jax.Array
) -> jax.Array:
    """Returns the logits [..., V] of what the head's kernel made; the padding has -1e30."""
    if bias_V is not None:
        product_V = product_V + broadcast(bias_V, product_V)
    if config.logit_softcap is not None:
        product_V = config.logit_softcap * jnp.tanh(product_V / config.logit_softcap)
    return jnp.where(broadcast(is_token_V, product_V), product_V, -1e30)


class LanguageModel(nnx.Module):
    """Tokens in, hidden states out (`run`); `logits` turns those into predictions."""

    def __init__(self, config: ModelConfig):
        self.config = config

    def make_embedding(self, rngs: nnx.Rngs) -> None:
        """Makes the table of tokens; to be called before other parameters are sampled."""
        config = self.config
        shape = (config.num_padded_tokens, config.embed_dim)
        self.embedding = normal(rngs, shape, "vocab", "embed", std=config.init_std)

    def make_head(self, rngs: nnx.Rngs) -> None:
        """Makes the heads; to be called after all other parameters are sampled."""
        config = self.config
        V, D, std = config.num_padded_tokens, config.embed_dim, config.init_std
        if not config.tied_embeddings:
            self.head = normal(rngs, (D, V), "embed", "vocab", std=std)
        self.head_bias = zeros((V,), "vocab") if config.head_bias else None
        if config.head_transform:
            self.transform = normal(rngs, (D, D), "embed", "head_dim", std=std)
            self.transform_bias = zeros((D,), "norm") if config.bias else None
            self.transform_norm = make_norm(config)
        if config.pooler:
            self.pooler = normal(rngs, (D, D), "embed", "head_dim", std=std)
            self.pooler_bias = zeros((D,), "norm")
        if config.next_sentence:
            self.next_sentence = normal(rngs, (D, 2), "embed", "head_dim", std=std)
            self.next_sentence_bias = zeros((2,), "norm")

    def run(
        self, inputs: Inputs, rng_B: jax.Array | None = None, row_index_T: jax.Array | None = None
    ) -> tuple[jax.Array, RouterRecord | None]:
        """Returns hidden states [B, T, D] in config.dtype, and what routers did, if there are any.

        Args:
            rng_B: a PRNG key for each row, for dropout in training; None in evaluation.
            row_index_T: index in its row of each column; None is in order.
        """
        raise NotImplementedError

    def __call__(self, inputs: Inputs) -> jax.Array:
        """Returns the hidden states alone, without dropout."""
        return self.run(inputs)[0]

    def embed_tokens(self, tokens_BT: jax.Array) -> jax.Array:
        """Returns the embedding of each token, [B, T, D]."""
        config = self.config
        table_VD = constrain(self.embedding[...].astype(config.dtype), "act_vocab", "act_embed")
        x_BTD = look_up(table_VD, tokens_BT)
        if config.embed_scaled:
            x_BTD = x_BTD * jnp.asarray(config.embed_dim**0.5, x_BTD.dtype)
        return x_BTD

    def before_head(self, x_BTD: jax.Array) -> jax.Array:
        """Returns what the head multiplies: the hidden states, in BERT transformed first."""
        if not self.config.head_transform:
            return x_BTD
        bias = value_of(self.transform_bias)
        x_BTD = project(x_BTD, self.transform[...], bias, axes=(None,))
        return self.transform_norm(jax.nn.gelu(x_BTD, approximate=False))

    def head_arrays(self) -> tuple[jax.Array, jax.Array | None]:
        """Returns the kernel [D, V] and the bias [V] of the head."""
        kernel_DV = self.embedding[...].T if self.config.tied_embeddings else self.head[...]
        return kernel_DV, value_of(self.head_bias)

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Returns float32 logits [B, T, V], V padded; the padding can never be chosen."""
        config, (kernel_DV, bias_V) = self.config, self.head_arrays()
        x_BTD = self.before_head(x_BTD)
        logits_BTV = project(x_BTD, kernel_DV, axes=("act_vocab",), as_float32=True)
        is_token_V = jnp.arange(config.num_padded_tokens) < config.num_tokens
        return finish_logits(config, logits_BTV, bias_V, is_token_V)

    def next_sentence_logits(self, x_BTD: jax.Array) -> jax.Array:
        """Returns float32 logits [B, T, 2] of "is next" and "is not", valid where texts begin.

        Source: Devlin et al. 2018, BERT, arXiv:1810.04805, section 3.1.
        """
        kernel, bias = self.next_sentence[...], self.next_sentence_bias[...]
        return project(self.pool(x_BTD), kernel, bias, axes=(None,), as_float32=True)

    def pool(self, x_BTD: jax.Array) -> jax.Array:
        """Returns the pooled hidden state of each position, used at the first one of a text."""
        return jnp.tanh(project(x_BTD, self.pooler[...], self.pooler_bias[...], axes=(None,)))
