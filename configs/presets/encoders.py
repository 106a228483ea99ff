"""Encoders and encoder-decoders at their published sizes: BERT, ModernBERT, T5, the Transformer.

Letters as in `decoders`. Source: Devlin et al. 2018, BERT, arXiv:1810.04805, section 3; Warner et
al. 2024, ModernBERT, arXiv:2412.13663, table 4; Raffel et al. 2019, T5, arXiv:1910.10683; Shazeer
2020, arXiv:2002.05202 (v1.1); Vaswani et al. 2017, arXiv:1706.03762, table 3.
"""

from typing import Literal

from configs.model import ModelConfig
from configs.presets.preset import Preset, published


def bert(L: int, D: int, N: int, vocab_size: int | Literal["tokenizer"]) -> ModelConfig:
    """Returns a BERT of some size, with its two heads."""
    return ModelConfig(
        architecture="encoder",
        num_layers=L,
        embed_dim=D,
        num_heads=N,
        num_kv_heads=N,
        head_dim=D // N,
        mlp_dim=4 * D,
        vocab_size=vocab_size,
        norm="layer",
        norm_placement="post",
        norm_epsilon=1e-12,
        position="learned",
        num_positions=512,
        num_token_types=2,
        embed_norm=True,
        mlp="gelu",
        bias=True,
        head="mlm_nsp",
        dropout=0.1,
        attention_dropout=0.1,
    )


def _bert(L: int, D: int, N: int, description: str) -> Preset:
    return published(
        description,
        bert(L, D, N, vocab_size=30_522),
        sequence_len=512,
        batch_size=256,
        num_steps=1_000_000,
        peak_lr=1e-4,
        objective="masked_pairs",
        special_tokens=("masked",),
    )


def _modernbert(
    L: int, D: int, N: int, F: int, B: int, steps: int, lr: float, description: str
) -> Preset:
    model = ModelConfig(
        architecture="encoder",
        num_layers=L,
        embed_dim=D,
        num_heads=N,
        num_kv_heads=N,
        head_dim=D // N,
        mlp_dim=F,
        vocab_size=50_368,
        norm="layer",
        norm_epsilon=1e-5,
        first_norm=False,
        embed_norm=True,
        mlp="geglu",
        attention_window=65,
        attention_pattern=("global", "local", "local"),
        rope_theta=160_000.0,
        rope_theta_local=10_000.0,
        head="mlm",
    )
    return published(
        description,
        model,
        sequence_len=1024,
        batch_size=B,
        num_steps=steps,
        peak_lr=lr,
        objective="masked",
        mask_rate=0.3,
        special_tokens=("masked",),
    )


ENCODERS = {
    # L, D, N
    "bert_base": _bert(
        *(12, 768, 12),
        "BERT base at its published shape, both heads included: 110,106,428 parameters.\n\n"
        "A million steps of 256 rows of 512 tokens, as the paper: 131 B tokens, 7e19 FLOP. Give "
        "data.tokenizer the tokenizer.json of a WordPiece model, or set model.vocab_size.",
    ),
    "bert_large": _bert(
        *(24, 1024, 16),
        "BERT large at its published shape, both heads included: 336,226,108 parameters.\n\n"
        "As bert_base: 131 B tokens, 2.4e20 FLOP.",
    ),
    # L, D, N, F, B, steps, peak learning rate
    "modernbert_base": _modernbert(
        *(22, 768, 12, 1152, 4608, 364_000, 8e-4),
        "ModernBERT base at its published shape: 149,655,232 parameters.\n\n"
        "Rotary, two local layers for each global one, GeGLU. 1.7 T tokens as the paper: 1.3e21 "
        "FLOP.",
    ),
    "modernbert_large": _modernbert(
        *(28, 1024, 16, 2624, 4928, 340_000, 5e-4),
        "ModernBERT large at its published shape: 395,881,664 parameters.\n\n"
        "As modernbert_base: 1.7 T tokens, 4e21 FLOP.",
    ),
}


def t5(L: int, D: int, N: int, F: int, vocab_size: int | Literal["tokenizer"]) -> ModelConfig:
    """Returns a T5 v1.1 of some size, with as many layers in the encoder as in the decoder."""
    return ModelConfig(
        architecture="encoder_decoder",
        num_encoder_layers=L,
        num_layers=L,
        embed_dim=D,
        num_heads=N,
        num_kv_heads=N,
        head_dim=64,
        mlp_dim=F,
        vocab_size=vocab_size,
        position="relative",
        attention_scale=1.0,
        mlp="geglu_tanh",
        tied_embeddings=False,
        remat="full" if D >= 2048 else "none",
    )


def _t5(L: int, D: int, N: int, F: int, lr: float, name: str, num_parameters: int) -> Preset:
    return published(
        f"T5 v1.1 {name} at its published shape: {num_parameters:,} parameters.\n\n"
        "As the paper 2^35 tokens, spans of 3 tokens hidden, 15 % of all.",
        t5(L, D, N, F, vocab_size=32_128),
        sequence_len=512,
        batch_size=128,
        num_steps=524_288,
        peak_lr=lr,
        objective="span",
        target_len=128,
        special_tokens=("span",),
    )


ENCODER_DECODERS = {
    # L, D, N, F, peak learning rate, name, parameters
    "t5_small": _t5(8, 512, 6, 1024, 1e-3, "small", 76_961_152),
    "t5_base": _t5(12, 768, 12, 2048, 1e-3, "base", 247_577_856),
    "t5_large": _t5(24, 1024, 16, 2816, 5e-4, "large", 783_150_080),
    "t5_xl": _t5(24, 2048, 32, 5120, 5e-4, "XL", 2_849_757_184),
    "t5_xxl": _t5(24, 4096, 64, 10_240, 3e-4, "XXL", 11_135_332_352),
    "first_transformer": published(
        "The base model of the first Transformer, on beginnings of texts: 63.1 M parameters.\n\n"
        "Post-norm, sinusoids, one table of 37,000 tokens for both texts and the head; the paper "
        "gives 65 M for a vocabulary of about that size. 13 B tokens, 2.7e18 FLOP.",
        ModelConfig(
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
            head="bias",
            dropout=0.1,
        ),
        sequence_len=512,
        batch_size=128,
        num_steps=100_000,
        peak_lr=7e-4,
        objective="prefix",
        target_len=512,
    ),
}
