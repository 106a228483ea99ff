import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_model import (
    GPT2_LIKE,
    cross_entropy,
    flat,
    quick_jit,
    random_params,
    small_batch,
    small_model,
    small_run,
    step_on_one_device,
)

from configs.run import OptimConfig
from train.loss import inputs_of
from train.optimizer import is_decayed, make_optimizer
from train.state import TrainState, shape_of

NUM_STEPS, LR = 5, 0.1
DECAYED = {"embedding": True, "norm/scale": False, "up_bias": False}
AXES = {"embedding": ("vocab", "embed"), "norm": {"scale": ("norm",)}, "up_bias": ("mlp",)}


def random_trees(rng):
    """Returns parameters, and a gradient for each of five steps: some long, some short."""

    def tree(size):
        matrix, scale, bias = (size * rng.standard_normal(shape) for shape in ((3, 4), (4,), (4,)))
        return {"embedding": matrix, "norm": {"scale": scale}, "up_bias": bias}

    return tree(1.0), [tree(size) for size in (1.0, 0.01, 5.0, 0.1, 1.0)]


def updated(config, params, grads):
    """Returns the parameters after five steps of the optimizer at learning rate LR."""
    tx = make_optimizer(config, AXES)
    params, grads = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (params, grads))
    opt_state = tx.init(params)
    for grad in grads:
        updates, opt_state = tx.update(grad, opt_state, params)
        params = jax.tree.map(lambda p, u: p - LR * u, params, updates)
    return flat(params)


def clipped(grads, max_norm):
    """Returns the gradients as flat trees, each no longer than max_norm."""
    grads = [flat(grad) for grad in grads]
    norms = [np.sqrt(sum((leaf**2).sum() for leaf in grad.values())) for grad in grads]
    assert max_norm is None or min(norms) < max_norm < max(norms)
    return [
        {path: leaf * min(1, (max_norm or norm) / norm) for path, leaf in grad.items()}
        for grad, norm in zip(grads, norms, strict=True)
    ]


@pytest.mark.parametrize("max_norm", [1.0, None])
def test_adamw_is_the_published_algorithm(rng, max_norm):
    config = OptimConfig(
        peak_lr=LR,
        num_warmup_steps=0,
        max_grad_norm=max_norm,
        b1=0.8,
        b2=0.9,
        epsilon=0.01,
        weight_decay=0.2,
    )
    params, grads = random_trees(rng)
    expected = flat(params)
    m = v = dict.fromkeys(expected, 0)
    for t, grad in enumerate(clipped(grads, max_norm), start=1):
        m = {path: 0.8 * m[path] + 0.2 * grad[path] for path in grad}
        v = {path: 0.9 * v[path] + 0.1 * grad[path] ** 2 for path in grad}
        for path, p in expected.items():
            direction = m[path] / (1 - 0.8**t) / (np.sqrt(v[path] / (1 - 0.9**t)) + 0.01)
            expected[path] = p - LR * (direction + 0.2 * DECAYED[path] * p)
    for path, leaf in updated(config, params, grads).items():
        # Five steps in float32 against float64, on numbers of size one.
        np.testing.assert_allclose(leaf, expected[path], rtol=0, atol=2e-6, err_msg=path)


@pytest.mark.parametrize("max_norm", [1.0, None])
def test_sgd_has_a_momentum_and_decays_weights_beside_it(rng, max_norm):
    config = OptimConfig(
        optimizer="sgd",
        peak_lr=LR,
        num_warmup_steps=0,
        max_grad_norm=max_norm,
        b1=0.8,
        weight_decay=0.2,
    )
    params, grads = random_trees(rng)
    expected = flat(params)
    momentum = dict.fromkeys(expected, 0)
    for grad in clipped(grads, max_norm):
        momentum = {path: 0.8 * momentum[path] + grad[path] for path in grad}
        for path, p in expected.items():
            expected[path] = p - LR * (momentum[path] + 0.2 * DECAYED[path] * p)
    for path, leaf in updated(config, params, grads).items():
        # Five steps in float32 against float64, on numbers up to five.
        np.testing.assert_allclose(leaf, expected[path], rtol=0, atol=5e-6, err_msg=path)


def test_matrices_and_embeddings_decay_and_nothing_else():
    config = small_model(**GPT2_LIKE, tied_embeddings=False, qk_norm=True)
    decayed = flat(is_decayed(shape_of(config).axes()))
    assert {path for path, decays in decayed.items() if decays} == {
        "embedding",
        "positions",
        "head",
        "layers/attention/query",
        "layers/attention/key",
        "layers/attention/value",
        "layers/attention/out",
        "layers/mlp/up",
        "layers/mlp/down",
    }
    assert {path for path, decays in decayed.items() if not decays} == {
        "layers/attention/query_bias",
        "layers/attention/key_bias",
        "layers/attention/value_bias",
        "layers/attention/out_bias",
        "layers/attention/query_norm/scale",
        "layers/attention/key_norm/scale",
        "layers/attention_norm/scale",
        "layers/attention_norm/bias",
        "layers/mlp/up_bias",
        "layers/mlp/down_bias",
        "layers/mlp_norm/scale",
        "layers/mlp_norm/bias",
        "norm/scale",
        "norm/bias",
    }


def test_experts_routers_and_attention_sinks_decay_too():
    config = small_model(num_experts=4, num_active_experts=2, attention_sinks=True)
    decayed = flat(is_decayed(shape_of(config).axes()))
    for path in ("mlp/router", "mlp/gate", "mlp/up", "mlp/down", "attention/sinks"):
        assert decayed[f"layers/{path}"], path


def test_the_optimizer_does_not_know_the_learning_rate(rng):
    params, grads = random_trees(rng)
    slow, fast = (
        make_optimizer(OptimConfig(peak_lr=peak_lr, num_warmup_steps=0), AXES)
        for peak_lr in (0.01, 1.0)
    )
    params, grad = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (params, grads[0]))
    slow_update, _ = slow.update(grad, slow.init(params), params)
    fast_update, _ = fast.update(grad, fast.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, slow_update, fast_update)


def test_a_step_moves_by_minus_the_learning_rate_times_the_direction(rng):
    plain_sgd = {"optimizer": "sgd", "b1": 0.0, "weight_decay": 0.0, "max_grad_norm": None}
    config = small_run(optim={**plain_sgd, "peak_lr": 0.25})
    params, batch = random_params(config.model), small_batch(rng, 8)
    tx = make_optimizer(config.optim, shape_of(config.model).axes())

    @quick_jit
    @jax.grad
    def mean_loss_gradient(params):
        decoder = shape_of(config.model).merge(params)
        hidden = decoder(inputs_of(batch))
        return cross_entropy(decoder.logits(hidden), batch) / batch.weights_BT.sum()

    state = TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))
    after, metrics = step_on_one_device(config)(state, batch)
    assert metrics.learning_rate == 0.25
    for path, gradient in flat(mean_loss_gradient(params)).items():
        # Parameters of size one in float32, less a small number.
        expected = flat(params)[path] - 0.25 * gradient
        np.testing.assert_allclose(flat(after.params)[path], expected, rtol=0, atol=1e-6)


def test_clipping_is_bit_for_bit_that_of_arrays_by_their_first_names():
    """A sum of float32 depends on its order, and a tree is summed in the order of its names."""
    values = [np.full(1, x, np.float32) for x in (1, 1, 1, 2**12)]  # 1 + 2**24 is 2**24 there
    first = ("embedding", "first_layers", "future", "layers")
    now = ("embedding", "leading_layers", "mtp", "layers")

    def clipped(names: Sequence[str], clip: optax.GradientTransformation) -> np.ndarray:
        grads = dict(zip(names, values, strict=True))
        updates: Any = clip.update(grads, clip.init(grads), grads)[0]
        return np.stack([updates[name] for name in names])

    config = dataclasses.replace(small_run().optim, optimizer="sgd", weight_decay=0.0, b1=0.0)
    ours = make_optimizer(config, dict.fromkeys(now, ("embed",)))
    by_name = optax.clip_by_global_norm(1.0)
    np.testing.assert_array_equal(clipped(now, ours), clipped(first, by_name))
    assert (clipped(now, by_name) != clipped(first, by_name)).any()
