"""Encoder-decoders: T5 v1.1, and Marian, which has the layers of the first Transformer."""

from collections.abc import Iterator
from typing import Any

from configs.model import ModelConfig
from configs.position import MAX_RELATIVE_DISTANCE, NUM_RELATIVE_BUCKETS
from configs.require import require
from model.hf.families.layers import embedding, head, head_bias, layer_norm, linear
from model.hf.family import (
    UNGATED_MLPS,
    Family,
    HFConfig,
    Names,
    Row,
    checked_keys,
    fixed_fields,
    fixed_keys,
    key,
)
from model.hf.tensors import HFTensor, reshaped, transposed

_T5_MLPS = {"gated-gelu": "geglu_tanh", "gated-silu": "swiglu", "relu": "relu", "gelu": "gelu"}


def _read_t5_tied(hf_config: HFConfig, names: Names) -> dict[str, Any]:
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
    return {"tied_embeddings": is_tied}


def _t5_tensors(config: ModelConfig) -> Iterator[HFTensor]:
    yield embedding(config, "shared.weight")
    yield from head(config)
    shape = (NUM_RELATIVE_BUCKETS, config.num_heads)
    for side, prefix in (("encoder", "encoder_"), ("decoder", "")):
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield reshaped(bias, f"{prefix}relative_bias", (), shape, shape)
        norm = f"{side}.final_layer_norm.weight"
        yield reshaped(norm, f"{prefix}norm/scale", (), (config.embed_dim,))
        yield from _t5_layers(config, side, f"{prefix}layers")


def _t5_layers(config: ModelConfig, side: str, stack: str) -> Iterator[HFTensor]:
    D, F, N, H = config.embed_dim, config.mlp_dim, config.num_heads, config.head_dim
    is_decoder = side == "decoder"
    attentions = [("attention", "SelfAttention")]
    if is_decoder:
        attentions.append(("cross_attention", "EncDecAttention"))
    for i in range((config.num_layers if is_decoder else config.num_encoder_layers) or 0):
        block, index = f"{side}.block.{i}.layer", (i,)
        for position, (attention, hf_attention) in enumerate(attentions):
            hf_name, path = f"{block}.{position}", f"{stack}/{attention}"
            for field in ("query", "key", "value"):
                name = f"{hf_name}.{hf_attention}.{field[0]}.weight"
                yield transposed(name, f"{path}/{field}", index, (D, N, H))
            yield transposed(
                f"{hf_name}.{hf_attention}.o.weight", f"{path}/out", index, (N, H, D), 2
            )
            yield reshaped(f"{hf_name}.layer_norm.weight", f"{path}_norm/scale", index, (D,))
        hf_name, path = f"{block}.{len(attentions)}", f"{stack}/mlp"
        gated = (("gate", "wi_0"), ("up", "wi_1"))
        for field, name in gated if config.is_gated else (("up", "wi"),):
            hf_matrix = f"{hf_name}.DenseReluDense.{name}.weight"
            yield transposed(hf_matrix, f"{path}/{field}", index, (D, F))
        yield transposed(f"{hf_name}.DenseReluDense.wo.weight", f"{path}/down", index, (F, D))
        yield reshaped(f"{hf_name}.layer_norm.weight", f"{path}_norm/scale", index, (D,))


def _marian_tensors(config: ModelConfig) -> Iterator[HFTensor]:
    D, F, N, H = config.embed_dim, config.mlp_dim, config.num_heads, config.head_dim
    yield embedding(config, "model.shared.weight")
    yield head_bias(config, "final_logits_bias", is_row=True)
    for side, stack in (("encoder", "encoder_layers"), ("decoder", "layers")):
        is_decoder = side == "decoder"
        attentions = [("attention", "self_attn")]
        if is_decoder:
            attentions.append(("cross_attention", "encoder_attn"))
        for i in range((config.num_layers if is_decoder else config.num_encoder_layers) or 0):
            layer, index = f"model.{side}.layers.{i}", (i,)
            for attention, hf_attention in attentions:
                hf_name, path = f"{layer}.{hf_attention}", f"{stack}/{attention}"
                for field in ("query", "key", "value"):
                    name = f"{hf_name}.{field[0]}_proj"
                    yield from linear(name, f"{path}/{field}", index, (D, N, H))
                yield from linear(f"{hf_name}.out_proj", f"{path}/out", index, (N, H, D), 2)
                yield from layer_norm(f"{hf_name}_layer_norm", f"{path}_out_norm", index, D)
            yield from linear(f"{layer}.fc1", f"{stack}/mlp/up", index, (D, F))
            yield from linear(f"{layer}.fc2", f"{stack}/mlp/down", index, (F, D))
            yield from layer_norm(f"{layer}.final_layer_norm", f"{stack}/mlp_out_norm", index, D)


def _check_marian_sides(hf_config: HFConfig, names: Names) -> dict[str, Any]:
    """Refuses an encoder and a decoder of different widths; returns no fields."""
    both = {
        "encoder_attention_heads": hf_config["decoder_attention_heads"],
        "encoder_ffn_dim": hf_config["decoder_ffn_dim"],
    }
    return {**checked_keys(**both).read(hf_config, names)}


T5 = Family(
    model_type="t5",
    hf_class="T5ForConditionalGeneration",
    rows=(
        fixed_fields(architecture="encoder_decoder", position="relative", attention_scale=1.0),
        fixed_keys(is_encoder_decoder=True),
        key("num_layers", "num_encoder_layers"),
        key("num_decoder_layers", "num_layers", lambda hf_config, _: hf_config["num_layers"]),
        key("d_model", "embed_dim"),
        key("num_heads", "num_heads"),
        key("d_kv", "head_dim"),
        key("d_ff", "mlp_dim"),
        key("vocab_size", "vocab_size"),
        key("layer_norm_epsilon", "norm_epsilon", 1e-6),
        fixed_keys(
            relative_attention_num_buckets=NUM_RELATIVE_BUCKETS,
            relative_attention_max_distance=MAX_RELATIVE_DISTANCE,
        ),
        key("feed_forward_proj", "mlp", choices=_T5_MLPS),
        Row(_read_t5_tied, lambda config: {"tie_word_embeddings": False}),
    ),
    tensors=_t5_tensors,
    tied_tensors={
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
        "lm_head.weight": "shared.weight",
    },
)
MARIAN = Family(
    model_type="marian",
    hf_class="MarianMTModel",
    rows=(
        fixed_fields(architecture="encoder_decoder", norm="layer", norm_placement="post"),
        fixed_fields(norm_epsilon=1e-5, position="sinusoidal", bias=True, head="bias"),
        fixed_keys(is_encoder_decoder=True),
        key("encoder_layers", "num_encoder_layers"),
        key("decoder_layers", "num_layers"),
        key("d_model", "embed_dim"),
        key("encoder_attention_heads", "num_heads", None),
        key("decoder_attention_heads", "num_heads"),
        key("encoder_ffn_dim", "mlp_dim", None),
        key("decoder_ffn_dim", "mlp_dim"),
        Row(_check_marian_sides, lambda config: {}),
        key("vocab_size", "vocab_size"),
        Row(lambda hf_config, _: {}, lambda config: {"decoder_vocab_size": config.vocab_size}),
        key("scale_embedding", "embed_scaled", False),
        key("activation_function", "mlp", choices=UNGATED_MLPS),
        fixed_keys(share_encoder_decoder_embeddings=True, tie_word_embeddings=True),
    ),
    tensors=_marian_tensors,
    ignored_suffixes=("embed_positions.weight",),
    tied_tensors={
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
        "lm_head.weight": "model.shared.weight",
    },
)
