"""Token cross entropy, and what a model says of a batch as sums over its rows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from configs.model import ModelConfig
from data.batch import Batch
from model.inputs import Inputs
from model.language_model import LanguageModel
from model.moe.moe import RouterSums
from model.transformer import Transformer
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
    routers: RouterSums | None
    """What the routers of all layers did, where the model has experts; scalars, but for the load of
    each expert of each layer."""
    others: dict[str, jax.Array]
    """Of further losses and counts, by the names of metrics.jsonl."""


def inputs_of(batch: Batch) -> Inputs:
    """Returns what a model reads of a batch."""
    encoded = batch.encoder
    encoder = encoded and Inputs(encoded.tokens_BS, encoded.positions_BS, encoded.segments_BS)
    return Inputs(
        batch.tokens_BT,
        batch.positions_BT,
        batch.segments_BT,
        prefix_BT=batch.prefix_BT,
        types_BT=batch.types_BT,
        encoder=encoder or None,
    )


def batch_sums(model: LanguageModel, batch: Batch, keys_B: jax.Array | None = None) -> Sums:
    """Returns what the model says of a batch; keys_B is one key a row for dropout in training."""
    config = model.config
    later = [later_targets(batch, k) for k in range(1, config.mtp_depth + 1)]
    encoded = batch.encoder
    (batch, later), places_T = along_context((batch._replace(encoder=None), later))
    inputs = inputs_of(batch._replace(encoder=encoded))
    hidden_BTD, record = model.run(inputs, keys_B, places_T)
    nats = cross_entropy(model.logits(hidden_BTD), batch)
    others = {}
    if later:
        assert isinstance(model, Transformer)
        others["future/loss"] = _future_nats(model, hidden_BTD, inputs, batch, later, places_T)
    if config.next_sentence:
        others |= _next_sentence_sums(model, hidden_BTD, batch)
    return Sums(nats, record and record.over_rows(), others)


def later_targets(batch: Batch, distance: int) -> tuple[jax.Array, jax.Array]:
    """Returns the targets so many places further on, and their weights: 0 in another document."""

    def shifted(x_BT: jax.Array) -> jax.Array:
        return jnp.pad(x_BT[:, distance:], ((0, 0), (0, distance)))

    is_own_BT = shifted(batch.segments_BT) == batch.segments_BT
    return shifted(batch.targets_BT), jnp.where(is_own_BT, shifted(batch.weights_BT), 0)


def weights_of(config: ModelConfig, batch: Batch) -> dict[str, jax.Array]:
    """Returns what the sums of further losses and counts are divided by to be means, by name."""
    weights = {}
    if config.mtp_depth:
        later = [later_targets(batch, k)[1] for k in range(1, config.mtp_depth + 1)]
        weights["future/loss"] = sum(map(jnp.sum, later), jnp.zeros(()))
    if config.next_sentence:
        assert batch.next_BT is not None
        num_pairs = jnp.sum(batch.next_BT > 0, dtype=jnp.float32)
        weights |= {"next_sentence/loss": num_pairs, "next_sentence/accuracy": num_pairs}
    return weights


def _future_nats(
    model: Transformer,
    hidden_BTD: jax.Array,
    inputs: Inputs,
    batch: Batch,
    later: list[tuple[jax.Array, jax.Array]],
    places_T: jax.Array | None,
) -> jax.Array:
    """Returns the cross entropy of the tokens beyond the next, of all predictions together."""
    next_tokens = [batch.targets_BT, *(targets for targets, _ in later[:-1])]
    further = model.run_mtp(hidden_BTD, inputs, next_tokens, places_T)
    nats = [
        cross_entropy(
            model.logits(x_BTD), batch._replace(targets_BT=targets_BT, weights_BT=weights_BT)
        )
        for x_BTD, (targets_BT, weights_BT) in zip(further, later, strict=True)
    ]
    return sum(nats, jnp.zeros(()))


def _next_sentence_sums(
    model: LanguageModel, hidden_BTD: jax.Array, batch: Batch
) -> dict[str, jax.Array]:
    """Returns the cross entropy of whether second texts follow, and how often it is right."""
    assert batch.next_BT is not None
    log_p_BT2 = jax.nn.log_softmax(model.next_sentence_logits(hidden_BTD))
    is_asked_BT, follows_BT = batch.next_BT > 0, batch.next_BT == 1
    chosen_BT = jnp.where(follows_BT, log_p_BT2[..., 0], log_p_BT2[..., 1])
    is_right_BT = is_asked_BT & (follows_BT == (log_p_BT2[..., 0] >= log_p_BT2[..., 1]))
    return {
        "next_sentence/loss": jnp.sum(jnp.where(is_asked_BT, -chosen_BT, 0)),
        "next_sentence/accuracy": jnp.sum(is_right_BT, dtype=jnp.float32),
    }
