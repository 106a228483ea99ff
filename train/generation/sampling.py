"""Tokens drawn from logits."""

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
"""From parameters, prompts and a seed to a text for each prompt."""


def num_missing(num_rows: int, pipeline: Pipeline | None) -> int:
    """Returns how many rows more the mesh that is set can cut evenly."""
    num_microbatches = 1 if pipeline is None else pipeline.num_microbatches
    return -num_rows % (num_shards("act_batch") * num_microbatches)


def encode_with(tokenizer: Tokenizer, text: str, names: Collection[str]) -> list[int]:
    """Returns the ids of a text in which these names stand for special tokens."""
    pieces = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
    encoded = (
        [tokenizer.special[piece]] if piece in names else tokenizer.encode(piece).tolist()
        for piece in pieces
    )
    return [token for ids in encoded for token in ids]


def as_rows(rows: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens and segments [B, T] of texts, each at the beginning of a row of its own."""
    tokens_BT = np.zeros((len(rows), length), np.int32)
    segments_BT = np.zeros_like(tokens_BT)
    for tokens, segments, row in zip(tokens_BT, segments_BT, rows, strict=True):
        tokens[: len(row)], segments[: len(row)] = row, 1
    return tokens_BT, segments_BT


def up_to(ids: np.ndarray, separator: int) -> np.ndarray:
    """Returns the ids before the first separator, all where there is none."""
    ends = np.flatnonzero(ids == separator)
    return ids[: ends[0]] if len(ends) else ids


def draw(logits_BV: jax.Array, sample: SampleConfig, key: jax.Array) -> jax.Array:
    """Returns a token for each row of logits, drawn by chance; at temperature 0 the likeliest."""
    if sample.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    if sample.top_k is not None:
        k = min(sample.top_k, logits_BV.shape[-1])
        least_B1 = jax.lax.top_k(logits_BV, k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < least_B1, -1e30, logits_BV)
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(logits_BV)))
    drawn_B = jax.vmap(jax.random.categorical)(keys_B, logits_BV / sample.temperature)
    return drawn_B.astype(jnp.int32)
