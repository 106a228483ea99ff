"""Evaluation of several validation sets: each by itself, and the sources' together."""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from small_data import data_config, item, open_quietly
from small_families import KINDS
from small_model import cross_entropy, random_params, small_model, small_run

from configs.run import EvalConfig, RunConfig
from data.batches import validation_batches
from data.mixture import Data
from train.evaluate import Evaluation, Evaluator
from train.loss import batch_sums, inputs_of
from train.state import shape_of

TEXTS = {"a": "some words of the first. " * 30, "b": "OTHER WORDS! " * 90, "play": "To be. " * 20}


def opened(folder: Path, *, held_out: bool, fraction: float = 0.2) -> tuple[RunConfig, Data]:
    for name, text in TEXTS.items():
        (folder / f"{name}.txt").write_text(text)
    data = data_config(
        mixture=tuple(f"{name}={folder / name}.txt" for name in "ab"),
        validation=(f"play={folder / 'play'}.txt",) if held_out else (),
        validation_fraction=fraction,
        sequence_len=12,
    )
    run = small_run(small_model(vocab_size=257))
    run = RunConfig(**{**vars(run), "data": data})
    return run, open_quietly(data, folder / "cache")


def evaluate(config: RunConfig, data: Data, mesh: jax.sharding.Mesh) -> Evaluation:
    params = random_params(config.model, std=0.1)
    return Evaluator(config, data, mesh)(params)


def loss_sum_of(config: RunConfig, data: Data, name: str) -> tuple[float, int]:
    """Returns the summed loss and the targets of a set, all rows of it in one batch."""
    stream = data.validation_sets()[name]
    batches = validation_batches(stream, config.data, batch_size=128, tokenizer=data.tokenizer)
    batch = item(batches, 0).map(jnp.asarray)
    decoder = shape_of(config.model).merge(random_params(config.model, std=0.1))
    hidden_BTD = decoder(inputs_of(batch))
    nats = float(cross_entropy(decoder.logits(hidden_BTD), batch))
    return nats, int(jnp.sum(batch.weights_BT > 0))


def test_the_total_is_of_the_sources_and_each_set_has_its_own_score(tmp_path, mesh):
    config, data = opened(tmp_path, held_out=True)
    found = evaluate(config, data, mesh)
    alone = {name: loss_sum_of(config, data, name) for name in ("a", "b", "play")}
    assert set(found.sets) == set(alone)
    for name, (nats, tokens) in alone.items():
        num_bytes = data.validation_sets()[name].num_bytes
        score = found.sets[name]
        assert score.tokens == tokens
        assert score.loss == pytest.approx(nats / tokens, rel=1e-5)  # float32, another order
        assert score.bits_per_byte == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)
    tokens = alone["a"][1] + alone["b"][1]
    assert found.total.tokens == tokens
    assert found.loss == pytest.approx((alone["a"][0] + alone["b"][0]) / tokens, rel=1e-5)


def test_a_further_set_validates_with_all_of_its_text(tmp_path, mesh):
    config, data = opened(tmp_path, held_out=True)
    assert evaluate(config, data, mesh).sets["play"].tokens == len(TEXTS["play"]) + 1


def test_whether_a_text_follows_is_scored_over_the_whole_set(tmp_path, mesh):
    (tmp_path / "a.txt").write_text(TEXTS["a"] * 9)
    data_settings = data_config(
        path=str(tmp_path / "a.txt"),
        validation_fraction=0.5,
        sequence_len=16,
        objective="masked_pairs",
        special_tokens=("masked",),
    )
    model = dataclasses.replace(KINDS["bert"].model, vocab_size=261)
    config = dataclasses.replace(KINDS["bert"].run(), model=model, data=data_settings)
    data = open_quietly(data_settings, tmp_path / "cache")
    (stream,) = data.validation_sets().values()
    batches = validation_batches(stream, config.data, batch_size=1024, tokenizer=data.tokenizer)
    batch = item(batches, 0).map(jnp.asarray)
    params = random_params(model, std=0.1)
    sums = batch_sums(shape_of(model).merge(params), batch).aux
    assert batch.next_BT is not None
    num_pairs = int(jnp.sum(batch.next_BT > 0))
    assert num_pairs > 50

    found = evaluate(config, data, mesh)
    assert found.total.aux_metrics.keys() == {"next_sentence/loss", "next_sentence/accuracy"}
    for name, value in found.total.aux_metrics.items():
        assert value == pytest.approx(float(sums[name]) / num_pairs, rel=1e-5)
        assert found.record()[f"eval/{name}"] == value
        assert name in found.total.describe()


def test_a_part_of_a_set_is_spread_evenly_over_it_and_always_the_same(tmp_path, mesh):
    config, data = opened(tmp_path, held_out=True, fraction=0.5)
    (name, stream), *_ = data.validation_sets().items()
    length = config.data.sequence_len
    num_rows = -(-(stream.num_tokens - 1) // length)

    def rows_of(max_tokens: int | None) -> list[list[int]]:
        batches = validation_batches(
            stream, config.data, batch_size=128, tokenizer=data.tokenizer, max_tokens=max_tokens
        )
        return [row.tolist() for row in item(batches, 0).tokens_BT if row.any()]

    whole = rows_of(None)
    assert len(whole) == num_rows == len(rows_of(10**9))
    for num in (1, 3, num_rows - 1):
        wanted = [whole[i * num_rows // num] for i in range(num)]
        assert rows_of(num * length + length - 1) == rows_of(num * length) == wanted
    assert rows_of(1) == whole[:1]

    part = dataclasses.replace(config, eval=EvalConfig(every_steps=None, max_tokens=3 * length))
    first, second = evaluate(part, data, mesh), evaluate(part, data, mesh)
    assert first == second
    score = first.sets[name]
    assert score.tokens == 3 * length
    per_token = stream.num_bytes / (stream.num_tokens - 1)
    assert score.bits_per_byte == pytest.approx(score.loss / math.log(2) / per_token, rel=1e-6)


def test_without_validation_splits_the_further_sets_are_the_total(tmp_path, mesh):
    config, data = opened(tmp_path, held_out=True, fraction=0.0)
    found = evaluate(config, data, mesh)
    assert set(found.sets) == {"play"}
    assert found.total == found.sets["play"]


def test_metrics_have_a_key_for_each_set_where_there_are_several(tmp_path, mesh):
    config, data = opened(tmp_path, held_out=True)
    record = evaluate(config, data, mesh).record()
    values = ("loss", "bits_per_byte", "tokens")
    prefixes = ("eval", "eval/a", "eval/b", "eval/play")
    assert set(record) == {f"{prefix}/{value}" for prefix in prefixes for value in values}


def test_one_set_is_told_once(tmp_path, mesh):
    config, data = opened(tmp_path, held_out=True, fraction=0.0)
    assert set(evaluate(config, data, mesh).record()) == {
        "eval/loss",
        "eval/bits_per_byte",
        "eval/tokens",
    }
