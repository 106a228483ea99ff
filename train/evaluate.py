"""The loss over a validation split: all of it, or a part that is always the same."""

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
from train.loader import Feed
from train.loss import batch_sums, weights_of
from train.optimizer import Params
from train.record.run_folder import Record
from train.state import shape_of


@dataclass(frozen=True, kw_only=True)
class Score:
    """The result of one pass over a validation set, or over several of them."""

    loss: float
    """Nats per token."""
    bits_per_byte: float | None
    """Bits per byte of text, separators paid for; comparable between tokenizers. None where not
    each token is predicted from those before it."""
    tokens: int
    """Targets that counted."""
    others: dict[str, float]
    """Means of further losses and counts, such as next_sentence/accuracy."""

    def describe(self) -> str:
        """Returns the score as a person reads it."""
        bits = "" if self.bits_per_byte is None else f"{self.bits_per_byte:.3f} bits per byte, "
        others = "".join(f", {name} {value:.4f}" for name, value in self.others.items())
        return f"{self.loss:.4f} nats per token, {bits}on {self.tokens:,} tokens{others}"

    def record(self) -> Record:
        """Returns all of it by name."""
        return {
            "loss": self.loss,
            "bits_per_byte": self.bits_per_byte,
            "tokens": self.tokens,
            **self.others,
        }


class Tally(NamedTuple):
    """What a batch or a whole set adds up to: scalars on devices, or numbers."""

    nats: Any
    tokens: Any
    others: dict[str, tuple[Any, Any]]
    """Of further losses and counts, each beside what it is divided by."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of all validation sets."""

    total: Score
    """Over the validation splits of all sources, as if they were one; the further sets are not in
    it, unless there are no others."""
    sets: dict[str, Score]
    """Of each set by itself."""

    @property
    def loss(self) -> float:
        """Nats per token of the total."""
        return self.total.loss

    def record(self) -> Record:
        """Returns the keys that join the line of the step in metrics.jsonl."""
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
        """Returns the loss of every set; a target counts once, padding and what is beyond
        eval.max_tokens not at all."""
        sums = {name: self._sums(params, stream) for name, stream in self.sets.items()}
        own = [name for name, _ in self._data.sources if name in sums] or list(sums)
        return Evaluation(
            total=self._score([sums[name] for name in own], [self.sets[name] for name in own]),
            sets={name: self._score([sums[name]], [self.sets[name]]) for name in sums},
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of all sets that are evaluated, padding among them."""
        data, most = self._config.data, self._config.eval.max_tokens
        return data.sequence_len * sum(
            num_validation_rows(stream, data, most) for stream in self.sets.values()
        )

    def _sums(self, params: Params, stream: TokenStream) -> Tally:
        """Returns what a set adds up to."""
        config = self._config
        batch_size = config.eval.batch_size or config.train.batch_size
        feed = Feed(
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
        return _add(jax.device_get([self._eval_step(params, batch) for batch in feed]))

    def _score(self, sums: list[Tally], streams: list[TokenStream]) -> Score:
        nats, tokens, others = _add(sums)
        # Of a part of a set the bytes are taken to be as many a token as in all of it.
        num_bytes = sum(
            stream.num_bytes * part.tokens / (stream.num_tokens - 1)
            for stream, part in zip(streams, sums, strict=True)
        )
        is_causal = self._config.data.objective == "causal"
        bits = nats / math.log(2) / num_bytes if is_causal else None
        means = {name: part / whole for name, (part, whole) in others.items() if whole}
        return Score(loss=nats / tokens, bits_per_byte=bits, tokens=tokens, others=means)


def _add(sums: Sequence[Tally]) -> Tally:
    names = sums[0].others if sums else ()
    return Tally(
        math.fsum(float(each.nats) for each in sums),
        sum(int(each.tokens) for each in sums),
        {
            name: (
                math.fsum(float(each.others[name][0]) for each in sums),
                math.fsum(float(each.others[name][1]) for each in sums),
            )
            for name in names
        },
    )


def make_eval_step(config: RunConfig, mesh: jax.sharding.Mesh) -> Callable[[Params, Batch], Tally]:
    """Returns the compiled function from (params, batch) to what the batch adds up to."""
    shape = shape_of(config.model, pipeline_of(config, mesh))

    @jax.jit
    def eval_step(params: Params, batch: Batch) -> Tally:
        sums, weights = batch_sums(shape.merge(params), batch), weights_of(config.model, batch)
        others = {name: (sums.others[name], weight) for name, weight in weights.items()}
        return Tally(sums.nats, jnp.sum(batch.weights_BT > 0, dtype=jnp.int32), others)

    return eval_step
