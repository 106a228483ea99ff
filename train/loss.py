"""The losses of a batch, as sums over it."""

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
from train.cross_entropy import cross_entropy


class Sums(NamedTuple):
    """Sums over a batch; those of its microbatches add up to them."""

    loss_sum: jax.Array
    """Cross entropy of all targets, in nats."""
    routers: RouterSums | None
    """Routing statistics of all layers, if the model has experts; scalars, except for the load of
    each expert of each layer."""
    aux: dict[str, jax.Array]
    """Auxiliary losses and counts, by the names of metrics.jsonl."""


def inputs_of(batch: Batch) -> Inputs:
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


def batch_sums(model: LanguageModel, batch: Batch, rng_B: jax.Array | None = None) -> Sums:
    """Returns the sums over a batch; rng_B is a dropout rng for each row, None without dropout."""
    config = model.config
    mtp_targets = [shifted_targets(batch, k) for k in range(1, config.mtp_depth + 1)]
    encoded = batch.encoder
    (batch, mtp_targets), row_index_T = along_context((batch._replace(encoder=None), mtp_targets))
    inputs = inputs_of(batch._replace(encoder=encoded))
    hidden_BTD, record = model.run(inputs, rng_B, row_index_T)
    loss_sum = cross_entropy(model, hidden_BTD, batch)
    aux = {}
    if mtp_targets:
        assert isinstance(model, Transformer)
        aux["future/loss"] = _mtp_loss_sum(
            model, hidden_BTD, inputs, batch, mtp_targets, row_index_T
        )
    if config.next_sentence:
        aux |= _next_sentence_sums(model, hidden_BTD, batch)
    return Sums(loss_sum, record and record.over_rows(), aux)


def shifted_targets(batch: Batch, distance: int) -> tuple[jax.Array, jax.Array]:
    """Returns the targets `distance` tokens later, and their weights: 0 in another document."""

    def shifted(x_BT: jax.Array) -> jax.Array:
        return jnp.pad(x_BT[:, distance:], ((0, 0), (0, distance)))

    is_own_BT = shifted(batch.segments_BT) == batch.segments_BT
    return shifted(batch.targets_BT), jnp.where(is_own_BT, shifted(batch.weights_BT), 0)


def aux_weights(config: ModelConfig, batch: Batch) -> dict[str, jax.Array]:
    """Returns the weights that turn the auxiliary sums of a batch into means, by name."""
    weights = {}
    if config.mtp_depth:
        mtp = [shifted_targets(batch, k)[1] for k in range(1, config.mtp_depth + 1)]
        weights["future/loss"] = sum(map(jnp.sum, mtp), jnp.zeros(()))
    if config.next_sentence:
        assert batch.next_BT is not None
        num_pairs = jnp.sum(batch.next_BT > 0, dtype=jnp.float32)
        weights |= {"next_sentence/loss": num_pairs, "next_sentence/accuracy": num_pairs}
    return weights


def _mtp_loss_sum(
    model: Transformer,
    hidden_BTD: jax.Array,
    inputs: Inputs,
    batch: Batch,
    mtp_targets: list[tuple[jax.Array, jax.Array]],
    row_index_T: jax.Array | None,
) -> jax.Array:
    next_tokens = [batch.targets_BT, *(targets for targets, _ in mtp_targets[:-1])]
    hidden = model.run_mtp(hidden_BTD, inputs, next_tokens, row_index_T)
    loss_sums = [
        cross_entropy(model, x_BTD, batch._replace(targets_BT=targets_BT, weights_BT=weights_BT))
        for x_BTD, (targets_BT, weights_BT) in zip(hidden, mtp_targets, strict=True)
    ]
    return sum(loss_sums, jnp.zeros(()))


def _next_sentence_sums(
    model: LanguageModel, hidden_BTD: jax.Array, batch: Batch
) -> dict[str, jax.Array]:
    assert batch.next_BT is not None
    log_p_BT2 = jax.nn.log_softmax(model.next_sentence_logits(hidden_BTD))
    is_target_BT, follows_BT = batch.next_BT > 0, batch.next_BT == 1
    chosen_BT = jnp.where(follows_BT, log_p_BT2[..., 0], log_p_BT2[..., 1])
    is_right_BT = is_target_BT & (follows_BT == (log_p_BT2[..., 0] >= log_p_BT2[..., 1]))
    return {
        "next_sentence/loss": jnp.sum(jnp.where(is_target_BT, -chosen_BT, 0)),
        "next_sentence/accuracy": jnp.sum(is_right_BT, dtype=jnp.float32),
    }
