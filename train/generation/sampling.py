"""What all ways of generation share: sampling a token, encoding and padding prompts."""

import re
from collections.abc import Callable, Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from configs.run import SampleConfig
from data.tokenizers.tokenizer import Tokenizer
from sharding.pipeline import Pipeline
from sharding.rules import num_shards
from train.optimizer import Params

Generate = Callable[[Params, Sequence[str], int], list[str]]
"""From (parameters, prompts, seed) to a text for each prompt."""


def num_padding_rows(num_rows: int, pipeline: Pipeline | None) -> int:
    """Returns how many rows to add so that the current mesh can shard them evenly."""
    num_microbatches = 1 if pipeline is None else pipeline.num_microbatches
    return -num_rows % (num_shards("act_batch") * num_microbatches)


def encode_with_special(tokenizer: Tokenizer, text: str, names: Collection[str]) -> list[int]:
    """Returns the ids of a text in which these names are special tokens."""
    pieces = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
    encoded = (
        [tokenizer.special[piece]] if piece in names else tokenizer.encode(piece).tolist()
        for piece in pieces
    )
    return [token for ids in encoded for token in ids]


def pad_rows(rows: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens and segments [B, T] of texts, each padded to a row."""
    tokens_BT = np.zeros((len(rows), length), np.int32)
    segments_BT = np.zeros_like(tokens_BT)
    for tokens, segments, row in zip(tokens_BT, segments_BT, rows, strict=True):
        tokens[: len(row)], segments[: len(row)] = row, 1
    return tokens_BT, segments_BT


def before_separator(ids: np.ndarray, separator: int) -> np.ndarray:
    """Returns the ids before the first separator, or all if there is none."""
    ends = np.flatnonzero(ids == separator)
    return ids[: ends[0]] if len(ends) else ids


def sample_tokens(logits_BV: jax.Array, sample: SampleConfig, rng: jax.Array) -> jax.Array:
    """Returns a sampled token for each row of logits; at temperature 0 the most probable one."""
    if sample.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    if sample.top_k is not None:
        k = min(sample.top_k, logits_BV.shape[-1])
        min_B1 = jax.lax.top_k(logits_BV, k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < min_B1, -1e30, logits_BV)
    rng_B = jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(len(logits_BV)))
    token_B = jax.vmap(jax.random.categorical)(rng_B, logits_BV / sample.temperature)
    return token_B.astype(jnp.int32)
