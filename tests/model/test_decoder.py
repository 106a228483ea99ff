import dataclasses
import functools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_model import SEQUENCE_LEN as T
from small_model import (
    VARIANTS,
    cross_entropy,
    flat,
    mesh_of,
    quick_jit,
    random_params,
    small_batch,
    small_model,
    small_run,
)
from traced_programs import equations

from configs.model import ModelConfig
from data.batch import Batch
from model.block import LayerInputs
from model.dropout import dropout, token_rng
from model.inputs import Inputs
from model.norm import RMSNorm
from model.transformer import Transformer
from sharding.pipeline import pipeline_of
from train.loss import inputs_of
from train.optimizer import Params
from train.state import shape_of

erf = np.vectorize(math.erf)
every_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)


def reference_logits(config: ModelConfig, params: Params, batch: Batch) -> np.ndarray:
    """The decoder again, in float64 numpy, layer by layer and without the padding of V."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    segments_BT, positions_BT = np.asarray(batch.segments_BT), np.asarray(batch.positions_BT)
    V, H, epsilon = config.num_tokens, config.head_dim, config.norm_epsilon
    allowed_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
    allowed_BNTS = (allowed_BTS & np.tril(np.ones((T, T), bool)))[:, None]

    def rms(p, x):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * p["scale"]

    def norm(p, x):
        centered = x - x.mean(-1, keepdims=True) if config.norm == "layer" else x
        return rms(p, centered) + p.get("bias", 0)

    def rotate(x_BTNH):
        z = x_BTNH[..., : H // 2] + 1j * x_BTNH[..., H // 2 :]
        turn_J = config.rope_theta ** (-2 * np.arange(H // 2) / H)
        z = z * np.exp(1j * positions_BT[..., None, None] * turn_J)
        return np.concatenate([z.real, z.imag], axis=-1)

    def attention(p, x_BTD):
        q = np.einsum("btd,dnh->btnh", x_BTD, p["query"]) + p.get("query_bias", 0)
        k = np.einsum("btd,dnh->btnh", x_BTD, p["key"]) + p.get("key_bias", 0)
        v = np.einsum("btd,dnh->btnh", x_BTD, p["value"]) + p.get("value_bias", 0)
        if config.qk_norm:
            q, k = rms(p["query_norm"], q), rms(p["key_norm"], k)
        if config.position == "rotary":
            q, k = rotate(q), rotate(k)
        k, v = (x.repeat(config.num_heads // config.num_kv_heads, axis=2) for x in (k, v))
        score = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(H)
        weight = np.where(allowed_BNTS, np.exp(score - score.max(-1, keepdims=True)), 0)
        y = np.einsum("bnts,bsnh->btnh", weight / weight.sum(-1, keepdims=True), v)
        return np.einsum("btnh,nhd->btd", y, p["out"]) + p.get("out_bias", 0)

    def mlp(p, x_BTD):
        up = x_BTD @ p["up"] + p.get("up_bias", 0)
        if config.mlp == "swiglu":
            gate = x_BTD @ p["gate"] + p.get("gate_bias", 0)
            up = up * gate / (1 + np.exp(-gate))
        elif config.mlp == "gelu":
            up = up * (1 + erf(up / np.sqrt(2))) / 2
        elif config.mlp == "gelu_tanh":
            up = up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3))) / 2
        else:
            up = np.maximum(up, 0) ** 2
        return up @ p["down"] + p.get("down_bias", 0)

    x_BTD = params["embedding"][batch.tokens_BT]
    if config.position == "learned":
        x_BTD = x_BTD + params["positions"][positions_BT]
    for number in range(config.num_layers):
        layer = jax.tree.map(operator.itemgetter(number), params["layers"])
        x_BTD = x_BTD + attention(layer["attention"], norm(layer["attention_norm"], x_BTD))
        x_BTD = x_BTD + mlp(layer["mlp"], norm(layer["mlp_norm"], x_BTD))
    head_DV = params["embedding"].T if config.tied_embeddings else params["head"]
    logits_BTV = norm(params["norm"], x_BTD) @ head_DV[:, :V]
    cap = config.logit_softcap
    return logits_BTV if cap is None else cap * np.tanh(logits_BTV / cap)


@functools.cache
def compiled(config: ModelConfig):
    """Returns (params, batch, weights_BTD) -> logits, and d sum(weights * hidden) / d params.

    Hidden states and not logits, because the logits of a tied head read every embedding.
    """
    shape = shape_of(config)

    def weighted(params: Params, batch: Batch, weights_BTD):
        decoder = shape.merge(params)
        hidden_BTD = decoder(inputs_of(batch))
        return jnp.sum(hidden_BTD * weights_BTD), decoder.logits(hidden_BTD)

    gradient = quick_jit(jax.grad(weighted, has_aux=True))

    def run(params: Params, batch: Batch, weights_BTD=None):
        if weights_BTD is None:
            weights_BTD = np.ones((*batch.tokens_BT.shape, config.embed_dim), np.float32)
        grads, logits_BTV = gradient(params, batch, weights_BTD)
        return logits_BTV, grads

    return run


def split_rows(rng, *, segments_T) -> Batch:
    """Returns four rows whose tokens 0 to 6 have ids below 50, and the others ids from 50 on."""
    tokens_BT = np.hstack([rng.integers(0, 50, (4, 7)), rng.integers(50, 100, (4, T - 7))])
    tokens_BT = tokens_BT.astype(np.int32)
    positions_T = [segments_T[:t].count(segments_T[t]) for t in range(T)]
    segments_BT, positions_BT = (np.array([x] * 4, np.int32) for x in (segments_T, positions_T))
    return Batch(tokens_BT, tokens_BT, np.ones((4, T), np.float32), segments_BT, positions_BT)


@every_variant
def test_logits_are_those_of_the_formula(rng, config):
    params, batch = random_params(config), small_batch(rng, 4)
    logits_BTV, _ = compiled(config)(params, batch)
    # Logits have a size of about five, after two layers in float32 against float64.
    expected = reference_logits(config, params, batch)
    np.testing.assert_allclose(logits_BTV[..., : config.num_tokens], expected, rtol=0, atol=1e-4)


@every_variant
def test_a_token_never_sees_the_future(rng, config):
    params, batch = random_params(config), split_rows(rng, segments_T=[1] * T)
    logits_BTV, _ = compiled(config)(params, batch)
    changed = batch._replace(tokens_BT=np.where(np.arange(T) < 7, batch.tokens_BT, 3))
    changed_BTV, _ = compiled(config)(params, changed)
    np.testing.assert_array_equal(changed_BTV[:, :7], logits_BTV[:, :7])
    assert np.any(changed_BTV[:, 7:] != logits_BTV[:, 7:])


@every_variant
@pytest.mark.parametrize("segments_T", [[1] * T, [1] * 7 + [2] * (T - 7)], ids=["one", "two"])
def test_no_gradient_flows_back_from_the_future_or_another_document(rng, config, segments_T):
    params, batch = random_params(config), split_rows(rng, segments_T=segments_T)
    for mine in (np.arange(T) < 7, np.arange(T) >= 7):
        weights_BTD = rng.standard_normal((4, T, config.embed_dim)) * mine[None, :, None]
        _, grads = compiled(config)(params, batch, weights_BTD.astype(np.float32))
        reached = np.any(grads["embedding"] != 0, axis=1)
        may_reach = mine if segments_T[-1] == 2 else np.arange(T) <= np.flatnonzero(mine)[-1]
        expected = np.isin(np.arange(len(reached)), batch.tokens_BT[:, may_reach])
        np.testing.assert_array_equal(reached, expected)


def loss_and_grads(config: ModelConfig, params: Params, batch: Batch):
    shape = shape_of(config)

    @quick_jit
    @jax.value_and_grad
    def loss_fn(params):
        decoder = shape.merge(params)
        hidden = decoder(inputs_of(batch))
        return cross_entropy(decoder.logits(hidden), batch)

    return loss_fn(params)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_unrolled_layers": 3},
        {"remat": "dots"},
        {"remat": "full", "num_unrolled_layers": 2},
        {"remat": "named", "remat_saved": ("query", "attention", "up", "mlp_out")},
    ],
    ids=str,
)
def test_how_layers_are_computed_changes_nothing(rng, changes):
    config = small_model(num_layers=4)
    params, batch = random_params(config, std=0.1), small_batch(rng, 4)
    loss, grads = loss_and_grads(config, params, batch)
    changed = dataclasses.replace(config, **changes)
    other_loss, other_grads = loss_and_grads(changed, params, batch)
    # The same operations fused otherwise: float32 rounding, per leaf by norm.
    assert float(other_loss) == pytest.approx(float(loss), rel=1e-6)
    for path, grad in flat(grads).items():
        difference = np.linalg.norm(flat(other_grads)[path] - grad)
        assert difference <= 2e-6 * np.linalg.norm(grad), path


@pytest.mark.parametrize(
    ("num_layers", "num_unrolled", "settings", "guarded"),
    [
        (4, 1, {}, [False]),
        (4, 4, {}, [True]),
        (1, 1, {}, [True]),
        (
            5,
            2,
            {"attention_window": 4, "attention_pattern": ("local", "global")},
            [False] * 2 + [True],
        ),
    ],
    ids=["in a loop", "unrolled", "alone", "after the last period"],
)
def test_outside_a_loop_a_recomputation_is_kept_from_the_compiler(
    rng, num_layers, num_unrolled, settings, guarded
):
    """Which would find the same computation in the forward pass, and keep its results instead."""
    config = small_model(
        num_layers=num_layers, num_unrolled_layers=num_unrolled, remat="full", **settings
    )
    shape, inputs = shape_of(config), inputs_of(small_batch(rng, 2))
    program = jax.make_jaxpr(lambda p: shape.merge(p)(inputs))(random_params(config))
    layers = [eqn for eqn in equations(program.jaxpr) if eqn.primitive.name == "remat2"]
    assert [eqn.params["prevent_cse"] for eqn in layers] == guarded


@pytest.mark.parametrize(
    ("num_unrolled", "on_cpu", "elsewhere"), [("auto", 6, 1), (1, 1, 1), (4, 3, 3), (9, 6, 6)]
)
def test_an_iteration_of_the_scan_has_the_largest_divisor_of_the_layers(
    rng, num_unrolled, on_cpu, elsewhere
):
    config = small_model(num_layers=6, num_unrolled_layers=num_unrolled)
    inputs = inputs_of(small_batch(rng, 2))
    here = pipeline_of(small_run(config), mesh_of(data=8))
    for pipeline, wanted in ((here, on_cpu), (dataclasses.replace(here, unrolls=False), elsewhere)):
        shape = shape_of(config, pipeline)
        program = jax.make_jaxpr(lambda p, shape=shape: shape.merge(p)(inputs))(
            random_params(config)
        )
        (scan,) = [eqn for eqn in program.jaxpr.eqns if eqn.primitive.name == "scan"]
        assert scan.params["unroll"] == wanted


def test_the_scan_is_a_loop_over_the_blocks_in_model_order(rng):
    config = small_model(num_layers=3)
    params, batch = random_params(config), jax.tree.map(jnp.asarray, small_batch(rng, 4))

    @quick_jit
    def scanned_and_looped(params):
        decoder = shape_of(config).merge(params)
        assert isinstance(decoder, Transformer)
        assert isinstance(decoder.norm, RMSNorm)
        graph, layers = nnx.split(decoder.layers)
        inputs = LayerInputs(batch.positions_BT, batch.segments_BT)
        x_BTD = decoder.embedding[...][batch.tokens_BT]
        for number in range(config.num_layers):
            layer = jax.tree.map(operator.itemgetter(number), layers)
            x_BTD, _ = nnx.merge(graph, layer)(x_BTD, inputs)
        scanned_BTD = decoder(inputs_of(batch))
        return scanned_BTD, decoder.norm(x_BTD)

    scanned_BTD, looped_BTD = scanned_and_looped(params)
    # The same operations on numbers of size one, fused otherwise: float32 rounding.
    np.testing.assert_allclose(scanned_BTD, looped_BTD, rtol=0, atol=5e-6)


@pytest.mark.parametrize("variant", ["untied_head", "softcap"])
def test_padding_of_the_vocabulary_has_no_probability_and_no_gradient(rng, variant):
    config = VARIANTS[variant]
    params, batch = random_params(config), small_batch(rng, 4)
    for name, rows in (("embedding", np.s_[100:]), ("head", np.s_[:, 100:])):
        if name in params:
            params[name] = params[name].at[rows].set(1e4)  # as likely as it gets
    logits_BTV, _ = compiled(config)(params, batch)
    assert logits_BTV.shape[-1] == 128
    assert not np.any(jax.nn.softmax(logits_BTV)[..., 100:])
    _, grads = loss_and_grads(config, params, batch)
    assert not np.any(grads["embedding"][100:])
    assert config.tied_embeddings or not np.any(grads["head"][:, 100:])


def test_the_softcap_bounds_logits(rng):
    config = small_model(logit_softcap=3.0)
    batch, params = small_batch(rng, 4), random_params(config, std=1.0)
    capped, _ = compiled(config)(params, batch)
    free, _ = compiled(small_model())(params, batch)
    assert np.abs(free[..., :100]).max() > 10
    assert np.abs(capped[..., :100]).max() <= 3
    # Logits up to 30 in float32, through a function that is nowhere steeper than one.
    np.testing.assert_allclose(capped[..., :100], 3 * np.tanh(free[..., :100] / 3), atol=2e-5)


def test_activations_are_bfloat16_and_logits_float32(rng):
    config = small_model(dtype="bfloat16")
    batch = small_batch(rng, 2)

    def hidden_and_logits():
        decoder = shape_of(config).merge(random_params(config))
        hidden_BTD = decoder(inputs_of(batch))
        return hidden_BTD, decoder.logits(hidden_BTD)

    dtypes = [shape.dtype for shape in jax.eval_shape(hidden_and_logits)]
    assert dtypes == [jnp.bfloat16, jnp.float32]


def test_dropout_is_off_without_keys(rng):
    batch = small_batch(rng, 4)
    dropping = small_model(dropout=0.5, attention_dropout=0.5)
    params = random_params(dropping)
    expected, _ = compiled(small_model())(params, batch)
    np.testing.assert_array_equal(compiled(dropping)(params, batch)[0], expected)


def test_dropout_zeroes_at_its_rate_and_scales_the_rest():
    rng_BT = jax.random.split(jax.random.key(0), (4, 100))
    y = np.asarray(dropout(jnp.ones((4, 100, 100)), 0.2, rng_BT))
    np.testing.assert_array_equal(np.unique(y), np.array([0, 1 / 0.8], np.float32))
    # 40000 draws: five standard deviations of sqrt(0.2 * 0.8 / 40000) = 0.002.
    assert np.mean(y == 0) == pytest.approx(0.2, abs=0.01)


def test_the_mask_of_a_token_depends_on_the_key_of_its_row_and_its_place_alone():
    rng_B = jax.random.split(jax.random.key(0), 4)
    whole = dropout(jnp.ones((4, 6, 5)), 0.5, token_rng(rng_B, jnp.arange(6)))
    rows, places = jnp.array([3, 1]), jnp.array([5, 0, 2])
    part = dropout(jnp.ones((2, 3, 5)), 0.5, token_rng(rng_B[rows], places))
    np.testing.assert_array_equal(part, whole[rows][:, places])
    assert len(np.unique(whole.reshape(24, -1), axis=0)) > 12  # of 2^5 that there may be


def test_every_place_and_layer_draws_a_mask_of_its_own():
    # Weights are zero, so that what each place adds is its bias: a bit of the number that comes
    # out, kept or dropped. With this epsilon the last norm divides everything by 10^6.
    config = small_model(bias=True, dropout=0.5, norm_epsilon=1e12)
    params = jax.tree.map(jnp.zeros_like, random_params(config))
    params["norm"]["scale"] += 1
    params["embedding"] += 1
    for layer, (attention_bit, mlp_bit) in enumerate([(2, 4), (8, 16)]):
        biases = params["layers"]["attention"]["out_bias"].at[layer].set(attention_bit)
        params["layers"]["attention"]["out_bias"] = biases
        biases = params["layers"]["mlp"]["down_bias"].at[layer].set(mlp_bit)
        params["layers"]["mlp"]["down_bias"] = biases
    ones_BT = jnp.ones((4, T), jnp.int32)
    rng_B = jax.random.split(jax.random.key(0), 4)
    inputs = Inputs(ones_BT, ones_BT, ones_BT)
    hidden_BTD, _ = quick_jit(shape_of(config).merge(params).run)(inputs, rng_B)
    number_BTD = np.rint(np.asarray(hidden_BTD) * 1e6 / 2).astype(int)  # kept is divided by 0.5
    masks = [(number_BTD >> bit & 1).ravel() for bit in range(5)]
    assert number_BTD.max() == 31
    # 768 fair coins: five standard deviations of sqrt(0.25 / 768) = 0.018.
    for i in range(5):
        assert masks[i].mean() == pytest.approx(0.5, abs=0.09)
        for j in range(i):
            assert np.mean(masks[i] == masks[j]) == pytest.approx(0.5, abs=0.09)
