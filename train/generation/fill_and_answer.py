"""An encoder fills in the masks of a prompt; an encoder-decoder answers it, or fills in spans."""

from collections.abc import Collection, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from configs.model import ModelConfig
from configs.run import SampleConfig
from data.tokenizers.tokenizer import Tokenizer
from model.inputs import Inputs
from model.transformer import Transformer
from sharding.pipeline import Pipeline
from sharding.rules import constrain
from train.generation.sampling import (
    Generate,
    before_separator,
    encode_with_special,
    pad_rows,
    sample_tokens,
)
from train.optimizer import Params
from train.state import shape_of

MASK = "[MASK]"
"""How a prompt spells a masked token, whatever the tokenizer calls it."""
FIRST_SENTINEL = "<extra_id_0>"


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
        rows = [_with_masks(tokenizer, prompt)[:sequence_len] for prompt in prompts]
        tokens_BT, segments_BT = pad_rows(rows, sequence_len)
        filled_BT = np.asarray(fill(params, tokens_BT, segments_BT, jax.random.key(seed)))
        return [
            tokenizer.decode(filled[: len(row)])
            for filled, row in zip(filled_BT, rows, strict=True)
        ]

    return fill_mask


def _with_masks(tokenizer: Tokenizer, prompt: str) -> list[int]:
    special = tokenizer.special
    text = encode_with_special(tokenizer, prompt if MASK in prompt else prompt + MASK, {MASK})
    return [special["[CLS]"], *text, special["[SEP]"]]


def make_text_to_text(
    model: ModelConfig,
    sample: SampleConfig,
    tokenizer: Tokenizer,
    sequence_len: int,
    target_len: int,
) -> Generate:
    """Returns the function from (params, prompts, seed) to each prompt with its answer.

    With a tokenizer that has sentinel tokens, a prompt may contain them from <extra_id_0> on, and
    otherwise gets that one at its end; each is replaced with the span that the decoder generates
    for it. An answer ends at the separator, or after sample.num_tokens or target_len.
    """
    shape = shape_of(model)
    sentinels = {name: i for name, i in tokenizer.special.items() if name.startswith("<extra_id_")}
    begin = [tokenizer.separator, *([sentinels[FIRST_SENTINEL]] if sentinels else [])]
    end = min(target_len, len(begin) + sample.num_tokens)

    @jax.jit
    def decode(params: Params, encoder_inputs: Inputs, rng: jax.Array) -> jax.Array:
        module = shape.merge(params)
        assert isinstance(module, Transformer)
        B = len(encoder_inputs.tokens_BT)
        encoder_output = module.encode(encoder_inputs)
        positions_BT = jnp.broadcast_to(jnp.arange(end), (B, end))
        text_BT = jnp.zeros((B, end), jnp.int32).at[:, : len(begin)].set(jnp.array(begin))

        def append_token(position: jax.Array, text_BT: jax.Array) -> jax.Array:
            inputs = Inputs(text_BT, positions_BT, jnp.ones_like(text_BT))
            hidden_BTD, _ = module.decode(inputs, encoder_output)
            last_B1D = jax.lax.dynamic_slice_in_dim(hidden_BTD, position - 1, 1, axis=1)
            logits_BV = module.logits(last_B1D)[:, 0]
            token_B = sample_tokens(logits_BV, sample, jax.random.fold_in(rng, position))
            return text_BT.at[:, position].set(token_B)

        text_BT = jax.lax.fori_loop(len(begin), end, append_token, text_BT)
        return constrain(text_BT, None, None)

    def answer(params: Params, prompts: Sequence[str], seed: int) -> list[str]:
        rows = [_with_sentinel(tokenizer, prompt, sentinels, sequence_len) for prompt in prompts]
        tokens_BS, segments_BS = pad_rows(rows, sequence_len)
        positions_BS = np.broadcast_to(np.arange(sequence_len, dtype=np.int32), tokens_BS.shape)
        arrays = tokens_BS, positions_BS, segments_BS
        encoder_inputs = jax.tree.map(jnp.asarray, Inputs(*arrays))  # pyright: ignore[reportArgumentType]
        decoded_BT = np.asarray(decode(params, encoder_inputs, jax.random.key(seed)))[:, 1:]
        return [
            tokenizer.decode(
                insert_spans(
                    row[1:], before_separator(decoded, tokenizer.separator), sentinels.values()
                )
            )
            for row, decoded in zip(rows, decoded_BT, strict=True)
        ]

    return answer


def _with_sentinel(
    tokenizer: Tokenizer, prompt: str, sentinels: Mapping[str, int], sequence_len: int
) -> list[int]:
    """Returns the separator and a prompt, truncated, with a sentinel token at its end."""
    ids = [tokenizer.separator, *encode_with_special(tokenizer, prompt, sentinels)]
    if not sentinels or sentinels[FIRST_SENTINEL] in ids:
        return ids[:sequence_len]
    return [*ids[: sequence_len - 1], sentinels[FIRST_SENTINEL]]


def insert_spans(
    prompt: Sequence[int], decoded: np.ndarray, sentinels: Collection[int]
) -> list[int]:
    """Returns a prompt with each sentinel replaced by its decoded span.

    Without sentinels all decoded tokens follow the prompt.
    """
    spans: dict[int, list[int]] = {}
    sentinel = -1
    for token in decoded.tolist():
        if token in sentinels:
            sentinel = token
        else:
            spans.setdefault(sentinel, []).append(token)
    text = [
        x for token in prompt for x in (spans.get(token, []) if token in sentinels else [token])
    ]
    return text if sentinels else text + spans.get(sentinel, [])
