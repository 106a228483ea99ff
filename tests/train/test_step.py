import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import (
    flat,
    quick_jit,
    random_params,
    small_batch,
    small_model,
    small_run,
    step_on_one_device,
)

from configs.presets.table import PRESETS
from configs.run import RunConfig
from model.moe.moe import RouterSums
from train.loss import inputs_of
from train.optimizer import make_optimizer
from train.state import TrainState, shape_of
from train.step import count_routed, router_means

PLAIN_SGD = {"optimizer": "sgd", "b1": 0.0, "weight_decay": 0.0, "max_grad_norm": None}
DROPPING = small_run(small_model(dropout=0.2, attention_dropout=0.2), optim=PLAIN_SGD)
POISONABLE = small_model(tied_embeddings=False, norm_epsilon=1e-37)


def first_state(config: RunConfig, *, step: int = 0) -> TrainState[jax.Array]:
    params = random_params(config.model, std=0.2)
    opt_state = make_optimizer(config.optim, shape_of(config.model).axes()).init(params)
    return TrainState(jnp.asarray(step, jnp.int32), params, opt_state)


def assert_same_bits(tree, other):
    for leaf, other_leaf in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert np.asarray(leaf).tobytes() == np.asarray(other_leaf).tobytes()


def changes(before: TrainState, after: TrainState) -> dict[str, np.ndarray]:
    old, new = flat(before.params), flat(after.params)
    return {path: np.asarray(new[path] - old[path]) for path in old}


def test_four_microbatches_of_three_rows_are_one_batch_of_twelve(rng):
    batch = small_batch(rng, 12)
    num_tokens = batch.weights_BT.sum(1)
    assert len({num_tokens[part::4].sum() for part in range(4)}) > 2
    results = []
    for num_microbatches in (1, 4):
        train = {"batch_size": 12, "num_microbatches": num_microbatches}
        config = small_run(DROPPING.model, optim={**PLAIN_SGD, "peak_lr": 1.0}, train=train)
        state = first_state(config)
        after, metrics = step_on_one_device(config)(state, batch)
        results.append((metrics, changes(state, after)))
    (whole, whole_changes), (parts, parts_changes) = results
    # The same terms added up in another order, in float32.
    assert float(parts.loss) == pytest.approx(float(whole.loss), rel=1e-6)
    assert float(parts.grad_norm) == pytest.approx(float(whole.grad_norm), rel=1e-5)
    assert parts.num_tokens == whole.num_tokens
    for path, change in whole_changes.items():
        difference = np.linalg.norm(parts_changes[path] - change)
        assert difference <= 1e-5 * np.linalg.norm(change), path


def poisoned(rng, *, num_microbatches: int = 1, embedding: float = np.nan):
    """Returns settings, a state whose embedding 99 is poisoned, a batch without 99, one with it."""
    optim, train = {"schedule": "linear"}, {"num_microbatches": num_microbatches}
    config = small_run(POISONABLE, optim=optim, train=train)
    state = first_state(config)
    state.params["embedding"] = state.params["embedding"].at[99].set(embedding)
    clean, bad = small_batch(rng, 8, num_ids=99), small_batch(rng, 8, num_ids=99)
    bad.tokens_BT[5, 0] = 99
    return config, state, clean, bad


@pytest.mark.parametrize(
    ("embedding", "loss_is_finite"),
    [
        (np.nan, False),
        # The first token of a row sees itself only: it stays zero in every layer, and every norm
        # multiplies its gradient by 1e-37^(-1/2), three times in a row: more than float32 has.
        (0.0, True),
    ],
    ids=["loss", "gradient"],
)
@pytest.mark.parametrize("num_microbatches", [1, 4])
def test_a_step_that_is_not_finite_changes_nothing_and_the_run_goes_on(
    rng, num_microbatches, embedding, loss_is_finite
):
    config, state, clean, bad = poisoned(
        rng, num_microbatches=num_microbatches, embedding=embedding
    )
    step = step_on_one_device(config)
    first, metrics = step(state, clean)
    assert metrics.finite

    skipped, metrics = step(first, bad)
    assert not metrics.finite
    assert np.isfinite(metrics.loss) == loss_is_finite
    assert skipped.step == 2
    assert_same_bits((skipped.params, skipped.opt_state), (first.params, first.opt_state))

    after, metrics = step(skipped, clean)
    assert metrics.finite
    assert after.step == 3
    assert all(np.any(change != 0) for change in changes(skipped, after).values())
    after.params["embedding"] = after.params["embedding"].at[99].set(0)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(after))


def test_a_nonfinite_step_moves_the_schedule_and_not_the_optimizer(rng):
    config, state, clean, bad = poisoned(rng)
    step = step_on_one_device(config)
    skipped, _ = step(state, bad)
    after, metrics = step(skipped, clean)
    never_bad = step(state._replace(step=jnp.ones((), jnp.int32)), clean)
    assert metrics.learning_rate < config.optim.peak_lr
    assert_same_bits((after, metrics), never_bad)


def test_the_loss_is_the_mean_over_tokens(rng):
    config, state, batch, _ = poisoned(rng)  # which this batch does not notice

    @quick_jit
    def logits(params):
        decoder = shape_of(config.model).merge(params)
        return decoder.logits(decoder(inputs_of(batch)))

    logits_BTV = np.asarray(logits(state.params), np.float64)
    _, metrics = step_on_one_device(config)(state, batch)
    nll = [
        np.log(np.exp(logits_BTV[b, t]).sum()) - logits_BTV[b, t, batch.targets_BT[b, t]]
        for b, t in np.argwhere(batch.weights_BT > 0)
    ]
    # float32 sums of a hundred tokens.
    assert float(metrics.loss) == pytest.approx(np.mean(nll), rel=2e-6)
    assert metrics.num_tokens == len(nll) == batch.weights_BT.sum() < batch.weights_BT.size


def test_a_target_of_padding_changes_nothing(rng):
    config, step = DROPPING, step_on_one_device(DROPPING)
    batch = small_batch(rng, 8)
    targets_BT = np.where(batch.weights_BT > 0, batch.targets_BT, 7)
    assert_same_bits(
        step(first_state(config), batch),
        step(first_state(config), batch._replace(targets_BT=targets_BT)),
    )


def test_a_batch_without_a_target_is_a_loss_of_zero(rng):
    config, step = DROPPING, step_on_one_device(DROPPING)
    batch = small_batch(rng, 8)
    state = first_state(config)
    after, metrics = step(state, batch._replace(weights_BT=np.zeros_like(batch.weights_BT)))
    assert (metrics.loss, metrics.grad_norm, metrics.finite) == (0, 0, True)
    assert metrics.num_tokens == (batch.segments_BT > 0).sum()
    assert_same_bits(after.params, state.params)


def test_a_step_is_a_function_of_its_state_and_batch(rng):
    config, step = DROPPING, step_on_one_device(DROPPING)
    batch = small_batch(rng, 8)
    assert_same_bits(step(first_state(config), batch), step(first_state(config), batch))


def test_dropout_differs_between_steps(rng):
    config, step = DROPPING, step_on_one_device(DROPPING)
    batch = small_batch(rng, 8)
    losses = {float(step(first_state(config, step=n), batch)[1].loss) for n in range(5)}
    assert len(losses) == 5


def test_dropout_differs_between_rows_that_are_alike(rng):
    config, step = DROPPING, step_on_one_device(DROPPING)
    batch = jax.tree.map(lambda x: np.repeat(x[:1], 8, axis=0), small_batch(rng, 1))
    losses = set()
    for row in range(8):
        weights_BT = np.where(np.arange(8)[:, None] == row, batch.weights_BT, 0)
        _, metrics = step(first_state(config), batch._replace(weights_BT=weights_BT))
        losses.add(float(metrics.loss))
    assert len(losses) == 8


def test_dropout_differs_between_seeds(rng):
    other = dataclasses.replace(DROPPING, train=dataclasses.replace(DROPPING.train, seed=1))
    state, batch = first_state(DROPPING), small_batch(rng, 8)
    _, metrics = step_on_one_device(DROPPING)(state, batch)
    _, other_metrics = step_on_one_device(other)(state, batch)
    assert metrics.loss != other_metrics.loss


def test_what_routers_do_with_a_batch_as_deepseek_v3_was_trained_on_is_counted_whole():
    """15360 rows of 4096 tokens, 58 layers, 8 choices: 29 G, where int32 ends at 2.1 G."""
    model = PRESETS["deepseek_v3"]().model
    num_tokens, L, E = 15360 * 4096, model.num_stacked_layers, 256
    num_routed = jax.jit(count_routed, static_argnums=0)(model, jnp.int32(num_tokens))
    assert float(num_routed) == pytest.approx(L * num_tokens, rel=1e-6)
    load_LE = jnp.full((L, E), num_tokens * 7 // (E - 1), jnp.int32).at[:, 3].set(num_tokens)
    sums = RouterSums(num_routed, 2 * num_routed, 0.25 * 8 * num_routed, load_LE)
    means = jax.jit(router_means, static_argnums=2)(sums, num_routed, 8)
    np.testing.assert_allclose(means["moe/balance"], 1, rtol=1e-6)
    np.testing.assert_allclose(means["moe/z"], 2, rtol=1e-6)
    np.testing.assert_allclose(means["moe/dropped_fraction"], 0.25, rtol=1e-6)
    expected_E = np.full(E, E / 8 * 7 / (E - 1))
    expected_E[3] = E / 8  # chosen for every token in every layer
    np.testing.assert_allclose(means["moe/load"], expected_E, rtol=1e-6)


def test_batches_without_tokens_divide_by_one_token():
    assert float(count_routed(small_model(num_experts=4, num_active_experts=2), jnp.int32(0))) == 2
