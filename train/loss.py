"""Token cross entropy, and what a model says of a batch as sums over its rows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from data.batch import Batch
from model.decoder import Decoder
from model.moe import RouterRecord
from sharding.zigzag import along_context


def cross_entropy(logits_BTV: jax.Array, batch: Batch) -> jax.Array:
    """Returns the sum over the batch of weight * -log p(target), in nats, float32.

    A sum and not a mean, so that parts of a batch add up to the whole whatever their padding. The
    target's logit is picked by comparison and not by index, so that a vocabulary that is cut over
    devices stays cut: each adds its part. Source: Shoeybi et al. 2019, Megatron-LM,
    arXiv:1909.08053, section 3.
    """
    ids_V = jnp.arange(logits_BTV.shape[-1])
    is_target_BTV = ids_V[None, None] == batch.targets_BT[..., None]
    chosen_BT = jnp.sum(jnp.where(is_target_BTV, logits_BTV, 0), axis=-1)
    nll_BT = jax.nn.logsumexp(logits_BTV, axis=-1) - chosen_BT
    return jnp.sum(nll_BT * batch.weights_BT)


class Sums(NamedTuple):
    """Sums over the rows of a batch: those of its parts add up to those of the whole."""

    nats: jax.Array
    """Cross entropy of all targets."""
    routers: RouterRecord | None
    """What the routers of all layers did, where the model has experts; scalars."""


def batch_sums(decoder: Decoder, batch: Batch, keys_B: jax.Array | None = None) -> Sums:
    """Returns what the model says of a batch; keys_B is one key a row for dropout in training."""
    batch, places_T = along_context(batch)
    hidden_BTD, record = decoder.run(
        batch.tokens_BT, batch.positions_BT, batch.segments_BT, keys_B, places_T
    )
    return Sums(cross_entropy(decoder.logits(hidden_BTD), batch), jax.tree.map(jnp.sum, record))
