"""Words that an encoder puts in the place of hidden ones."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from configs.model import ModelConfig
from configs.run import SampleConfig
from data.tokenizers.tokenizer import Tokenizer
from model.inputs import Inputs
from sharding.pipeline import Pipeline
from sharding.rules import constrain
from train.generation.sampling import Generate, as_rows, draw, encode_with, num_missing
from train.optimizer import Params
from train.state import shape_of

MASK = "[MASK]"
"""How a prompt spells a hidden token, whatever the tokenizer calls it."""


def make_fill(
    model: ModelConfig,
    sample: SampleConfig,
    tokenizer: Tokenizer,
    sequence_len: int,
    pipeline: Pipeline | None = None,
) -> Generate:
    """Returns the function from (params, prompts, seed) to each prompt with its [MASK]s filled in.

    All of a prompt are drawn at once, each by itself. A prompt without any gets one at its end; of
    a prompt that is longer than a row the first sequence_len tokens are read.
    """
    shape = shape_of(model, pipeline)

    @jax.jit
    def fill(
        params: Params, tokens_BT: jax.Array, segments_BT: jax.Array, key: jax.Array
    ) -> jax.Array:
        module = shape.merge(params)
        B, T = tokens_BT.shape
        positions_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
        logits_BTV = module.logits(module(Inputs(tokens_BT, positions_BT, segments_BT)))
        drawn = draw(logits_BTV.reshape(B * T, -1), sample, key).reshape(B, T)
        is_hidden_BT = tokens_BT == tokenizer.special[MASK]
        return constrain(jnp.where(is_hidden_BT, drawn, tokens_BT), None, None)

    def fill_in(params: Params, prompts: Sequence[str], seed: int) -> list[str]:
        rows = [_encode(tokenizer, prompt)[:sequence_len] for prompt in prompts]
        rows += rows[:1] * num_missing(len(rows), pipeline)
        tokens_BT, segments_BT = as_rows(rows, sequence_len)
        filled_BT = np.asarray(fill(params, tokens_BT, segments_BT, jax.random.key(seed)))
        return [
            tokenizer.decode(filled[: len(row)])
            for filled, row in zip(filled_BT, rows, strict=True)
        ][: len(prompts)]

    return fill_in


def _encode(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Returns [CLS], the prompt and [SEP]."""
    special = tokenizer.special
    text = encode_with(tokenizer, prompt if MASK in prompt else prompt + MASK, {MASK})
    return [special["[CLS]"], *text, special["[SEP]"]]
