"""Qwen3 at its published sizes, dense and with experts; rows of 4096 tokens, 20 a parameter.

Source: Qwen team 2025, Qwen3 technical report, arXiv:2505.09388, tables 1 and 2.
"""

from dataclasses import replace

from configs.model import ModelConfig
from configs.presets.pretraining import pretrain
from configs.run import RunConfig


def qwen3_0_6b() -> RunConfig:
    """Qwen3 0.6B at its published shape: 596,049,920 parameters.

    12 B tokens, 4.3e+19 FLOP.
    """
    model = _qwen3(num_layers=28, embed_dim=1024, num_heads=16, mlp_dim=3072, tied_embeddings=True)
    return pretrain(model, sequence_len=4096, batch_size=256, num_steps=11_369, peak_lr=0.0005)


def qwen3_1_7b() -> RunConfig:
    """Qwen3 1.7B at its published shape: 1,720,574,976 parameters.

    34 B tokens, 3.6e+20 FLOP.
    """
    model = _qwen3(num_layers=28, embed_dim=2048, num_heads=16, mlp_dim=6144, tied_embeddings=True)
    return pretrain(model, sequence_len=4096, batch_size=512, num_steps=16_409, peak_lr=0.0004)


def qwen3_4b() -> RunConfig:
    """Qwen3 4B at its published shape: 4,022,468,096 parameters.

    80 B tokens, 1.9e+21 FLOP.
    """
    model = _qwen3(num_layers=36, embed_dim=2560, num_heads=32, mlp_dim=9728, tied_embeddings=True)
    return pretrain(model, sequence_len=4096, batch_size=512, num_steps=38_361, peak_lr=0.0003)


def qwen3_8b() -> RunConfig:
    """Qwen3 8B at its published shape: 8,190,735,360 parameters.

    164 B tokens, 8.1e+21 FLOP.
    """
    model = _qwen3(num_layers=36, embed_dim=4096, num_heads=32, mlp_dim=12_288)
    return pretrain(model, sequence_len=4096, batch_size=1024, num_steps=39_056, peak_lr=0.0003)


def qwen3_14b() -> RunConfig:
    """Qwen3 14B at its published shape: 14,768,307,200 parameters.

    295 B tokens, 2.6e+22 FLOP.
    """
    model = _qwen3(num_layers=40, embed_dim=5120, num_heads=40, mlp_dim=17_408)
    return pretrain(model, sequence_len=4096, batch_size=1024, num_steps=70_421, peak_lr=0.0002)


def qwen3_32b() -> RunConfig:
    """Qwen3 32B at its published shape: 32,762,123,264 parameters.

    655 B tokens, 1.3e+23 FLOP.
    """
    model = _qwen3(num_layers=64, embed_dim=5120, num_heads=64, mlp_dim=25_600)
    return pretrain(model, sequence_len=4096, batch_size=2048, num_steps=78_111, peak_lr=0.00015)


def qwen3_30b_a3b() -> RunConfig:
    """Qwen3 30B-A3B at its published shape: 30,532,122,624 parameters, 3.3 B of them for a token.

    Eight of 128 experts compute a token. 67 B tokens are 20 for each of those: 1.3e21 FLOP.
    """
    model = replace(
        _qwen3(num_layers=48, embed_dim=2048, num_heads=32, mlp_dim=6144),
        num_kv_heads=4,
        num_experts=128,
        num_active_experts=8,
        expert_dim=768,
    )
    return pretrain(model, sequence_len=4096, batch_size=1024, num_steps=15_974, peak_lr=0.0003)


def _qwen3(
    *, num_layers: int, embed_dim: int, num_heads: int, mlp_dim: int, tied_embeddings: bool = False
) -> ModelConfig:
    return ModelConfig(
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_kv_heads=8,
        head_dim=128,
        mlp_dim=mlp_dim,
        vocab_size=151_936,
        rope_theta=1e6,
        qk_norm=True,
        tied_embeddings=tied_embeddings,
        remat="full",
    )
