import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from small_model import VARIANTS, random_params, small_model

from configs.counts import count
from configs.model import ModelConfig
from configs.presets import (
    PRESETS,
    gpt2_124m,
    llama3_8b,
    llama3_70b,
    llama_1b,
    mixtral_8x7b,
)
from model.inputs import Inputs
from train.state import shape_of


def preset_model(name: str) -> ModelConfig:
    model = PRESETS[name]().model
    if model.vocab_size == "tokenizer":
        return dataclasses.replace(model, vocab_size=1000)
    return model


MODELS = {
    **VARIANTS,
    "bias_qk_norm_untied": small_model(bias=True, qk_norm=True, tied_head=False),
    **{name: preset_model(name) for name in PRESETS},
}


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_the_total_is_that_of_the_real_parameters_without_padding(config):
    leaves = jax.tree.leaves(nnx.to_pure_dict(shape_of(config).state))
    num_padding = (config.num_padded_tokens - config.num_tokens) * config.embed_dim
    num_tables = 1 if config.tied_head else 2
    real = sum(math.prod(leaf.shape) for leaf in leaves) - num_tables * num_padding
    assert count(config, 1024).total == real


@pytest.mark.parametrize(
    ("preset", "total"),
    [
        (gpt2_124m, 124_439_808),
        (llama_1b, 1_235_814_400),
        (llama3_8b, 8_030_261_248),
        (llama3_70b, 70_553_706_496),
        (mixtral_8x7b, 46_702_792_704),
    ],
)
def test_published_models_have_their_published_totals(preset, total):
    assert count(preset().model, 1024).total == total


def test_flops_are_those_counted_by_hand():
    # D 16, N 4, K 2, H 8, F 32, V 100, L 2, T 12; a multiply and an add are two FLOPs, the
    # backward pass costs twice the forward. Per token and layer, forward:
    projections = 2 * (16 * 32 + 2 * 16 * 16 + 32 * 16)  # query, key and value, out
    mlp = 2 * (3 * 16 * 32)  # gate, up, down
    scores_and_values = 2 * (4 * 8 * 12) + 2 * (4 * 12 * 8)
    layer, head = projections + mlp, 2 * (16 * 100)
    counts = count(small_model(), 12)
    assert counts.flops_full == 3 * (2 * (layer + scores_and_values) + head) == 55_680
    assert counts.flops_causal == 3 * (2 * (layer + scores_and_values // 2) + head) == 51_072
    assert counts.matmul == 7744


def test_of_the_experts_those_that_compute_a_token_and_the_router_cost_flops():
    dense = count(small_model(), 12)
    moe = count(small_model(num_experts=4, num_active_experts=2), 12)
    mlp, router = 3 * 16 * 32, 16 * 4  # gate, up, down; D 16, F 32, E 4, two layers
    assert moe.matmul == dense.matmul + 2 * (mlp + router)
    assert moe.total == dense.total + 2 * (3 * mlp + router)
    assert moe.flops_full == dense.flops_full + 6 * 2 * (mlp + router)


@pytest.mark.parametrize("window", [1, 4, 12, 20])
def test_a_window_costs_the_keys_in_it(window):
    T, L, q_dim = 12, 2, 32
    plain, windowed = count(small_model(), T), count(small_model(attention_window=window), T)
    # A query and a key meet in two multiply-adds a channel, backward costs twice forward. The
    # causal count is that of the continuous triangle: half a key less a query than the true one.
    num_keys = [min(t + 1, window) for t in range(T)]
    assert windowed.flops_full - 6 * windowed.matmul == 12 * L * q_dim * min(window, T)
    causal = windowed.flops_causal - 6 * windowed.matmul
    mean = sum(num_keys) / T
    assert causal == pytest.approx(12 * L * q_dim * mean, abs=12 * L * q_dim * 0.5)
    assert (windowed == plain) == (window >= T)


@pytest.mark.parametrize("mlp", ["swiglu", "relu2"])
@pytest.mark.parametrize("tied_head", [True, False])
def test_flops_are_those_that_xla_counts(mlp, tied_head):
    config = small_model(
        embed_dim=128,
        mlp_dim=512,
        num_heads=4,
        head_dim=64,
        mlp=mlp,
        vocab_size=1024,
        tied_head=tied_head,
        num_unrolled_layers=2,
    )
    params, tokens_BT = random_params(config), jnp.ones((2, 128), jnp.int32)

    def logits(params):
        decoder = shape_of(config).merge(params)
        return decoder.logits(decoder(Inputs(tokens_BT, tokens_BT, tokens_BT)))

    analysis = jax.jit(logits).lower(params).cost_analysis()
    assert analysis is not None
    forward = count(config, 128).flops_full / 3 * tokens_BT.size
    # XLA also counts norms, softmax, activations and residuals: tens of FLOPs for each element
    # of an array, against 256 and more for each that comes out of a matmul of this width.
    assert forward < analysis["flops"] < 1.04 * forward
