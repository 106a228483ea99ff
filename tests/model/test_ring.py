import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.ad_checkpoint import print_saved_residuals
from small_model import mesh_of, quick_jit, small_model

import model.attention.blockwise
from model.attention.attention import Attention
from model.attention.block_attention import any_allowed
from model.attention.mask import Mask, Scoring
from model.attention.plain import attend as plain_attend
from model.attention.ring import ring_attend
from sharding.rules import sharding
from sharding.zigzag import zigzag_order

B, T, N, H = 2, 32, 4, 8
SCORING = Scoring(H**-0.5)
blockwise_ring = functools.partial(ring_attend, model.attention.blockwise, scoring=SCORING)
attend = functools.partial(plain_attend, scoring=SCORING)
ATTENTION_SAVED = jax.checkpoint_policies.save_only_these_names("attention")


def seen_by(kind, window, segments_BT, row_index_T):
    """Returns booleans [B, T, S], one query and one key at a time."""
    seen_BTS = np.zeros((B, T, T), bool)
    for b, t, s in np.ndindex(B, T, T):
        distance = row_index_T[t] - row_index_T[s]
        in_reach = kind == "full" or (distance >= 0 and (window is None or distance < window))
        seen_BTS[b, t, s] = in_reach and segments_BT[b, t] == segments_BT[b, s]
    return seen_BTS


def reference(q_BTNH, k_BTKH, v_BTKH, dy_BTNH, seen_BTS):
    """Returns y and d/dq, d/dk, d/dv of sum(y dy) in float64, one row and one head at a time."""
    q_BTNH, k_BTKH, v_BTKH, dy_BTNH = (
        np.asarray(x, np.float64) for x in (q_BTNH, k_BTKH, v_BTKH, dy_BTNH)
    )
    y_BTNH, dq_BTNH = np.zeros(q_BTNH.shape), np.zeros(q_BTNH.shape)
    dk_BTKH, dv_BTKH = np.zeros(k_BTKH.shape), np.zeros(k_BTKH.shape)
    for b, n in np.ndindex(B, N):
        k = n // (N // k_BTKH.shape[2])
        q_TH, dy_TH = q_BTNH[b, :, n], dy_BTNH[b, :, n]
        k_SH, v_SH = k_BTKH[b, :, k], v_BTKH[b, :, k]
        weight_TS = np.exp(q_TH @ k_SH.T / np.sqrt(H)) * seen_BTS[b]
        weight_TS /= weight_TS.sum(axis=1, keepdims=True)
        d_weight_TS = dy_TH @ v_SH.T
        mean_T1 = (weight_TS * d_weight_TS).sum(axis=1, keepdims=True)
        d_score_TS = weight_TS * (d_weight_TS - mean_T1) / np.sqrt(H)
        y_BTNH[b, :, n] = weight_TS @ v_SH
        dq_BTNH[b, :, n] = d_score_TS @ k_SH
        dk_BTKH[b, :, k] += d_score_TS.T @ q_TH
        dv_BTKH[b, :, k] += weight_TS.T @ dy_TH
    return y_BTNH, dq_BTNH, dk_BTKH, dv_BTKH


def random_arrays(rng, num_kv_heads=2, dtype=jnp.float32):
    """Returns q, k, v, dy and the segments of packed rows, one of them with padding."""
    q_BTNH, dy_BTNH = rng.standard_normal((2, B, T, N, H))
    k_BTKH, v_BTKH = rng.standard_normal((2, B, T, num_kv_heads, H))
    segments_BT = np.array([[1] * 11 + [2] * 21, [1] * 3 + [2] * 10 + [3] * 14 + [0] * 5], np.int32)
    return *(jnp.asarray(x, dtype) for x in (q_BTNH, k_BTKH, v_BTKH, dy_BTNH)), segments_BT


def value_and_gradients(attention, q, k, v, dy):
    def product(q, k, v):
        y = attention(q, k, v)
        return jnp.sum(y * dy, dtype=jnp.float32), y

    (_, y), gradients = jax.value_and_grad(product, (0, 1, 2), has_aux=True)(q, k, v)
    return y, *gradients


def ring_under(mask):
    """Returns the compiled function from q, k, v, dy to y, dq, dk, dv."""
    attention = functools.partial(blockwise_ring, mask=mask)
    return quick_jit(functools.partial(value_and_gradients, attention))


def assert_close(arrays, expected, tolerance):
    """Compares every array relative to the largest of its expected entries."""
    for array, wanted in zip(arrays, expected, strict=True):
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(
            np.asarray(array, np.float64) / scale, wanted / scale, rtol=0, atol=tolerance
        )


def assert_ring_is_the_formula(
    rng,
    cut,
    kind: Any = "causal",
    window=None,
    packed=False,
    zigzag=False,
    num_kv_heads=2,
    dtype=jnp.float32,
    tolerance=3e-6,  # float32 sums of 32 terms of size one, of 128 for a key of all four heads
):
    q, k, v, dy, segments_BT = random_arrays(rng, num_kv_heads, dtype)
    row_index_T = zigzag_order(T, cut["context"]) if zigzag else np.arange(T)
    segments_BT = segments_BT[:, row_index_T] if packed else None
    mask = Mask(
        kind=kind,
        window=window,
        segments_BT=None if segments_BT is None else jnp.asarray(segments_BT),
        row_index_T=jnp.asarray(row_index_T) if zigzag else None,
    )
    with jax.set_mesh(mesh_of(**cut)):
        found = ring_under(mask)(q, k, v, dy)
    assert all(x.dtype == dtype for x in found)
    one_segment_BT = np.ones((B, T)) if segments_BT is None else segments_BT
    expected = reference(q, k, v, dy, seen_by(kind, window, one_segment_BT, row_index_T))
    assert_close(found, expected, tolerance)


@pytest.mark.parametrize(
    ("cut", "zigzag"),
    [
        ({"context": 2}, False),
        ({"context": 4}, True),
        ({"context": 8}, False),
        ({"context": 8}, True),
        ({"data": 2, "context": 2, "tensor": 2}, True),
    ],
    ids=str,
)
def test_the_ring_is_the_formula_over_the_keys_that_a_query_sees(rng, cut, zigzag):
    assert_ring_is_the_formula(rng, cut, zigzag=zigzag, packed=True)


@pytest.mark.parametrize(
    "case",
    [
        {"kind": "full"},
        {"kind": "full", "packed": True, "zigzag": True, "num_kv_heads": 1},
        {"window": 2},
        {"window": 5, "zigzag": True},
        {"window": 12, "packed": True, "num_kv_heads": 4},
        {"zigzag": True, "num_kv_heads": 1},
    ],
    ids=str,
)
def test_the_ring_knows_every_mask_and_every_grouping_of_heads(rng, case):
    assert_ring_is_the_formula(rng, {"context": 4}, **case)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [{"context": 8}, {"context": 4, "tensor": 2}], ids=str)
@pytest.mark.parametrize(
    ("kind", "window"), [("causal", None), ("causal", 3), ("causal", 15), ("full", None)]
)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("zigzag", [False, True])
@pytest.mark.parametrize("num_kv_heads", [2, 4])
def test_the_ring_is_the_formula_in_all_combinations(
    rng, cut, kind, window, packed, zigzag, num_kv_heads
):
    assert_ring_is_the_formula(rng, cut, kind, window, packed, zigzag, num_kv_heads)


@pytest.mark.parametrize("case", [{}, {"window": 5, "packed": True, "zigzag": True}], ids=str)
def test_the_length_of_blocks_changes_nothing(rng, case, monkeypatch):
    monkeypatch.setattr(model.attention.blockwise, "BLOCK_LEN", 3)  # of 8: 4 blocks of 2
    assert_ring_is_the_formula(rng, {"context": 4}, **case)


def test_the_ring_of_bfloat16_rounds_weights_and_results_only(rng):
    # Weights and the gradients of scores are rounded to 8 bits before a product, results after it.
    assert_ring_is_the_formula(
        rng, {"context": 4}, packed=True, zigzag=True, dtype=jnp.bfloat16, tolerance=2**-7
    )


def test_queries_that_see_no_key_get_zeros_and_give_none(rng):
    q, k, v, dy, _ = random_arrays(rng)
    nothing = Mask(kind="causal", window=0)
    with jax.set_mesh(mesh_of(context=2)):
        found = ring_under(nothing)(q, k, v, dy)
    for array in found:
        np.testing.assert_array_equal(array, 0)


def layers_in_stages(attention, policy, segments_SBT, scale_SL, q_SBTNH, k_SBTKH, v_SBTKH):
    """Runs layers of attention in a scan on each of several stages, as the pipeline does."""

    def stage(q, k, v, segments_BT, scale_L):
        def layer(q, scale):
            return q + jnp.sin(attention(scale * q, k, v, segments_BT)), None

        layer = jax.checkpoint(layer, policy=policy, prevent_cse=False)
        return jax.lax.scan(layer, q, scale_L)[0]

    stages = jax.vmap(stage, spmd_axis_name="stage")
    return stages(q_SBTNH, k_SBTKH, v_SBTKH, segments_SBT, scale_SL)


@pytest.mark.parametrize("policy", [None, ATTENTION_SAVED], ids=["nothing", "attention"])
def test_layers_of_it_in_stages_are_what_plain_attention_makes_of_them(rng, policy):
    S = 2
    drawn = [random_arrays(rng) for _ in range(S)]
    q, k, v, dy, segments = (jnp.stack(arrays) for arrays in zip(*drawn, strict=True))
    scale_SL = jnp.asarray(rng.uniform(0.5, 1, (S, 3)), jnp.float32)
    row_index_T = jnp.asarray(zigzag_order(T, 2))

    def layers(attention):
        def attend_under_mask(q, k, v, segments_BT):
            mask = Mask(kind="causal", segments_BT=segments_BT, row_index_T=row_index_T)
            return attention(q, k, v, mask)

        in_stages = functools.partial(
            layers_in_stages, attend_under_mask, policy, segments, scale_SL
        )
        differentiate = quick_jit(functools.partial(value_and_gradients, in_stages))
        return differentiate.lower(q, k, v, dy).compile()

    with jax.set_mesh(mesh_of(stage=S, context=2, tensor=2)):
        ring, plain = layers(blockwise_ring), layers(attend)
        found, expected = ring(q, k, v, dy), plain(q, k, v, dy)
    # Three layers in float32, each about as close as one is above.
    assert_close(found, [np.asarray(x, np.float64) for x in expected], 1e-5)
    assert " conditional(" in str(ring.as_text())  # in stages too, a pair is computed or left out


@pytest.mark.parametrize(("block_len", "first_late"), [(2048, 16), (2, 18)])
def test_keys_that_a_block_of_queries_cannot_see_are_not_touched(
    rng, monkeypatch, block_len, first_late
):
    monkeypatch.setattr(model.attention.blockwise, "BLOCK_LEN", block_len)
    q, k, v, dy, _ = random_arrays(rng)
    row_index_T = zigzag_order(T, 4)  # chunks of 4 places: two blocks of a device, or four
    late_T = row_index_T >= first_late
    v = v.at[:, late_T].set(np.nan)  # 0 * NaN is NaN: masked is not enough
    mask = Mask(kind="causal", row_index_T=jnp.asarray(row_index_T))
    with jax.set_mesh(mesh_of(context=4)):
        y, dq, _, _ = ring_under(mask)(q, k, v, dy)
    for array in (y, dq):
        assert np.all(np.isfinite(array[:, ~late_T]))
        assert not np.any(np.isfinite(array[:, late_T]))


def lowered(f, mesh):
    """Returns f lowered for q, k, v that are cut as the model cuts them."""
    heads = sharding(mesh, "act_batch", "act_len", "act_heads", None)
    shapes = [jax.ShapeDtypeStruct((B, T, n, H), jnp.float32, sharding=heads) for n in (N, 2, 2)]
    return quick_jit(f).lower(*shapes)


def test_keys_and_values_are_passed_on_and_never_gathered():
    mask = Mask(
        kind="causal",
        segments_BT=jnp.ones((B, T), jnp.int32),
        row_index_T=jnp.asarray(zigzag_order(T, 2)),
    )

    def gradients(attention):
        return jax.grad(lambda *qkv: jnp.sum(attention(*qkv, mask) ** 2), (0, 1, 2))

    mesh = mesh_of(data=2, context=2, tensor=2)
    with jax.set_mesh(mesh):
        ring, plain = (
            str(lowered(gradients(attention), mesh).compile().as_text())
            for attention in (blockwise_ring, attend)
        )
    assert " collective-permute" in ring
    assert "all-gather" in plain
    for other in ("all-gather", "all-to-all", "all-reduce", "reduce-scatter"):
        assert other not in ring


def test_what_is_named_attention_goes_around_once_only():
    mask = Mask(kind="causal")

    def num_sent(policy):
        def layer(q, k, v):
            return jnp.sin(blockwise_ring(q, k, v, mask))

        layer = jax.checkpoint(layer, policy=policy)
        gradients = jax.value_and_grad(lambda *qkv: jnp.sum(layer(*qkv)), (0, 1, 2))
        return lowered(gradients, mesh).as_text().count("collective_permute")

    mesh = mesh_of(context=4)
    with jax.set_mesh(mesh):
        everything = num_sent(jax.checkpoint_policies.everything_saveable)
        assert num_sent(ATTENTION_SAVED) == everything
        assert num_sent(jax.checkpoint_policies.nothing_saveable) > everything


@pytest.mark.parametrize("context_attention", ["ring", "all_gather"])
def test_the_module_keeps_its_result_under_its_name_once(context_attention, capsys):
    config = small_model(context_attention=context_attention)
    graph, params = nnx.split(Attention(config, rngs=nnx.Rngs(0)))
    positions_BT = jnp.broadcast_to(jnp.arange(T), (B, T))

    def layer(params, x_BTD):
        return nnx.merge(graph, params)(x_BTD, positions_BT, Mask(kind="causal"))

    layer = jax.checkpoint(layer, policy=ATTENTION_SAVED)
    with jax.set_mesh(mesh_of(context=2)):
        x_BTD = jnp.ones((B, T, config.embed_dim))
        print_saved_residuals(layer, params, x_BTD)
    assert capsys.readouterr().out.count(f"f32[{B},{T},{config.num_heads},{config.head_dim}]") == 1


@pytest.mark.parametrize("context_attention", ["ring", "all_gather"])
@pytest.mark.parametrize("cut", [{"context": 4}, {"context": 2, "tensor": 2}], ids=str)
def test_a_cut_row_changes_nothing_for_the_module(rng, context_attention, cut):
    config = small_model(context_attention=context_attention, attention_window=12, qk_norm=True)
    graph, params = nnx.split(Attention(config, rngs=nnx.Rngs(0)))
    *_, segments_BT = random_arrays(rng)
    x_BTD, dy_BTD = rng.standard_normal((2, B, T, config.embed_dim), np.float32)

    def result_and_gradients(row_index_T):
        positions_BT = jnp.broadcast_to(row_index_T, (B, T))
        mask = Mask(
            kind="causal",
            window=12,
            segments_BT=jnp.asarray(segments_BT[:, row_index_T]),
            row_index_T=jnp.asarray(row_index_T),
        )

        def product(params, x_BTD):
            y_BTD = nnx.merge(graph, params)(x_BTD, positions_BT, mask)
            return jnp.sum(y_BTD * dy_BTD[:, row_index_T]), y_BTD

        differentiate = quick_jit(jax.value_and_grad(product, (0, 1), has_aux=True))
        (_, y_BTD), (d_params, dx_BTD) = differentiate(params, x_BTD[:, row_index_T])
        back = np.argsort(row_index_T)
        return [y_BTD[:, back], dx_BTD[:, back], *jax.tree.leaves(nnx.to_pure_dict(d_params))]

    expected = result_and_gradients(np.arange(T))
    with jax.set_mesh(mesh_of(**cut)):
        found = result_and_gradients(zigzag_order(T, cut["context"]))
    # Sums of 64 tokens in float32, added up in another order.
    assert_close(found, [np.asarray(x, np.float64) for x in expected], 1e-5)


def num_pairs(row_index_T, num_parts, blocks_of_part):
    """Returns how many pairs of blocks each device computes at each hop, [device, hop]."""
    places = np.split(row_index_T, num_parts)
    blocks = [np.split(part, blocks_of_part) for part in places]
    rule = Mask(kind="causal")
    return np.array(
        [
            [
                sum(
                    bool(any_allowed(rule, jnp.asarray(queries), jnp.asarray(keys)))
                    for queries, keys in itertools.product(
                        blocks[device], blocks[(device - hop) % num_parts]
                    )
                )
                for hop in range(num_parts)
            ]
            for device in range(num_parts)
        ]
    )


@pytest.mark.parametrize("num_parts", [2, 4, 8])
def test_in_zigzag_order_every_device_computes_equally_many_pairs_at_each_hop(num_parts):
    counted = num_pairs(zigzag_order(T, num_parts), num_parts, blocks_of_part=2)
    np.testing.assert_array_equal(counted, [[3] + [2] * (num_parts - 1)] * num_parts)


def test_in_the_order_of_the_row_the_last_device_computes_most():
    counted = num_pairs(np.arange(T), 4, blocks_of_part=2)
    np.testing.assert_array_equal(counted.sum(axis=1), [3, 7, 11, 15])


@pytest.mark.parametrize("kind", ["causal", "full"])
@pytest.mark.parametrize("window", [None, 1, 2, 9, 10])
def test_pairs_of_chunks_are_left_out_exactly_where_no_query_sees_a_key(kind, window):
    rule = Mask(kind=kind, window=window)
    chunks = np.split(np.arange(T), 8)
    for queries_T, keys_S in itertools.product(chunks, chunks):
        allowed = rule.between(jnp.asarray(queries_T), jnp.asarray(keys_S), None, None)
        assert bool(any_allowed(rule, jnp.asarray(queries_T), jnp.asarray(keys_S))) == np.any(
            allowed
        )
