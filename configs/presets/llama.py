"""Llama 3 and Mistral at their published sizes; rows of 8192 tokens.

Source: Llama team 2024, The Llama 3 herd of models, arXiv:2407.21783, table 3; Jiang et al. 2023,
Mistral 7B, arXiv:2310.06825, table 1.
"""

from dataclasses import replace

from configs.model import ModelConfig
from configs.presets.pretraining import pretrain
from configs.run import RunConfig


def llama_1b() -> RunConfig:
    """Llama 3.2's 1B shape, with its rotary scaling: 1,235,814,400 parameters.

    0.97 B of them are in layers; 0.5 M tokens a step, 25 B tokens: Chinchilla's 20 a parameter.
    About 2 days on 8 H100.
    """
    model = replace(
        _llama3(num_layers=16, embed_dim=2048, num_heads=32, mlp_dim=8192),
        tied_embeddings=True,
        rope_scaling="llama3",
        rope_scaling_factor=32.0,
        rope_original_len=8192,
    )
    return pretrain(model, sequence_len=8192, batch_size=64, num_steps=47_684, peak_lr=3e-4)


def llama3_8b() -> RunConfig:
    """Llama 3 8B at its published shape: 8,030,261,248 parameters, context 8192.

    160 B tokens are 20 a parameter: 7.7e21 FLOP, about 10 days on 64 v5p chips at half their peak.
    """
    model = _llama3(num_layers=32, embed_dim=4096, num_heads=32, mlp_dim=14_336)
    return pretrain(model, sequence_len=8192, batch_size=512, num_steps=38_147, peak_lr=3e-4)


def llama3_70b() -> RunConfig:
    """Llama 3 70B at its published shape: 70,553,706,496 parameters, context 8192.

    1.4 T tokens are 20 a parameter: 6e23 FLOP, about 50 days on 1024 v5p chips at half their peak.
    """
    model = _llama3(num_layers=80, embed_dim=8192, num_heads=64, mlp_dim=28_672)
    return pretrain(model, sequence_len=8192, batch_size=1024, num_steps=166_893, peak_lr=1.5e-4)


def llama3_405b() -> RunConfig:
    """Llama 3.1 405B at its published shape: 405,853,388,800 parameters, before its long contexts.

    8.1 T tokens are 20 a parameter: 2e25 FLOP, about 100 days on 16,384 v5p chips at half their
    peak.
    """
    model = _llama3(num_layers=126, embed_dim=16_384, num_heads=128, mlp_dim=53_248)
    return pretrain(model, sequence_len=8192, batch_size=2048, num_steps=482_797, peak_lr=8e-5)


def mistral_7b() -> RunConfig:
    """Mistral 7B at its published shape: 7,241,732,096 parameters, a window of 4096 tokens.

    145 B tokens are 20 a parameter: 6.3e21 FLOP, about 8 days on 64 v5p chips at half their peak.
    """
    model = replace(
        _llama3(num_layers=32, embed_dim=4096, num_heads=32, mlp_dim=14_336),
        vocab_size=32_000,
        rope_theta=10_000.0,
        attention_window=4096,
    )
    return pretrain(model, sequence_len=8192, batch_size=512, num_steps=34_571, peak_lr=3e-4)


def _llama3(*, num_layers: int, embed_dim: int, num_heads: int, mlp_dim: int) -> ModelConfig:
    return ModelConfig(
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_kv_heads=8,
        head_dim=embed_dim // num_heads,
        mlp_dim=mlp_dim,
        vocab_size=128_256,
        norm_epsilon=1e-5,
        rope_theta=500_000.0,
        tied_embeddings=False,
        remat="full",
    )
