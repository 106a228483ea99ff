"""Mask filling: an encoder predicts the masked tokens of a prompt."""

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
from train.generation.sampling import (
    Generate,
    encode_with_special,
    num_padding_rows,
    pad_rows,
    sample_tokens,
)
from train.optimizer import Params
from train.state import shape_of

MASK = "[MASK]"
"""How a prompt spells a masked token, whatever the tokenizer calls it."""


def make_fill_mask(
    model: ModelConfig,
    sample: SampleConfig,
    tokenizer: Tokenizer,
    sequence_len: int,
    pipeline: Pipeline | None = None,
) -> Generate:
    """Returns the function from (params, prompts, seed) to each prompt with its [MASK]s filled in.

    All masks of a prompt are sampled at once, independently. A prompt without any gets one at its
    end; a prompt is truncated to sequence_len tokens.
    """
    shape = shape_of(model, pipeline)

    @jax.jit
    def fill(
        params: Params, tokens_BT: jax.Array, segments_BT: jax.Array, rng: jax.Array
    ) -> jax.Array:
        module = shape.merge(params)
        B, T = tokens_BT.shape
        positions_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
        logits_BTV = module.logits(module(Inputs(tokens_BT, positions_BT, segments_BT)))
        sampled_BT = sample_tokens(logits_BTV.reshape(B * T, -1), sample, rng).reshape(B, T)
        is_masked_BT = tokens_BT == tokenizer.special[MASK]
        return constrain(jnp.where(is_masked_BT, sampled_BT, tokens_BT), None, None)

    def fill_mask(params: Params, prompts: Sequence[str], seed: int) -> list[str]:
        rows = [_encode(tokenizer, prompt)[:sequence_len] for prompt in prompts]
        rows += rows[:1] * num_padding_rows(len(rows), pipeline)
        tokens_BT, segments_BT = pad_rows(rows, sequence_len)
        filled_BT = np.asarray(fill(params, tokens_BT, segments_BT, jax.random.key(seed)))
        return [
            tokenizer.decode(filled[: len(row)])
            for filled, row in zip(filled_BT, rows, strict=True)
        ][: len(prompts)]

    return fill_mask


def _encode(tokenizer: Tokenizer, prompt: str) -> list[int]:
    special = tokenizer.special
    text = encode_with_special(tokenizer, prompt if MASK in prompt else prompt + MASK, {MASK})
    return [special["[CLS]"], *text, special["[SEP]"]]
