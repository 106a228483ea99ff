"""Encoders beside decoders at their published sizes: T5 v1.1 and the first Transformer.

Source: Raffel et al. 2019, T5, arXiv:1910.10683; Shazeer 2020, arXiv:2002.05202 (v1.1); Vaswani et
al. 2017, arXiv:1706.03762, table 3.
"""

from typing import Literal

from configs.model import ModelConfig
from configs.presets.pretraining import pretrain
from configs.run import RunConfig


def t5_small() -> RunConfig:
    """T5 v1.1 small at its published shape: 76,961,152 parameters.

    As the paper 2^35 tokens, spans of 3 tokens hidden, 15 % of all.
    """
    return _t5(num_layers=8, embed_dim=512, num_heads=6, mlp_dim=1024, peak_lr=0.001)


def t5_base() -> RunConfig:
    """T5 v1.1 base at its published shape: 247,577,856 parameters.

    As the paper 2^35 tokens, spans of 3 tokens hidden, 15 % of all.
    """
    return _t5(num_layers=12, embed_dim=768, num_heads=12, mlp_dim=2048, peak_lr=0.001)


def t5_large() -> RunConfig:
    """T5 v1.1 large at its published shape: 783,150,080 parameters.

    As the paper 2^35 tokens, spans of 3 tokens hidden, 15 % of all.
    """
    return _t5(num_layers=24, embed_dim=1024, num_heads=16, mlp_dim=2816, peak_lr=0.0005)


def t5_xl() -> RunConfig:
    """T5 v1.1 XL at its published shape: 2,849,757,184 parameters.

    As the paper 2^35 tokens, spans of 3 tokens hidden, 15 % of all.
    """
    return _t5(num_layers=24, embed_dim=2048, num_heads=32, mlp_dim=5120, peak_lr=0.0005)


def t5_xxl() -> RunConfig:
    """T5 v1.1 XXL at its published shape: 11,135,332,352 parameters.

    As the paper 2^35 tokens, spans of 3 tokens hidden, 15 % of all.
    """
    return _t5(num_layers=24, embed_dim=4096, num_heads=64, mlp_dim=10_240, peak_lr=0.0003)


def first_transformer() -> RunConfig:
    """The base model of the first Transformer, on beginnings of texts: 63.1 M parameters.

    Post-norm, sinusoids, one table of 37,000 tokens for both texts and the head; the paper gives 65
    M for a vocabulary of about that size. 13 B tokens, 2.7e18 FLOP.
    """
    model = ModelConfig(
        architecture="encoder_decoder",
        num_encoder_layers=6,
        num_layers=6,
        embed_dim=512,
        num_heads=8,
        num_kv_heads=8,
        head_dim=64,
        mlp_dim=2048,
        vocab_size=37_000,
        norm="layer",
        norm_placement="post",
        norm_epsilon=1e-5,
        position="sinusoidal",
        embed_scaled=True,
        mlp="relu",
        bias=True,
        head_bias=True,
        dropout=0.1,
    )
    return pretrain(
        model,
        sequence_len=512,
        batch_size=128,
        num_steps=100_000,
        peak_lr=7e-4,
        objective="prefix",
        target_len=512,
    )


def t5(
    *,
    num_layers: int,
    embed_dim: int,
    num_heads: int,
    mlp_dim: int,
    vocab_size: int | Literal["tokenizer"],
) -> ModelConfig:
    """Returns a T5 v1.1 of some size, with as many layers in the encoder as in the decoder."""
    return ModelConfig(
        architecture="encoder_decoder",
        num_encoder_layers=num_layers,
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=64,
        mlp_dim=mlp_dim,
        vocab_size=vocab_size,
        position="relative",
        attention_scale=1.0,
        mlp="geglu_tanh",
        tied_embeddings=False,
        remat="full" if embed_dim >= 2048 else "none",
    )


def _t5(
    *, num_layers: int, embed_dim: int, num_heads: int, mlp_dim: int, peak_lr: float
) -> RunConfig:
    model = t5(
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=num_heads,
        mlp_dim=mlp_dim,
        vocab_size=32_128,
    )
    return pretrain(
        model,
        sequence_len=512,
        batch_size=128,
        num_steps=524_288,
        peak_lr=peak_lr,
        objective="span",
        target_len=128,
        special_tokens=("span",),
    )
