"""Generates texts from prompts: the entry for all architectures, and causal generation."""

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
from train.generation.fill_and_answer import make_fill_mask, make_text_to_text
from train.generation.sampling import (
    Generate,
    before_separator,
    num_padding_rows,
    sample_tokens,
)
from train.optimizer import Params
from train.state import shape_of


def make_generate(
    model: ModelConfig,
    sample: SampleConfig,
    tokenizer: Tokenizer,
    sequence_len: int,
    target_len: int | None = None,
    pipeline: Pipeline | None = None,
) -> Generate:
    """Returns the function from (params, prompts, seed) to each prompt with the generated text.

    A decoder or a recurrent model continues a prompt, an encoder fills in its masks, and an
    encoder-decoder answers it or fills in its spans.
    """
    if model.architecture == "encoder":
        generate = make_fill_mask(model, sample, tokenizer, sequence_len, pipeline)
    elif model.architecture == "encoder_decoder":
        assert target_len is not None
        pipeline = None
        generate = make_text_to_text(model, sample, tokenizer, sequence_len, target_len)
    else:
        generate = _make_causal(model, sample, tokenizer, sequence_len, pipeline)

    def generate_all(params: Params, prompts: Sequence[str], seed: int) -> list[str]:
        padding = [*prompts[:1]] * num_padding_rows(len(prompts), pipeline)
        return generate(params, [*prompts, *padding], seed)[: len(prompts)]

    return generate_all


def _make_causal(
    model: ModelConfig,
    sample: SampleConfig,
    tokenizer: Tokenizer,
    sequence_len: int,
    pipeline: Pipeline | None,
) -> Generate:
    """Returns the function that continues prompts.

    The model is run on the last sequence_len tokens for every new token, without a cache. A text
    ends at the separator or after sample.num_tokens.
    """
    shape = shape_of(model, pipeline)
    T = sequence_len

    @jax.jit
    def extend(
        params: Params, text_BS: jax.Array, length_B: jax.Array, end: int, rng: jax.Array
    ) -> jax.Array:
        """Returns text_BS with every token from length_B to end sampled from the model."""
        decoder = shape.merge(params)
        B = len(text_BS)
        positions_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
        segments_BT = jnp.ones((B, T), jnp.int32)

        def append_token(position: jax.Array, text_BS: jax.Array) -> jax.Array:
            start = jnp.maximum(position - T, 0)
            window_BT = jax.lax.dynamic_slice_in_dim(text_BS, start, T, axis=1)
            hidden_BTD = decoder(Inputs(window_BT, positions_BT, segments_BT))
            last_B1D = jax.lax.dynamic_slice_in_dim(hidden_BTD, position - start - 1, 1, axis=1)
            logits_BV = decoder.logits(last_B1D)[:, 0]
            sampled_B = sample_tokens(logits_BV, sample, jax.random.fold_in(rng, position))
            token_B = jnp.where(position < length_B, text_BS[:, position], sampled_B)
            return text_BS.at[:, position].set(token_B)

        text_BS = jax.lax.fori_loop(jnp.min(length_B), end, append_token, text_BS)
        return constrain(text_BS, None, None)  # replicated in every process

    def generate(params: Params, prompts: Sequence[str], seed: int) -> list[str]:
        rows = [[tokenizer.separator, *tokenizer.encode(prompt)] for prompt in prompts]
        length_B = np.array([len(row) for row in rows])
        end = int(length_B.max()) + sample.num_tokens
        text_BS = np.zeros((len(rows), max(end, T)), np.int32)
        for text, row in zip(text_BS, rows, strict=True):
            text[: len(row)] = row
        extended_BS = np.asarray(extend(params, text_BS, length_B, end, jax.random.key(seed)))
        return [
            _text(tokenizer, extended[1 : length + sample.num_tokens], length - 1)
            for extended, length in zip(extended_BS, length_B, strict=True)
        ]

    return generate


def _text(tokenizer: Tokenizer, ids: np.ndarray, num_prompt: int) -> str:
    num_new = len(before_separator(ids[num_prompt:], tokenizer.separator))
    return tokenizer.decode(ids[: num_prompt + num_new])
