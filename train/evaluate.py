"""Evaluation on validation sets: all of each, or a part that is always the same."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from configs.run import RunConfig
from data.batch import Batch
from data.batches import num_validation_rows, validation_batches
from data.mixture import Data
from data.token_store import TokenStream
from sharding.pipeline import pipeline_of
from sharding.rules import sharding
from train.loader import Loader
from train.loss import aux_weights, batch_sums
from train.optimizer import Params
from train.record.run_folder import Record
from train.state import shape_of


@dataclass(frozen=True, kw_only=True)
class Score:
    """The result on one validation set, or on several together."""

    loss: float
    """Nats per token."""
    bits_per_byte: float | None
    """Bits per byte of text, the loss of separators included; comparable between tokenizers. None
    unless the objective is causal."""
    tokens: int
    """Number of targets."""
    aux_metrics: dict[str, float]
    """Means of auxiliary losses and counts, such as next_sentence/accuracy."""

    def describe(self) -> str:
        bits = "" if self.bits_per_byte is None else f"{self.bits_per_byte:.3f} bits per byte, "
        aux = "".join(f", {name} {value:.4f}" for name, value in self.aux_metrics.items())
        return f"{self.loss:.4f} nats per token, {bits}on {self.tokens:,} tokens{aux}"

    def record(self) -> Record:
        """Returns all values by name."""
        return {
            "loss": self.loss,
            "bits_per_byte": self.bits_per_byte,
            "tokens": self.tokens,
            **self.aux_metrics,
        }


class EvalSums(NamedTuple):
    """Sums over a batch or a set: scalars on devices, or numbers."""

    loss_sum: Any
    """Nats."""
    tokens: Any
    aux: dict[str, tuple[Any, Any]]
    """(sum, weight to divide it by) of auxiliary losses and counts, by name."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of all validation sets."""

    total: Score
    """Over the validation splits of all sources, as if they were one set; over the sets of
    data.validation only if there are no splits."""
    sets: dict[str, Score]
    """By set."""

    @property
    def loss(self) -> float:
        """Nats per token of the total."""
        return self.total.loss

    def record(self) -> Record:
        """Returns what is added to the line of the step in metrics.jsonl."""
        scores = {"eval": self.total}
        if len(self.sets) > 1:
            scores |= {f"eval/{name}": score for name, score in self.sets.items()}
        return {
            f"{prefix}/{name}": value
            for prefix, score in scores.items()
            for name, value in score.record().items()
        }


class Evaluator:
    """Evaluates parameters on all validation sets of a run, always in the same order."""

    def __init__(self, config: RunConfig, data: Data, mesh: jax.sharding.Mesh):
        self.sets = data.validation_sets()
        self._config, self._data = config, data
        self._sharding = sharding(mesh, "act_batch", "act_len")
        self._eval_step = make_eval_step(config, mesh)

    def __call__(self, params: Params) -> Evaluation:
        """Returns the scores of all sets: every target once, up to eval.max_tokens."""
        sums = {name: self._sums(params, stream) for name, stream in self.sets.items()}
        own = [name for name, _ in self._data.sources if name in sums] or list(sums)
        return Evaluation(
            total=self._score([sums[name] for name in own], [self.sets[name] for name in own]),
            sets={name: self._score([sums[name]], [self.sets[name]]) for name in sums},
        )

    @property
    def num_tokens(self) -> int:
        """Evaluated tokens of all sets, padding included."""
        data, most = self._config.data, self._config.eval.max_tokens
        return data.sequence_len * sum(
            num_validation_rows(stream, data, most) for stream in self.sets.values()
        )

    def _sums(self, params: Params, stream: TokenStream) -> EvalSums:
        config = self._config
        batch_size = config.eval.batch_size or config.train.batch_size
        loader = Loader(
            lambda rows: validation_batches(
                stream,
                config.data,
                batch_size=batch_size,
                tokenizer=self._data.tokenizer,
                rows=rows,
                max_tokens=config.eval.max_tokens,
            ),
            config.data,
            sharding=self._sharding,
            batch_size=batch_size,
        )
        return _add(jax.device_get([self._eval_step(params, batch) for batch in loader]))

    def _score(self, sums: list[EvalSums], streams: list[TokenStream]) -> Score:
        loss_sum, tokens, aux = _add(sums)
        # A part of a set is taken to have as many bytes per token as all of it.
        num_bytes = sum(
            stream.num_bytes * part.tokens / (stream.num_tokens - 1)
            for stream, part in zip(streams, sums, strict=True)
        )
        is_causal = self._config.data.objective == "causal"
        bits = loss_sum / math.log(2) / num_bytes if is_causal else None
        means = {name: total / weight for name, (total, weight) in aux.items() if weight}
        return Score(loss=loss_sum / tokens, bits_per_byte=bits, tokens=tokens, aux_metrics=means)


def _add(sums: Sequence[EvalSums]) -> EvalSums:
    loss_sum, tokens, aux = jax.tree.map(lambda *parts: math.fsum(map(float, parts)), *sums)
    return EvalSums(loss_sum, int(tokens), aux)


def make_eval_step(
    config: RunConfig, mesh: jax.sharding.Mesh
) -> Callable[[Params, Batch], EvalSums]:
    """Returns the compiled function from (params, batch) to the sums over the batch."""
    shape = shape_of(config.model, pipeline_of(config, mesh))

    @jax.jit
    def eval_step(params: Params, batch: Batch) -> EvalSums:
        sums, weights = batch_sums(shape.merge(params), batch), aux_weights(config.model, batch)
        aux = {name: (sums.aux[name], weight) for name, weight in weights.items()}
        return EvalSums(sums.loss_sum, jnp.sum(batch.weights_BT > 0, dtype=jnp.int32), aux)

    return eval_step
