"""Encoders at their published sizes: BERT and ModernBERT.

Source: Devlin et al. 2018, BERT, arXiv:1810.04805, section 3; Warner et al. 2024, ModernBERT,
arXiv:2412.13663, table 4.
"""

from typing import Literal

from configs.model import ModelConfig
from configs.presets.pretraining import pretrain
from configs.run import RunConfig


def bert_base() -> RunConfig:
    """BERT base at its published shape, both heads included: 110,106,428 parameters.

    A million steps of 256 rows of 512 tokens, as the paper: 131 B tokens, 7e19 FLOP. Give
    data.tokenizer the tokenizer.json of a WordPiece model, or set model.vocab_size.
    """
    model = bert(num_layers=12, embed_dim=768, num_heads=12, vocab_size=30_522)
    return _masked(model, peak_lr=1e-4)


def bert_large() -> RunConfig:
    """BERT large at its published shape, both heads included: 336,226,108 parameters.

    As bert_base: 131 B tokens, 2.4e20 FLOP.
    """
    model = bert(num_layers=24, embed_dim=1024, num_heads=16, vocab_size=30_522)
    return _masked(model, peak_lr=1e-4)


def modernbert_base() -> RunConfig:
    """ModernBERT base at its published shape: 149,655,232 parameters.

    Rotary, two local layers for each global one, GeGLU. 1.7 T tokens as the paper: 1.3e21 FLOP.
    """
    model = _modernbert(num_layers=22, embed_dim=768, num_heads=12, mlp_dim=1152)
    return _hidden(model, batch_size=4608, num_steps=364_000, peak_lr=8e-4)


def modernbert_large() -> RunConfig:
    """ModernBERT large at its published shape: 395,881,664 parameters.

    As modernbert_base: 1.7 T tokens, 4e21 FLOP.
    """
    model = _modernbert(num_layers=28, embed_dim=1024, num_heads=16, mlp_dim=2624)
    return _hidden(model, batch_size=4928, num_steps=340_000, peak_lr=5e-4)


def bert(
    *, num_layers: int, embed_dim: int, num_heads: int, vocab_size: int | Literal["tokenizer"]
) -> ModelConfig:
    """Returns a BERT of some size, with its two heads."""
    return ModelConfig(
        architecture="encoder",
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=embed_dim // num_heads,
        mlp_dim=4 * embed_dim,
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
        head_transform=True,
        head_bias=True,
        pooler=True,
        next_sentence=True,
        dropout=0.1,
        attention_dropout=0.1,
    )


def _masked(model: ModelConfig, *, peak_lr: float) -> RunConfig:
    return pretrain(
        model,
        sequence_len=512,
        batch_size=256,
        num_steps=1_000_000,
        peak_lr=peak_lr,
        objective="masked_pairs",
        special_tokens=("masked",),
    )


def _hidden(model: ModelConfig, *, batch_size: int, num_steps: int, peak_lr: float) -> RunConfig:
    return pretrain(
        model,
        sequence_len=1024,
        batch_size=batch_size,
        num_steps=num_steps,
        peak_lr=peak_lr,
        objective="masked",
        mask_rate=0.3,
        special_tokens=("masked",),
    )


def _modernbert(*, num_layers: int, embed_dim: int, num_heads: int, mlp_dim: int) -> ModelConfig:
    return ModelConfig(
        architecture="encoder",
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=embed_dim // num_heads,
        mlp_dim=mlp_dim,
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
        head_transform=True,
        head_bias=True,
    )
