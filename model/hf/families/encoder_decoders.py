"""Encoder-decoders: T5 v1.1, and Marian, which has the layers of the first Transformer."""

from collections.abc import Iterator, Set
from typing import Any

from configs.model import ModelConfig
from configs.position import MAX_RELATIVE_DISTANCE, NUM_RELATIVE_BUCKETS
from configs.require import require
from model.hf.families.encoders import layer_norm, linear
from model.hf.family import UNGATED_MLPS, Family, HFConfig, read_mlp, require_values, write_mlp
from model.hf.tensors import HFTensor, ParamSlice, padded, reshaped, transposed

_RELATIVE = {
    "relative_attention_num_buckets": NUM_RELATIVE_BUCKETS,
    "relative_attention_max_distance": MAX_RELATIVE_DISTANCE,
}
_T5_MLPS = {"gated-gelu": "geglu_tanh", "gated-silu": "swiglu", "relu": "relu", "gelu": "gelu"}


def _read_t5(hf_config: HFConfig, names: Set[str]) -> dict[str, Any]:
    require_values(hf_config, **_RELATIVE)
    is_tied = "lm_head.weight" not in names
    if not names:
        is_tied = hf_config.get("tie_word_embeddings", True)
    # The newest versions of transformers write tie_word_embeddings=True for untied heads too.
    is_scaled = hf_config.get("scale_decoder_outputs", hf_config.get("tie_word_embeddings", True))
    require(
        not (is_tied and is_scaled),
        "config.json: tie_word_embeddings=True must be False, as in T5 v1.1: the tied, "
        "scaled head of the first T5 is not supported",
    )
    return {
        "architecture": "encoder_decoder",
        "num_encoder_layers": hf_config["num_layers"],
        "num_layers": hf_config.get("num_decoder_layers") or hf_config["num_layers"],
        "embed_dim": hf_config["d_model"],
        "num_heads": hf_config["num_heads"],
        "num_kv_heads": hf_config["num_heads"],
        "head_dim": hf_config["d_kv"],
        "mlp_dim": hf_config["d_ff"],
        "vocab_size": hf_config["vocab_size"],
        "norm_epsilon": hf_config.get("layer_norm_epsilon", 1e-6),
        "position": "relative",
        "attention_scale": 1.0,
        "mlp": read_mlp(hf_config, "feed_forward_proj", _T5_MLPS),
        "tied_embeddings": is_tied,
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
        **_RELATIVE,
        "feed_forward_proj": write_mlp(config.mlp, _T5_MLPS),
        "tie_word_embeddings": False,
    }


def _t5_tensors(config: ModelConfig) -> Iterator[HFTensor]:
    V, P, D = config.num_tokens, config.num_padded_tokens, config.embed_dim
    yield padded("shared.weight", reshaped("", ParamSlice("embedding"), (P, D), (P, D)), V, P)
    if not config.tied_embeddings:
        yield padded("lm_head.weight", transposed("", ParamSlice("head"), (D, P)), V, P)
    shape = (NUM_RELATIVE_BUCKETS, config.num_heads)
    for side, prefix in (("encoder", "encoder_"), ("decoder", "")):
        hf_name = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield reshaped(hf_name, ParamSlice(f"{prefix}relative_bias"), shape, shape)
        yield reshaped(f"{side}.final_layer_norm.weight", ParamSlice(f"{prefix}norm/scale"), (D,))
        yield from _t5_layers(config, side, f"{prefix}layers")


def _t5_layers(config: ModelConfig, side: str, stack: str) -> Iterator[HFTensor]:
    D, F, N, H = config.embed_dim, config.mlp_dim, config.num_heads, config.head_dim
    is_decoder = side == "decoder"
    attentions = [("attention", "SelfAttention")]
    if is_decoder:
        attentions.append(("cross_attention", "EncDecAttention"))
    for i in range((config.num_layers if is_decoder else config.num_encoder_layers) or 0):
        block = f"{side}.block.{i}.layer"
        for position, (attention, hf_attention) in enumerate(attentions):
            name = f"{block}.{position}"
            for field in ("query", "key", "value"):
                param = ParamSlice(f"{stack}/{attention}/{field}", (i,))
                yield transposed(f"{name}.{hf_attention}.{field[0]}.weight", param, (D, N, H))
            out = ParamSlice(f"{stack}/{attention}/out", (i,))
            yield transposed(f"{name}.{hf_attention}.o.weight", out, (N, H, D), 2)
            norm = ParamSlice(f"{stack}/{attention}_norm/scale", (i,))
            yield reshaped(f"{name}.layer_norm.weight", norm, (D,))
        dense = f"{block}.{len(attentions)}.DenseReluDense"
        gated = (("gate", "wi_0"), ("up", "wi_1"))
        for field, name in gated if config.is_gated else (("up", "wi"),):
            param = ParamSlice(f"{stack}/mlp/{field}", (i,))
            yield transposed(f"{dense}.{name}.weight", param, (D, F))
        yield transposed(f"{dense}.wo.weight", ParamSlice(f"{stack}/mlp/down", (i,)), (F, D))
        norm = ParamSlice(f"{stack}/mlp_norm/scale", (i,))
        yield reshaped(f"{block}.{len(attentions)}.layer_norm.weight", norm, (D,))


def _read_marian(hf_config: HFConfig, names: Set[str]) -> dict[str, Any]:
    del names
    require_values(hf_config, share_encoder_decoder_embeddings=True, tie_word_embeddings=True)
    D, N = hf_config["d_model"], hf_config["decoder_attention_heads"]
    require_values(hf_config, encoder_attention_heads=N)
    require_values(hf_config, encoder_ffn_dim=hf_config["decoder_ffn_dim"])
    return {
        "architecture": "encoder_decoder",
        "num_encoder_layers": hf_config["encoder_layers"],
        "num_layers": hf_config["decoder_layers"],
        "embed_dim": D,
        "num_heads": N,
        "num_kv_heads": N,
        "head_dim": D // N,
        "mlp_dim": hf_config["decoder_ffn_dim"],
        "vocab_size": hf_config["vocab_size"],
        "norm": "layer",
        "norm_placement": "post",
        "norm_epsilon": 1e-5,
        "position": "sinusoidal",
        "embed_scaled": hf_config.get("scale_embedding", False),
        "mlp": read_mlp(hf_config, "activation_function", UNGATED_MLPS),
        "bias": True,
        "head": "bias",
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
        "activation_function": write_mlp(config.mlp, UNGATED_MLPS),
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
    }


def _marian_tensors(config: ModelConfig) -> Iterator[HFTensor]:
    V, P, D, F = config.num_tokens, config.num_padded_tokens, config.embed_dim, config.mlp_dim
    N, H = config.num_heads, config.head_dim
    yield padded("model.shared.weight", reshaped("", ParamSlice("embedding"), (P, D), (P, D)), V, P)
    bias = reshaped("", ParamSlice("head_bias"), (P,), (1, P))
    yield padded("final_logits_bias", bias, V, P, axis=1)
    for side, stack in (("encoder", "encoder_layers"), ("decoder", "layers")):
        is_decoder = side == "decoder"
        attentions = [("attention", "self_attn")]
        if is_decoder:
            attentions.append(("cross_attention", "encoder_attn"))
        for i in range((config.num_layers if is_decoder else config.num_encoder_layers) or 0):
            layer, index = f"model.{side}.layers.{i}", (i,)
            for attention, hf_attention in attentions:
                for field in ("query", "key", "value"):
                    name = f"{layer}.{hf_attention}.{field[0]}_proj"
                    yield from linear(f"{stack}/{attention}/{field}", name, index, (D, N, H))
                name = f"{layer}.{hf_attention}.out_proj"
                yield from linear(f"{stack}/{attention}/out", name, index, (N, H, D), 2)
                name = f"{layer}.{hf_attention}_layer_norm"
                yield from layer_norm(f"{stack}/{attention}_out_norm", name, index, D)
            yield from linear(f"{stack}/mlp/up", f"{layer}.fc1", index, (D, F))
            yield from linear(f"{stack}/mlp/down", f"{layer}.fc2", index, (F, D))
            yield from layer_norm(f"{stack}/mlp_out_norm", f"{layer}.final_layer_norm", index, D)


T5 = Family(
    model_type="t5",
    read_config=_read_t5,
    write_config=_write_t5,
    tensors=_t5_tensors,
    tied_tensors={
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
        "lm_head.weight": "shared.weight",
    },
)
MARIAN = Family(
    model_type="marian",
    read_config=_read_marian,
    write_config=_write_marian,
    tensors=_marian_tensors,
    ignored_suffixes=("embed_positions.weight",),
    tied_tensors={
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
        "lm_head.weight": "model.shared.weight",
    },
)
