import dataclasses
import functools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_families import LATENT, T5
from small_model import quick_jit, random_params, refusal, small_batch, small_model, small_run

import model.attention.blockwise
from configs.attention_backends import ATTENTION_BACKENDS, AttentionBackend
from model.attention.backends import load
from model.attention.mask import Mask, Scoring
from model.attention.plain import attend as plain_attend
from model.attention.positions import relative_bias, rotate
from model.norm import LayerNorm, RMSNorm, make_norm
from train.loss import batch_sums, inputs_of
from train.state import shape_of

B, T, N, H = 3, 10, 4, 8
FREQUENCY_J = 100.0 ** (-2 * jnp.arange(H // 2) / H)
SEGMENTS_BT = np.array([[1] * 4 + [2] * 6, [1] * 10, [1] * 3 + [2] * 3 + [0] * 4], np.int32)

attend = functools.partial(plain_attend, scoring=Scoring(H**-0.5))
NO_PREFIX_BT, NO_SINKS_N = np.zeros((B, T), bool), np.full(N, -np.inf)


def random_qkv(rng, *, num_kv_heads=2):
    q_BTNH = rng.standard_normal((B, T, N, H), np.float32)
    k_BSKH, v_BSKH = rng.standard_normal((2, B, T, num_kv_heads, H), np.float32)
    return q_BTNH, k_BSKH, v_BSKH


def reference(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    *,
    causal,
    segments_BT,
    prefix_BT=NO_PREFIX_BT,
    window=T,
    scale=H**-0.5,
    softcap=np.inf,
    sinks_N=NO_SINKS_N,
):
    """One query, one head at a time, over the keys that it may see."""
    y_BTNH = np.zeros(q_BTNH.shape)
    queries_per_key = N // k_BSKH.shape[2]
    for b, t, n in np.ndindex(B, T, N):
        seen = [s for s in range(T) if segments_BT[b, s] == segments_BT[b, t]]
        seen = [s for s in seen if s <= t or not causal or prefix_BT[b, s]]
        seen = [s for s in seen if abs(s - t) < window]
        k = n // queries_per_key
        score_S = k_BSKH[b, seen, k].astype(np.float64) @ q_BTNH[b, t, n] * scale
        score_S = score_S if softcap == np.inf else softcap * np.tanh(score_S / softcap)
        weight_S = np.exp(score_S)
        y_BTNH[b, t, n] = weight_S / (weight_S.sum() + np.exp(sinks_N[n])) @ v_BSKH[b, seen, k]
    return y_BTNH


by_backend = pytest.mark.parametrize("backend", ATTENTION_BACKENDS)


@by_backend
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("kind", ["causal", "full"])
@pytest.mark.parametrize("segmented", [False, True])
def test_attend_is_the_formula_over_the_keys_that_a_query_attends_to(
    rng, backend, num_kv_heads, kind, segmented
):
    scoring = Scoring(H**-0.5)
    qkv = random_qkv(rng, num_kv_heads=num_kv_heads)
    mask = Mask(kind=kind, segments_BT=jnp.asarray(SEGMENTS_BT) if segmented else None)
    segments_BT = SEGMENTS_BT if segmented else np.ones((B, T))
    expected = reference(*qkv, causal=kind == "causal", segments_BT=segments_BT)
    attend = functools.partial(load(backend).attend, mask=mask, scoring=scoring)
    gathered = quick_jit(attend)(*qkv)
    # float32 sums of at most ten terms of size one: a few units in the last place.
    np.testing.assert_allclose(gathered, expected, rtol=0, atol=2e-6)


by_ways = pytest.mark.parametrize(
    "ways",
    [
        {"window": 3},
        {"window": 3, "causal": False},
        {"prefix_BT": np.arange(T) % 5 < 2},
        {"prefix_BT": np.arange(T) % 5 < 2, "window": 4},
        {"scale": 0.7, "softcap": 0.6},
        {"sinks_N": np.array([0.0, 2.0, -1.0, 0.5])},
        {"sinks_N": np.array([0.0, 2.0, -1.0, 0.5]), "window": 3, "softcap": 0.6},
    ],
    ids=lambda ways: " ".join(ways),
)


def mask_and_settings(ways):
    """Returns all settings of the reference, and the mask, scoring and sinks that they mean."""
    ways = {"causal": True, "segments_BT": SEGMENTS_BT, **ways}
    if "prefix_BT" in ways:
        ways["prefix_BT"] = np.broadcast_to(ways["prefix_BT"], (B, T))
    arrays = {name: jnp.asarray(x) for name, x in ways.items() if name.endswith("_BT")}
    kind = "causal" if ways["causal"] else "full"
    mask = Mask(kind=kind, window=ways.get("window"), **arrays)
    scoring = Scoring(ways.get("scale", H**-0.5), ways.get("softcap"))
    sinks_N = None if "sinks_N" not in ways else jnp.asarray(ways["sinks_N"], jnp.float32)
    return ways, mask, scoring, sinks_N


@by_backend
@by_ways
def test_attend_is_the_formula_of_every_family(rng, backend, ways):
    qkv = random_qkv(rng)
    ways, mask, scoring, sinks_N = mask_and_settings(ways)
    found = load(backend).attend(*qkv, mask, scoring=scoring, sinks_N=sinks_N)
    np.testing.assert_allclose(found, reference(*qkv, **ways), rtol=0, atol=2e-6)


@pytest.mark.parametrize("block_len", [2048, 3])  # two blocks, or ten of one token
@by_ways
def test_the_gradients_of_blockwise_are_those_that_jax_finds_of_plain(
    rng, monkeypatch, block_len, ways
):
    monkeypatch.setattr(model.attention.blockwise, "BLOCK_LEN", block_len)
    qkv, weights = random_qkv(rng), rng.standard_normal((B, T, N, H), np.float32)
    _, mask, scoring, sinks_N = mask_and_settings(ways)

    def gradients(backend):
        def product(q, k, v, sinks_N):
            y = load(backend).attend(q, k, v, mask, scoring=scoring, sinks_N=sinks_N)
            return jnp.sum(y * weights)

        numbers = (0, 1, 2) if sinks_N is None else (0, 1, 2, 3)
        return quick_jit(jax.grad(product, numbers))(*qkv, sinks_N)

    for found, expected in zip(gradients("blockwise"), gradients("plain"), strict=True):
        # float32 sums of some ten terms of size one, for sinks of 30 rows.
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_blockwise_of_an_odd_length_is_plain(rng):
    mask = Mask(kind="causal", segments_BT=jnp.asarray(SEGMENTS_BT[:, :9]))
    qkv = [jnp.asarray(x[:, :9]) for x in random_qkv(rng)]
    sinks_N = jnp.arange(N, dtype=jnp.float32)

    def value_and_gradients(backend):
        def attend(q, k, v, sinks_N):
            return load(backend).attend(q, k, v, mask, scoring=Scoring(0.7), sinks_N=sinks_N)

        y, pull = jax.vjp(attend, *qkv, sinks_N)
        return y, *pull(jnp.ones_like(y))

    for found, expected in zip(*map(value_and_gradients, ("blockwise", "plain")), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)  # as above


def test_forward_and_backward_of_blockwise_are_attend_and_its_gradients(rng):
    backend, scoring = load("blockwise"), Scoring(0.7)
    mask = Mask(kind="causal", segments_BT=jnp.asarray(SEGMENTS_BT[:, :9]))  # of an odd length
    qkv = [jnp.asarray(x[:, :9]) for x in random_qkv(rng)]
    sinks_N = jnp.arange(N, dtype=jnp.float32)

    def attend(q, k, v, sinks_N):
        return backend.attend(q, k, v, mask, scoring=scoring, sinks_N=sinks_N)

    expected, pull = jax.vjp(attend, *qkv, sinks_N)
    y, logsumexp_BTN = backend.forward(*qkv, mask, scoring, None, sinks_N)
    np.testing.assert_array_equal(y, expected)
    q, k, _ = qkv
    score_BTNS = jnp.einsum("BTNH,BSNH->BTNS", q, jnp.repeat(k, 2, axis=2)) * 0.7
    score_BTNS = jnp.where(mask.allowed_BTS(9, 9)[:, :, None], score_BTNS, -jnp.inf)
    exp_BTN = jnp.sum(jnp.exp(score_BTNS), axis=-1) + jnp.exp(sinks_N)[None, None]
    np.testing.assert_allclose(logsumexp_BTN, jnp.log(exp_BTN), rtol=2e-6)
    *found, dbias, dsinks_N = backend.backward(
        *qkv, mask, scoring, None, sinks_N, y, logsumexp_BTN, jnp.ones_like(y)
    )
    assert dbias is None
    for array, wanted in zip((*found, dsinks_N), pull(jnp.ones_like(y)), strict=True):
        np.testing.assert_array_equal(array, wanted)


def test_a_model_of_another_backend_is_the_same_model(rng):
    batch = small_batch(rng, 4)

    def loss_and_gradients(backend: AttentionBackend):
        config = small_model(attention_backend=backend, attention_window=5, attention_sinks=True)
        shape, params = shape_of(config), random_params(config)
        loss = jax.value_and_grad(lambda params: batch_sums(shape.merge(params), batch)[0])
        value, gradients = quick_jit(loss)(params)
        return [value, *jax.tree.leaves(gradients)]

    plain, auto, blockwise = map(loss_and_gradients, ("plain", "auto", "blockwise"))
    for found, same, expected in zip(blockwise, auto, plain, strict=True):
        np.testing.assert_array_equal(same, expected)
        # float32 sums over four rows, relative to the largest entry of each array.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert any(np.any(x != y) for x, y in zip(blockwise, plain, strict=True))  # it was chosen


def test_every_backend_of_the_table_can_be_chosen_and_has_what_the_table_says():
    assert {*get_args(AttentionBackend)} == {"auto", *ATTENTION_BACKENDS}
    for name, entry in ATTENTION_BACKENDS.items():
        backend = load(name)
        assert callable(backend.attend)
        assert hasattr(backend, "forward") == hasattr(backend, "backward") == entry.ring
        assert hasattr(backend, "add_keys") == hasattr(backend, "add_gradients") == entry.ring


@pytest.mark.parametrize(
    ("changes", "setting", "feature"),
    [
        ({"attention_dropout": 0.1}, "model.attention_dropout=0.1", "dropout"),
        ({"position": "relative"}, "model.position=relative", "bias"),
        (LATENT, f"model.attention={LATENT['attention']}", "unequal widths"),
        (T5, "model.architecture=encoder_decoder", "cross-attention"),
    ],
    ids=["dropout", "bias", "unequal widths", "cross-attention"],
)
def test_a_backend_that_lacks_what_the_settings_need_is_refused(changes, setting, feature):
    message = refusal(small_model, **changes, attention_backend="blockwise")
    assert f"model.attention_backend=blockwise has no {feature}, which {setting} needs" in message
    assert message.endswith("model.attention_backend may be auto, plain")
    small_model(**changes, attention_backend="plain")


def test_a_backend_that_lacks_the_objective_is_refused(monkeypatch):
    entry = ATTENTION_BACKENDS["blockwise"]
    lacking = dataclasses.replace(entry, features=entry.features - {"prefix"})
    monkeypatch.setitem(ATTENTION_BACKENDS, "blockwise", lacking)
    config = small_model(attention_backend="blockwise")
    small_run(config)
    message = refusal(small_run, config, data={"objective": "prefix"})
    assert "has no prefix, which data.objective=prefix needs" in message


def test_a_token_never_attends_to_the_future(rng):
    q, k, v = random_qkv(rng)
    mask = Mask(kind="causal")
    past = attend(q, k, v, mask)[:, :6]
    k[:, 6:], v[:, 6:] = rng.standard_normal((2, B, T - 6, 2, H), np.float32)
    np.testing.assert_array_equal(attend(q, k, v, mask)[:, :6], past)


def gradients_of(queries, qkv, mask, rng):
    """Returns d/dq, d/dk, d/dv of a random combination of what the queries (a slice) gather."""
    weights = rng.standard_normal(qkv[0].shape, np.float32)

    def gathered(q, k, v):
        return jnp.sum((attend(q, k, v, mask) * weights)[queries])

    return quick_jit(jax.grad(gathered, argnums=(0, 1, 2)))(*qkv)


def test_no_gradient_flows_from_the_past_to_the_future(rng):
    past, future = np.s_[:, :6], np.s_[:, 6:]
    for gradient in gradients_of(past, random_qkv(rng), Mask(kind="causal"), rng):
        assert not np.any(gradient[future])
        assert np.any(gradient[past])


@pytest.mark.parametrize("kind", ["causal", "full"])
def test_no_gradient_flows_between_documents(rng, kind):
    mask = Mask(kind=kind, segments_BT=jnp.asarray(SEGMENTS_BT))
    first, second = np.s_[0, :4], np.s_[0, 4:]
    for mine, other in ((first, second), (second, first)):
        for gradient in gradients_of(mine, random_qkv(rng), mask, rng):
            assert not np.any(gradient[other])
            assert np.any(gradient[mine])


def test_full_attention_sees_every_key(rng):
    _, _, d_value = gradients_of(np.s_[:, :1], random_qkv(rng), Mask(kind="full"), rng)
    assert np.all(np.any(d_value != 0, axis=(2, 3)))


def test_the_softmax_of_bfloat16_is_float32():
    # Scores 256 and 257: one number in bfloat16 (a half each), a factor of e apart in float32.
    q_BTNH = jnp.zeros((1, 2, 1, 4), jnp.bfloat16).at[..., :2].set(1)
    k_BSKH = jnp.zeros((1, 2, 1, 4), jnp.bfloat16).at[..., 0].set(512).at[0, 1, 0, 1].set(2)
    v_BSKH = jnp.zeros((1, 2, 1, 4), jnp.bfloat16).at[0, 1].set(1)
    y_BTNH = plain_attend(q_BTNH, k_BSKH, v_BSKH, Mask(kind="causal"), scoring=Scoring(0.5))
    assert y_BTNH.dtype == jnp.bfloat16
    expected = np.e / (1 + np.e)
    # The probability itself is rounded to the 8 bits of bfloat16.
    np.testing.assert_allclose(y_BTNH[0, 1].astype(jnp.float32), expected, rtol=2**-8)


def test_rotate_multiplies_complex_numbers(rng):
    x_BTNH = rng.standard_normal((B, T, N, H), np.float32)
    positions_BT = rng.integers(0, 50, (B, T))
    z = x_BTNH[..., : H // 2] + 1j * x_BTNH[..., H // 2 :]
    turn_J = 100.0 ** (-2 * np.arange(H // 2) / H)
    z = z * np.exp(1j * positions_BT[:, :, None, None] * turn_J)
    expected = np.concatenate([z.real, z.imag], axis=-1)
    # An angle of 50 is known to 4e-6 in float32, and so is its sine.
    np.testing.assert_allclose(
        rotate(x_BTNH, positions_BT, FREQUENCY_J), expected, rtol=0, atol=2e-5
    )


def test_rotated_products_depend_on_the_distance_only(rng):
    q, k = rng.standard_normal((2, 1, 1, 1, H), np.float32)

    def product(q_position, k_position):
        turned_q = rotate(q, jnp.full((1, 1), q_position), FREQUENCY_J)
        turned_k = rotate(k, jnp.full((1, 1), k_position), FREQUENCY_J)
        return float(jnp.sum(turned_q * turned_k))

    assert abs(product(7, 3) - product(7, 2)) > 0.01
    for shift in (1, 20, 60):
        # As above: the angles carry an error that grows with the position, 4e-6 at 60.
        assert product(7 + shift, 3 + shift) == pytest.approx(product(7, 3), abs=5e-5)


def test_rms_norm_divides_by_the_root_of_the_mean_square(rng):
    x, scale = rng.standard_normal((2, 3, 16), np.float32), rng.standard_normal(16, np.float32)
    norm = RMSNorm((16,), ("norm",), small_model(norm_epsilon=0.1))
    norm.scale[...] = jnp.asarray(scale)
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 0.1) * scale
    np.testing.assert_allclose(norm(x), expected, rtol=2e-6)  # float32 sums of 16 terms


@pytest.mark.parametrize("with_bias", [False, True])
def test_layer_norm_takes_the_mean_and_divides_by_the_deviation(rng, with_bias):
    x = 5 + rng.standard_normal((2, 3, 16), np.float32)
    scale, bias = rng.standard_normal((2, 16), np.float32)
    norm = LayerNorm(16, epsilon=0.1, bias=with_bias)
    norm.scale[...] = jnp.asarray(scale)
    if norm.bias is not None:
        norm.bias[...] = jnp.asarray(bias)
    variance = x.astype(np.float64).var(-1, keepdims=True)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(variance + 0.1) * scale
    # float32 of numbers up to 8: taking their mean away leaves an error of 1e-6 each.
    np.testing.assert_allclose(norm(x), expected + bias * with_bias, rtol=0, atol=5e-6)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms_of_bfloat16_are_rounded_at_the_end_only(rng, kind):
    norm = make_norm(small_model(norm=kind))
    x = jnp.asarray(5 + rng.standard_normal((2, 3, 16)), jnp.bfloat16)
    y = norm(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, norm(x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_with_qk_norm_the_size_of_queries_and_keys_does_not_matter(rng):
    config = small_model(qk_norm=True)
    shape, params, batch = shape_of(config), random_params(config), small_batch(rng, 2)

    @quick_jit
    def hidden(params):
        return shape.merge(params)(inputs_of(batch))

    before = hidden(params)
    params["layers"]["attention"]["query"] *= 10
    params["layers"]["attention"]["key"] *= 10
    # Ten times as large, the same but for rounding and the epsilon of 1e-6 in the norm.
    np.testing.assert_allclose(hidden(params), before, rtol=0, atol=1e-4)


def test_distances_share_the_buckets_of_the_published_code():
    """The first distance of each bucket, from T5Attention of transformers 5.24."""
    exact, positions_BT = [*range(17)], jnp.arange(201)[None, :]
    causal = [*exact, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
    full = [*range(9), 12, 16, 23, 32, 46, 64, 91]
    table_RN = jnp.arange(32)[:, None]
    for is_causal, firsts in ((True, causal), (False, full)):
        bias_TS = np.asarray(relative_bias(table_RN, positions_BT, is_causal=is_causal))[0, 0]
        wanted = np.searchsorted(firsts, np.arange(201), side="right") - 1
        np.testing.assert_array_equal(bias_TS[200, ::-1], wanted)
        later = 0 if is_causal else np.where(np.arange(201) > 0, 16 + wanted, 0)
        np.testing.assert_array_equal(bias_TS[0], later)
