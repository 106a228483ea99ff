"""Decoders with Llama's tensor names: Mistral, Qwen, OLMo, Gemma, mixtures of experts."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from configs.model import ModelConfig
from model.hf.families.layers import embedding, head
from model.hf.family import (
    GATED_MLPS,
    LAYERS_AND_HEADS,
    MLP_AND_VOCAB,
    ROPE,
    TIED_EMBEDDINGS,
    Family,
    HFConfig,
    Names,
    Row,
    checked_keys,
    fixed_fields,
    fixed_keys,
    key,
    read_layer_types,
    write_layer_types,
)
from model.hf.tensors import HFTensor, reshaped, transposed


def attention(config: ModelConfig, hf_name: str, path: str, layer: int) -> Iterator[HFTensor]:
    """Yields the projections of a layer's attention, their biases and norms.

    Args:
        hf_name: prefix of the tensor names.
        path: of the attention module.
    """
    D, N, K, H = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
    index = (layer,)
    for name, field, num in (("q", "query", N), ("k", "key", K), ("v", "value", K)):
        proj = f"{hf_name}.{name}_proj"
        yield transposed(f"{proj}.weight", f"{path}/{field}", index, (D, num, H))
        if config.qkv_bias:
            yield reshaped(f"{proj}.bias", f"{path}/{field}_bias", index, (num, H))
        if config.qk_norm and field != "value":
            shape = (num, H) if config.qk_norm_over == "heads" else (H,)
            norm = f"{path}/{field}_norm/scale"
            yield reshaped(f"{hf_name}.{name}_norm.weight", norm, index, shape)
    yield transposed(f"{hf_name}.o_proj.weight", f"{path}/out", index, (N, H, D), 2)


_NORMS = {
    "pre": {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    "reordered": {
        "attention_out_norm": "post_attention_layernorm",
        "mlp_out_norm": "post_feedforward_layernorm",
    },
    "sandwich": {
        "attention_norm": "input_layernorm",
        "attention_out_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_out_norm": "post_feedforward_layernorm",
    },
}
"""{model.norm_placement: {norm of a block: its name in the checkpoint}}."""


def tensors(
    config: ModelConfig,
    *,
    attention: Callable[[ModelConfig, str, str, int], Iterator[HFTensor]] = attention,
    mlp: str = "mlp",
    matrices: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> Iterator[HFTensor]:
    """Yields all tensors of a model.

    Args:
        mlp: name of the MLP or the experts of a layer.
        matrices: names of their gate, up and down.
    """
    D, E, num_leading = config.embed_dim, config.num_experts or 0, config.num_leading_layers

    def gated(hf_name: str, path: str, index: tuple[int, ...], dim: int) -> Iterator[HFTensor]:
        shapes = {"gate": (D, dim), "up": (D, dim), "down": (dim, D)}
        for name, (field, shape) in zip(matrices, shapes.items(), strict=True):
            yield transposed(f"{hf_name}.{name}.weight", f"{path}/{field}", index, shape)

    yield embedding(config, "model.embed_tokens.weight")
    yield reshaped("model.norm.weight", "norm/scale", (), (D,))
    yield from head(config)
    for i in range(config.num_layers):
        is_leading = i < num_leading
        stack, layer = ("leading_layers", i) if is_leading else ("layers", i - num_leading)
        hf_name = f"model.layers.{i}"
        for field, name in _NORMS[config.norm_placement].items():
            yield reshaped(f"{hf_name}.{name}.weight", f"{stack}/{field}/scale", (layer,), (D,))
        yield from attention(config, f"{hf_name}.self_attn", f"{stack}/attention", layer)
        hf_mlp, path = f"{hf_name}.{mlp}", f"{stack}/mlp"
        if is_leading or not E:
            yield from gated(hf_mlp, path, (layer,), config.mlp_dim)
            continue
        yield transposed(f"{hf_mlp}.gate.weight", f"{path}/router", (layer,), (D, E))
        if config.router_bias:
            bias = f"{hf_mlp}.gate.e_score_correction_bias"
            yield reshaped(bias, f"{path}/router_bias", (layer,), (E,))
        for e in range(E):
            yield from gated(f"{hf_mlp}.experts.{e}", path, (layer, e), config.expert_width)
        if config.num_shared_experts:
            dim = config.num_shared_experts * config.expert_width
            yield from gated(f"{hf_mlp}.shared_experts", f"{path}/shared", (layer,), dim)


decoder = partial(
    Family,
    tensors=tensors,
    ignored_suffixes=("rotary_emb.inv_freq",),
    tied_tensors={"lm_head.weight": "model.embed_tokens.weight"},
)
"""A family with Llama's tensor names."""
COMMON = (
    checked_keys(attention_bias=False, mlp_bias=False, partial_rotary_factor=1.0),
    *LAYERS_AND_HEADS,
    key("num_key_value_heads", "num_kv_heads", None),
    key("head_dim", "head_dim", None),
    *MLP_AND_VOCAB,
    key("rms_norm_eps", "norm_epsilon", 1e-6),
    key("hidden_act", "mlp", "silu", choices=GATED_MLPS),
    TIED_EMBEDDINGS,
    ROPE,
)
"""What all of them have."""
NUM_ACTIVE_EXPERTS = key("num_experts_per_tok", "num_active_experts")
EXPERT_DIM = Row(
    lambda hf_config, _: {"expert_dim": hf_config["moe_intermediate_size"]},
    lambda config: {"moe_intermediate_size": config.expert_width},
)
_WINDOW = key("sliding_window", "attention_window", None)


def _read_qwen_window(hf_config: HFConfig, names: Names) -> dict[str, Any]:
    if not hf_config.get("use_sliding_window"):
        return {}
    return read_layer_types(hf_config, lambda i: i >= hf_config.get("max_window_layers", 0))


def _write_qwen_window(config: ModelConfig) -> dict[str, Any]:
    if config.attention_window is None:
        return {}
    return {"use_sliding_window": True, **write_layer_types(config)}


def _read_gemma2_window(hf_config: HFConfig, names: Names) -> dict[str, Any]:
    return read_layer_types(hf_config, lambda i: i % 2 == 0)


def _read_gemma3_window(hf_config: HFConfig, names: Names) -> dict[str, Any]:
    pattern = (
        hf_config.get("sliding_window_pattern") or hf_config.get("_sliding_window_pattern") or 6
    )
    return read_layer_types(hf_config, lambda i: (i + 1) % pattern != 0)


def _read_gemma3_rope(hf_config: HFConfig, names: Names) -> dict[str, Any]:
    if "rope_parameters" in hf_config:
        return {}
    return {"rope_theta_local": float(hf_config.get("rope_local_base_freq", 10_000.0))}


def _write_gemma3_rope(config: ModelConfig) -> dict[str, Any]:
    return {"rope_local_base_freq": config.rope_theta_local or config.rope_theta}


def _write_gemma_scale(config: ModelConfig) -> dict[str, Any]:
    scale = config.attention_scale or config.head_dim**-0.5
    scalar = scale**-2
    return {"query_pre_attn_scalar": round(scalar) if round(scalar) ** -0.5 == scale else scalar}


_QWEN = (*COMMON, Row(_read_qwen_window, _write_qwen_window))
_GEMMA = (
    fixed_fields(norm_placement="sandwich", norm_zero_centered=True, embed_scaled=True),
    checked_keys(use_bidirectional_attention=None),
    key(
        "hidden_activation",
        "mlp",
        lambda hf_config, _: hf_config["hidden_act"],
        choices=GATED_MLPS,
    ),
    Row(
        lambda hf_config, _: {"attention_scale": hf_config["query_pre_attn_scalar"] ** -0.5},
        _write_gemma_scale,
    ),
    key("attn_logit_softcapping", "attention_softcap", None),
    key("final_logit_softcapping", "logit_softcap", None),
)

DECODERS = (
    decoder(model_type="llama", hf_class="LlamaForCausalLM", rows=COMMON),
    decoder(
        model_type="qwen3", hf_class="Qwen3ForCausalLM", rows=(*_QWEN, fixed_fields(qk_norm=True))
    ),
    decoder(
        model_type="qwen2", hf_class="Qwen2ForCausalLM", rows=(*_QWEN, fixed_fields(qkv_bias=True))
    ),
    decoder(model_type="mistral", hf_class="MistralForCausalLM", rows=(*COMMON, _WINDOW)),
    decoder(
        model_type="olmo2",
        hf_class="Olmo2ForCausalLM",
        rows=(
            *COMMON,
            fixed_fields(norm_placement="reordered", qk_norm=True, qk_norm_over="heads"),
        ),
    ),
    decoder(
        model_type="gemma2",
        hf_class="Gemma2ForCausalLM",
        rows=(*COMMON, Row(_read_gemma2_window, write_layer_types), *_GEMMA),
    ),
    decoder(
        model_type="gemma3_text",
        hf_class="Gemma3ForCausalLM",
        rows=(
            *COMMON,
            fixed_fields(qk_norm=True),
            Row(_read_gemma3_window, write_layer_types),
            *_GEMMA,
            Row(_read_gemma3_rope, _write_gemma3_rope),
        ),
    ),
    decoder(
        model_type="mixtral",
        hf_class="MixtralForCausalLM",
        rows=(*COMMON, _WINDOW, key("num_local_experts", "num_experts"), NUM_ACTIVE_EXPERTS),
        tensors=partial(tensors, mlp="block_sparse_moe", matrices=("w1", "w3", "w2")),
    ),
    decoder(
        model_type="qwen3_moe",
        hf_class="Qwen3MoeForCausalLM",
        rows=(
            *_QWEN,
            fixed_fields(qk_norm=True),
            key("num_experts", "num_experts", lambda hf_config, _: hf_config["num_local_experts"]),
            NUM_ACTIVE_EXPERTS,
            EXPERT_DIM,
            key("norm_topk_prob", "router_normalized", False),
            fixed_keys(decoder_sparse_step=1, mlp_only_layers=[]),
        ),
    ),
)
