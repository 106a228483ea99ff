import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from small_families import KINDS
from small_model import VARIANTS, random_params, small_model

from configs.counts import count
from configs.model import ModelConfig
from configs.presets.table import PRESETS
from launch.train_settings import parse
from model.inputs import Inputs
from train.state import shape_of


def preset_model(name: str) -> ModelConfig:
    model = PRESETS[name]().model
    if model.vocab_size == "tokenizer":
        return dataclasses.replace(model, vocab_size=1000)
    return model


MODELS = {
    **VARIANTS,
    **{name: kind.model for name, kind in KINDS.items()},
    "bias_qk_norm_untied": small_model(bias=True, qk_norm=True, tied_embeddings=False),
    **{name: preset_model(name) for name in PRESETS},
}


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_the_total_is_that_of_the_real_parameters_without_padding(config):
    leaves = jax.tree.leaves(nnx.to_pure_dict(shape_of(config).state))
    width = config.embed_dim * (1 if config.tied_embeddings else 2) + config.head_bias
    num_padding = (config.num_padded_tokens - config.num_tokens) * width
    real = sum(math.prod(leaf.shape) for leaf in leaves) - num_padding
    assert count(config, 1024).total == real


# Published, or of the class of transformers 5.24 with the published settings, made on the device
# "meta": sum(p.numel() for p in model.parameters()), for T5 with the head that v1.1 has, and for
# DeepSeek-V3 with the biases of its routers, which are buffers there.
PUBLISHED = {
    "gpt2_124m": 124_439_808,
    "gpt2_355m": 354_823_168,
    "gpt2_774m": 774_030_080,
    "gpt2_1558m": 1_557_611_200,
    "llama_1b": 1_235_814_400,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama3_405b": 405_853_388_800,
    "mistral_7b": 7_241_732_096,
    "qwen3_0_6b": 596_049_920,
    "qwen3_1_7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
    "qwen3_30b_a3b": 30_532_122_624,
    "gemma3_1b": 999_885_952,
    "gemma3_4b": 3_880_263_168,
    "gemma3_12b": 11_766_034_176,
    "gemma3_27b": 27_009_346_304,
    "mixtral_8x7b": 46_702_792_704,
    "deepseek_v3": 671_026_419_200,
    "bert_base": 110_106_428,
    "bert_large": 336_226_108,
    "modernbert_base": 149_655_232,
    "modernbert_large": 395_881_664,
    "t5_small": 76_961_152,
    "t5_base": 247_577_856,
    "t5_large": 783_150_080,
    "t5_xl": 2_849_757_184,
    "t5_xxl": 11_135_332_352,
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_models_have_their_published_totals(preset):
    assert count(PRESETS[preset]().model, 1024).total == PUBLISHED[preset]
    assert f"{PUBLISHED[preset]:,} parameters" in PRESETS[preset].description


def test_every_preset_at_its_published_shape_has_its_total_here():
    said = {name for name, preset in PRESETS.items() if "published shape" in preset.description}
    assert len(said) > 20
    assert said <= PUBLISHED.keys()


def test_deepseek_computes_37_billion_parameters_for_a_token():
    # "671B total parameters with 37B activated": the input embedding is not counted here.
    assert count(PRESETS["deepseek_v3"]().model, 4096).matmul == pytest.approx(36.6e9, rel=0.01)


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
@pytest.mark.parametrize("tied_embeddings", [True, False])
def test_flops_are_those_that_xla_counts(mlp, tied_embeddings):
    config = small_model(
        embed_dim=128,
        mlp_dim=512,
        num_heads=4,
        head_dim=64,
        mlp=mlp,
        vocab_size=1024,
        tied_embeddings=tied_embeddings,
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


@pytest.mark.parametrize("num_layers", [1, 3, 6])
def test_the_layers_of_any_preset_can_be_others(num_layers):
    """A setting of speed forbids none of architecture."""
    for name in ("quickstart", "quickstart_lstm", "shakespeare_cpu"):
        _, parsed = parse([name, "--model.num_layers", str(num_layers)])
        assert parsed.config.model.num_layers == num_layers
