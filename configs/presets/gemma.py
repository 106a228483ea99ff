"""Gemma 3, its text models, at their published sizes; rows of 8192 tokens, 20 a parameter.

Source: Gemma team 2025, Gemma 3 technical report, arXiv:2503.19786, tables 1 and 2.
"""

from configs.model import ModelConfig
from configs.presets.pretraining import pretrain
from configs.run import RunConfig


def gemma3_1b() -> RunConfig:
    """Gemma 3 1B at its published shape: 999,885,952 parameters.

    20 B tokens, 1.2e+20 FLOP.
    """
    model = _gemma3(
        num_layers=26,
        embed_dim=1152,
        num_heads=4,
        num_kv_heads=1,
        head_dim=256,
        mlp_dim=6912,
        vocab_size=262_144,
        attention_window=512,
        query_scalar=256,
        rope_scaling_factor=1.0,
    )
    return pretrain(model, sequence_len=8192, batch_size=128, num_steps=19_071, peak_lr=0.0004)


def gemma3_4b() -> RunConfig:
    """Gemma 3 4B at its published shape: 3,880,263,168 parameters.

    78 B tokens, 1.8e+21 FLOP.
    """
    model = _gemma3(
        num_layers=34,
        embed_dim=2560,
        num_heads=8,
        num_kv_heads=4,
        head_dim=256,
        mlp_dim=10_240,
        vocab_size=262_208,
        attention_window=1024,
        query_scalar=256,
        rope_scaling_factor=8.0,
    )
    return pretrain(model, sequence_len=8192, batch_size=256, num_steps=37_005, peak_lr=0.0003)


def gemma3_12b() -> RunConfig:
    """Gemma 3 12B at its published shape: 11,766,034,176 parameters.

    235 B tokens, 1.7e+22 FLOP.
    """
    model = _gemma3(
        num_layers=48,
        embed_dim=3840,
        num_heads=16,
        num_kv_heads=8,
        head_dim=256,
        mlp_dim=15_360,
        vocab_size=262_208,
        attention_window=1024,
        query_scalar=256,
        rope_scaling_factor=8.0,
    )
    return pretrain(model, sequence_len=8192, batch_size=512, num_steps=56_105, peak_lr=0.0002)


def gemma3_27b() -> RunConfig:
    """Gemma 3 27B at its published shape: 27,009,346,304 parameters.

    540 B tokens, 8.8e+22 FLOP.
    """
    model = _gemma3(
        num_layers=62,
        embed_dim=5376,
        num_heads=32,
        num_kv_heads=16,
        head_dim=128,
        mlp_dim=21_504,
        vocab_size=262_208,
        attention_window=1024,
        query_scalar=168,
        rope_scaling_factor=8.0,
    )
    return pretrain(model, sequence_len=8192, batch_size=1024, num_steps=64_395, peak_lr=0.00015)


def _gemma3(
    *,
    num_layers: int,
    embed_dim: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    mlp_dim: int,
    vocab_size: int,
    attention_window: int,
    query_scalar: int,
    rope_scaling_factor: float,
) -> ModelConfig:
    return ModelConfig(
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        mlp_dim=mlp_dim,
        vocab_size=vocab_size,
        norm_placement="sandwich",
        norm_zero_centered=True,
        embed_scaled=True,
        mlp="geglu_tanh",
        qk_norm=True,
        attention_window=attention_window,
        attention_pattern=("local",) * 5 + ("global",),
        attention_scale=query_scalar**-0.5,
        rope_theta=1e6,
        rope_theta_local=10_000.0,
        rope_scaling="none" if rope_scaling_factor == 1.0 else "linear",
        rope_scaling_factor=rope_scaling_factor,
        remat="full",
    )
