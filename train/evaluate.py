"""The loss over a whole validation split."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from configs.model import ModelConfig
from configs.run import RunConfig
from data.batch import Batch
from data.batches import validation_batches
from data.store import TokenStore
from sharding.rules import sharding
from train.feed import Feed
from train.loss import cross_entropy
from train.optimizer import Params
from train.run_folder import Record
from train.state import shape_of


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of one pass over a split."""

    loss: float
    """Nats per token."""
    bits_per_byte: float
    """Bits per byte of text, separators paid for; comparable between tokenizers."""
    tokens: int
    """Targets that counted."""

    def record(self) -> Record:
        """Returns the keys that join the line of the step in metrics.jsonl."""
        return {f"eval/{name}": value for name, value in dataclasses.asdict(self).items()}


class Evaluator:
    """Evaluates parameters on the validation split of a store, always in the same order."""

    def __init__(self, config: RunConfig, store: TokenStore, mesh: jax.sharding.Mesh):
        self._config, self._store = config, store
        self._sharding = sharding(mesh, "act_batch", "act_len")
        self._eval_step = make_eval_step(config.model)

    def __call__(self, params: Params) -> Evaluation:
        """Returns the loss over the whole split; every target counts once, padding not at all."""
        config = self._config
        batch_size = config.eval.batch_size or config.train.batch_size
        feed = Feed(
            lambda rows: validation_batches(
                self._store, config.data, batch_size=batch_size, rows=rows
            ),
            config.data,
            sharding=self._sharding,
            batch_size=batch_size,
        )
        sums = jax.device_get([self._eval_step(params, batch) for batch in feed])
        nats = math.fsum(float(loss_sum) for loss_sum, _ in sums)
        tokens = sum(int(num_tokens) for _, num_tokens in sums)
        return Evaluation(
            loss=nats / tokens,
            bits_per_byte=nats / math.log(2) / self._store.validation.num_bytes,
            tokens=tokens,
        )


def make_eval_step(config: ModelConfig) -> Callable[[Params, Batch], tuple[jax.Array, jax.Array]]:
    """Returns the compiled function from (params, batch) to (summed nats, number of targets)."""
    shape = shape_of(config)

    @jax.jit
    def eval_step(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        decoder = shape.merge(params)
        hidden_BTD = decoder(batch.tokens_BT, batch.positions_BT, batch.segments_BT)
        loss_sum = cross_entropy(decoder.logits(hidden_BTD), batch)
        return loss_sum, jnp.sum(batch.weights_BT > 0, dtype=jnp.int32)

    return eval_step
