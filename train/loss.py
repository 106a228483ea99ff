"""Token cross entropy."""

import jax
import jax.numpy as jnp

from data.batch import Batch


def cross_entropy(logits_BTV: jax.Array, batch: Batch) -> jax.Array:
    """Returns the sum over the batch of weight * -log p(target), in nats, float32.

    A sum and not a mean, so that parts of a batch add up to the whole whatever their padding.
    """
    target_BT1 = batch.targets_BT[..., None]
    chosen_BT = jnp.take_along_axis(logits_BTV, target_BT1, axis=-1)[..., 0]
    nll_BT = jax.nn.logsumexp(logits_BTV, axis=-1) - chosen_BT
    return jnp.sum(nll_BT * batch.weights_BT)
