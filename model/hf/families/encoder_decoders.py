"""Encoders beside decoders: T5 v1.1, and Marian, whose shape is that of the first Transformer."""

from collections.abc import Iterator, Set
from typing import Any

from configs.check import require
from configs.model import ModelConfig
from model.hf.families.encoders import layer_norm, linear
from model.hf.family import UNGATED, Family, Said, kind_of, name_of, refuse
from model.hf.tensors import Part, Tensor, padded, same, transposed

_T5_KINDS = {"gated-gelu": "geglu_tanh", "gated-silu": "swiglu", "relu": "relu", "gelu": "gelu"}


def _read_t5(said: Said, names: Set[str]) -> dict[str, Any]:
    is_tied = "lm_head.weight" not in names
    if not names:
        is_tied = said.get("tie_word_embeddings", True)
    # The newest versions of transformers write that a head is tied whether it is or not.
    is_scaled = said.get("scale_decoder_outputs", said.get("tie_word_embeddings", True))
    require(
        not (is_tied and is_scaled),
        "config.json: tie_word_embeddings=True must be False, as in T5 v1.1: Tessera has no T5 "
        "whose head is its embedding, scaled",
    )
    return {
        "architecture": "encoder_decoder",
        "num_encoder_layers": said["num_layers"],
        "num_layers": said.get("num_decoder_layers") or said["num_layers"],
        "embed_dim": said["d_model"],
        "num_heads": said["num_heads"],
        "num_kv_heads": said["num_heads"],
        "head_dim": said["d_kv"],
        "mlp_dim": said["d_ff"],
        "vocab_size": said["vocab_size"],
        "norm_epsilon": said.get("layer_norm_epsilon", 1e-6),
        "position": "relative",
        "num_relative_buckets": said.get("relative_attention_num_buckets", 32),
        "max_relative_distance": said.get("relative_attention_max_distance", 128),
        "attention_scale": 1.0,
        "mlp": kind_of(said, "feed_forward_proj", _T5_KINDS),
        "tied_head": is_tied,
    }


def _write_t5(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_layers,
        "d_model": config.embed_dim,
        "num_heads": config.num_heads,
        "d_kv": config.head_dim,
        "d_ff": config.mlp_dim,
        "vocab_size": config.num_tokens,
        "layer_norm_epsilon": config.norm_epsilon,
        "relative_attention_num_buckets": config.num_relative_buckets,
        "relative_attention_max_distance": config.max_relative_distance,
        "feed_forward_proj": name_of(config.mlp, _T5_KINDS),
        "tie_word_embeddings": False,
    }


def _t5_tensors(config: ModelConfig) -> Iterator[Tensor]:
    V, P, D = config.num_tokens, config.num_padded_tokens, config.embed_dim
    yield padded("shared.weight", same("", Part("embedding"), (P, D), (P, D)), V, P)
    if not config.tied_head:
        yield padded("lm_head.weight", transposed("", Part("head"), (D, P)), V, P)
    shape = (config.num_relative_buckets, config.num_heads)
    for side, prefix in (("encoder", "encoder_"), ("decoder", "")):
        theirs = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield same(theirs, Part(f"{prefix}relative_bias"), shape, shape)
        yield same(f"{side}.final_layer_norm.weight", Part(f"{prefix}norm/scale"), (D,))
        yield from _t5_layers(config, side, f"{prefix}layers")


def _t5_layers(config: ModelConfig, side: str, stack: str) -> Iterator[Tensor]:
    D, F, N, H = config.embed_dim, config.mlp_dim, config.num_heads, config.head_dim
    is_decoder = side == "decoder"
    attentions = [("attention", "SelfAttention")]
    if is_decoder:
        attentions.append(("cross_attention", "EncDecAttention"))
    for i in range((config.num_layers if is_decoder else config.num_encoder_layers) or 0):
        block = f"{side}.block.{i}.layer"
        for place, (ours, theirs) in enumerate(attentions):
            for field in ("query", "key", "value"):
                part = Part(f"{stack}/{ours}/{field}", (i,))
                yield transposed(f"{block}.{place}.{theirs}.{field[0]}.weight", part, (D, N, H))
            out = Part(f"{stack}/{ours}/out", (i,))
            yield transposed(f"{block}.{place}.{theirs}.o.weight", out, (N, H, D), 2)
            norm = Part(f"{stack}/{ours}_norm/scale", (i,))
            yield same(f"{block}.{place}.layer_norm.weight", norm, (D,))
        dense = f"{block}.{len(attentions)}.DenseReluDense"
        gated = (("gate", "wi_0"), ("up", "wi_1"))
        for field, name in gated if config.is_gated else (("up", "wi"),):
            yield transposed(f"{dense}.{name}.weight", Part(f"{stack}/mlp/{field}", (i,)), (D, F))
        yield transposed(f"{dense}.wo.weight", Part(f"{stack}/mlp/down", (i,)), (F, D))
        norm = Part(f"{stack}/mlp_norm/scale", (i,))
        yield same(f"{block}.{len(attentions)}.layer_norm.weight", norm, (D,))


def _read_marian(said: Said, names: Set[str]) -> dict[str, Any]:
    del names
    refuse(said, share_encoder_decoder_embeddings=True, tie_word_embeddings=True)
    D, N = said["d_model"], said["decoder_attention_heads"]
    refuse(said, encoder_attention_heads=N, encoder_ffn_dim=said["decoder_ffn_dim"])
    return {
        "architecture": "encoder_decoder",
        "num_encoder_layers": said["encoder_layers"],
        "num_layers": said["decoder_layers"],
        "embed_dim": D,
        "num_heads": N,
        "num_kv_heads": N,
        "head_dim": D // N,
        "mlp_dim": said["decoder_ffn_dim"],
        "vocab_size": said["vocab_size"],
        "norm": "layer",
        "norm_place": "residual",
        "norm_epsilon": 1e-5,
        "position": "sinusoidal",
        "embed_scaled": said.get("scale_embedding", False),
        "mlp": kind_of(said, "activation_function", UNGATED),
        "bias": True,
        "head_bias": True,
    }


def _write_marian(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["MarianMTModel"],
        "model_type": "marian",
        "is_encoder_decoder": True,
        "encoder_layers": config.num_encoder_layers,
        "decoder_layers": config.num_layers,
        "d_model": config.embed_dim,
        "encoder_attention_heads": config.num_heads,
        "decoder_attention_heads": config.num_heads,
        "encoder_ffn_dim": config.mlp_dim,
        "decoder_ffn_dim": config.mlp_dim,
        "vocab_size": config.num_tokens,
        "decoder_vocab_size": config.num_tokens,
        "scale_embedding": config.embed_scaled,
        "activation_function": name_of(config.mlp, UNGATED),
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
    }


def _marian_tensors(config: ModelConfig) -> Iterator[Tensor]:
    V, P, D, F = config.num_tokens, config.num_padded_tokens, config.embed_dim, config.mlp_dim
    N, H = config.num_heads, config.head_dim
    yield padded("model.shared.weight", same("", Part("embedding"), (P, D), (P, D)), V, P)
    bias = same("", Part("head_bias"), (P,), (1, P))
    yield padded("final_logits_bias", bias, V, P, axis=1)
    for side, stack in (("encoder", "encoder_layers"), ("decoder", "layers")):
        is_decoder = side == "decoder"
        attentions = [("attention", "self_attn")]
        if is_decoder:
            attentions.append(("cross_attention", "encoder_attn"))
        for i in range((config.num_layers if is_decoder else config.num_encoder_layers) or 0):
            layer, index = f"model.{side}.layers.{i}", (i,)
            for ours, theirs in attentions:
                for field in ("query", "key", "value"):
                    name = f"{layer}.{theirs}.{field[0]}_proj"
                    yield from linear(f"{stack}/{ours}/{field}", name, index, (D, N, H))
                name = f"{layer}.{theirs}.out_proj"
                yield from linear(f"{stack}/{ours}/out", name, index, (N, H, D), 2)
                name = f"{layer}.{theirs}_layer_norm"
                yield from layer_norm(f"{stack}/{ours}_out_norm", name, index, D)
            yield from linear(f"{stack}/mlp/up", f"{layer}.fc1", index, (D, F))
            yield from linear(f"{stack}/mlp/down", f"{layer}.fc2", index, (F, D))
            yield from layer_norm(f"{stack}/mlp_out_norm", f"{layer}.final_layer_norm", index, D)


T5 = Family(
    model_type="t5",
    read=_read_t5,
    write=_write_t5,
    tensors=_t5_tensors,
    copies={
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
        "lm_head.weight": "shared.weight",
    },
)
MARIAN = Family(
    model_type="marian",
    read=_read_marian,
    write=_write_marian,
    tensors=_marian_tensors,
    ignored=("embed_positions.weight",),
    copies={
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
        "lm_head.weight": "model.shared.weight",
    },
)
