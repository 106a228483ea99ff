"""Decoders with Llama's tensor names: Mistral, Qwen, OLMo, Gemma, mixtures of experts."""

from collections.abc import Iterator, Set
from typing import Any

from configs.model import ModelConfig
from model.hf.family import (
    GATED_MLPS,
    Family,
    HFConfig,
    read_layer_types,
    read_mlp,
    read_rope,
    require_values,
    write_layer_types,
    write_mlp,
    write_rope,
)
from model.hf.tensors import HFTensor, ParamSlice, padded, reshaped, transposed

_COMPUTED = ("rotary_emb.inv_freq",)


def read_common(hf_config: HFConfig, names: Set[str]) -> dict[str, Any]:
    """Returns the fields of ModelConfig that all of them have."""
    require_values(hf_config, attention_bias=False, mlp_bias=False, partial_rotary_factor=1.0)
    num_heads = hf_config["num_attention_heads"]
    return {
        "num_layers": hf_config["num_hidden_layers"],
        "embed_dim": hf_config["hidden_size"],
        "num_heads": num_heads,
        "num_kv_heads": hf_config.get("num_key_value_heads") or num_heads,
        "head_dim": hf_config.get("head_dim") or hf_config["hidden_size"] // num_heads,
        "mlp_dim": hf_config["intermediate_size"],
        "vocab_size": hf_config["vocab_size"],
        "norm_epsilon": hf_config.get("rms_norm_eps", 1e-6),
        "mlp": read_mlp({"hidden_act": "silu", **hf_config}, "hidden_act", GATED_MLPS),
        "tied_embeddings": hf_config.get("tie_word_embeddings", "lm_head.weight" not in names),
        **read_rope(hf_config),
    }


def write_common(config: ModelConfig) -> dict[str, Any]:
    """Returns the keys of config.json that all of them have."""
    return {
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_dim,
        "vocab_size": config.num_tokens,
        "rms_norm_eps": config.norm_epsilon,
        "hidden_act": write_mlp(config.mlp, GATED_MLPS),
        "tie_word_embeddings": config.tied_embeddings,
        **write_rope(config),
    }


def embed_and_head(config: ModelConfig) -> Iterator[HFTensor]:
    """Yields the embedding, the final norm and the head."""
    V, P, D = config.num_tokens, config.num_padded_tokens, config.embed_dim
    embedding = reshaped("", ParamSlice("embedding"), (P, D), (P, D))
    yield padded("model.embed_tokens.weight", embedding, V, P)
    yield reshaped("model.norm.weight", ParamSlice("norm/scale"), (D,))
    if not config.tied_embeddings:
        yield padded("lm_head.weight", transposed("", ParamSlice("head"), (D, P)), V, P)


def attention(config: ModelConfig, path: str, hf_name: str, layer: int) -> Iterator[HFTensor]:
    """Yields the projections of a layer's attention, their biases, norms and sinks.

    Args:
        path: of the attention module.
        hf_name: prefix of the tensor names.
    """
    D, N, K, H = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
    for name, field, num in (("q", "query", N), ("k", "key", K), ("v", "value", K)):
        param = ParamSlice(f"{path}/{field}", (layer,))
        yield transposed(f"{hf_name}.{name}_proj.weight", param, (D, num, H))
        if config.qkv_bias:
            param = ParamSlice(f"{path}/{field}_bias", (layer,))
            yield reshaped(f"{hf_name}.{name}_proj.bias", param, (num, H))
        if config.qk_norm and field != "value":
            shape = (num, H) if config.qk_norm_over == "heads" else (H,)
            param = ParamSlice(f"{path}/{field}_norm/scale", (layer,))
            yield reshaped(f"{hf_name}.{name}_norm.weight", param, shape)
    yield transposed(f"{hf_name}.o_proj.weight", ParamSlice(f"{path}/out", (layer,)), (N, H, D), 2)
    if config.attention_sinks:
        yield reshaped(f"{hf_name}.sinks", ParamSlice(f"{path}/sinks", (layer,)), (N,))


def gated_mlp(
    config: ModelConfig,
    path: str,
    hf_name: str,
    index: tuple[int, ...],
    dim: int,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> Iterator[HFTensor]:
    """Yields the three matrices of a gated MLP or of an expert."""
    D = config.embed_dim
    shapes = {"gate": (D, dim), "up": (D, dim), "down": (dim, D)}
    for name, (field, shape) in zip(names, shapes.items(), strict=True):
        yield transposed(f"{hf_name}.{name}.weight", ParamSlice(f"{path}/{field}", index), shape)


def norms(config: ModelConfig, path: str, hf_name: str, layer: int) -> Iterator[HFTensor]:
    """Yields the norms of a block, whose names depend on where it has them."""
    names = {
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
    }[config.norm_placement]
    for field, name in names.items():
        param = ParamSlice(f"{path}/{field}/scale", (layer,))
        yield reshaped(f"{hf_name}.{name}.weight", param, (config.embed_dim,))


def tensors(config: ModelConfig) -> Iterator[HFTensor]:
    """Yields all tensors of a model with a dense MLP in every layer."""
    yield from embed_and_head(config)
    for i in range(config.num_layers):
        hf_name = f"model.layers.{i}"
        yield from _norms_and_attention(config, hf_name, i)
        yield from gated_mlp(config, "layers/mlp", f"{hf_name}.mlp", (i,), config.mlp_dim)


def _norms_and_attention(config: ModelConfig, hf_name: str, layer: int) -> Iterator[HFTensor]:
    yield from norms(config, "layers", hf_name, layer)
    yield from attention(config, "layers/attention", f"{hf_name}.self_attn", layer)


def _mixtral_tensors(config: ModelConfig) -> Iterator[HFTensor]:
    return _expert_tensors(config, "block_sparse_moe", ("w1", "w3", "w2"))


def _qwen3_moe_tensors(config: ModelConfig) -> Iterator[HFTensor]:
    return _expert_tensors(config, "mlp", ("gate_proj", "up_proj", "down_proj"))


def _expert_tensors(
    config: ModelConfig, hf_mlp: str, names: tuple[str, str, str]
) -> Iterator[HFTensor]:
    E, D = config.num_experts, config.embed_dim
    assert E is not None
    yield from embed_and_head(config)
    for i in range(config.num_layers):
        hf_name = f"model.layers.{i}"
        yield from _norms_and_attention(config, hf_name, i)
        router = ParamSlice("layers/mlp/router", (i,))
        yield transposed(f"{hf_name}.{hf_mlp}.gate.weight", router, (D, E))
        for e in range(E):
            expert = f"{hf_name}.{hf_mlp}.experts.{e}"
            yield from gated_mlp(config, "layers/mlp", expert, (i, e), config.expert_width, names)


def _class_of(name: str, model_type: str) -> dict[str, Any]:
    return {"architectures": [name], "model_type": model_type}


def _read_mistral(hf_config: HFConfig, names: Set[str]) -> dict[str, Any]:
    return {**read_common(hf_config, names), "attention_window": hf_config.get("sliding_window")}


def _write_mistral(config: ModelConfig) -> dict[str, Any]:
    class_keys = _class_of("MistralForCausalLM", "mistral")
    return {**class_keys, **write_common(config), "sliding_window": config.attention_window}


def _read_qwen(hf_config: HFConfig, names: Set[str]) -> dict[str, Any]:
    is_used = hf_config.get("use_sliding_window", False)
    first = hf_config.get("max_window_layers", 0)
    if not is_used:
        return read_common(hf_config, names)
    return {**read_common(hf_config, names), **read_layer_types(hf_config, lambda i: i >= first)}


def _write_qwen(config: ModelConfig, name: str, model_type: str) -> dict[str, Any]:
    hf_config = {**_class_of(name, model_type), **write_common(config)}
    if config.attention_window is not None:
        hf_config |= {"use_sliding_window": True, **write_layer_types(config)}
    return hf_config


def _read_olmo2(hf_config: HFConfig, names: Set[str]) -> dict[str, Any]:
    common = read_common(hf_config, names)
    return {**common, "norm_placement": "reordered", "qk_norm": True, "qk_norm_over": "heads"}


def _gemma(hf_config: HFConfig, names: Set[str]) -> dict[str, Any]:
    activation = "hidden_activation" if "hidden_activation" in hf_config else "hidden_act"
    scale = hf_config["query_pre_attn_scalar"] ** -0.5
    require_values(hf_config, use_bidirectional_attention=None)
    return {
        **read_common({**hf_config, "hidden_act": "gelu_pytorch_tanh"}, names),
        "mlp": read_mlp(hf_config, activation, GATED_MLPS),
        "norm_placement": "sandwich",
        "norm_zero_centered": True,
        "embed_scaled": True,
        "attention_scale": scale,
        "attention_softcap": hf_config.get("attn_logit_softcapping"),
        "logit_softcap": hf_config.get("final_logit_softcapping"),
    }


def _write_gemma(config: ModelConfig) -> dict[str, Any]:
    scale = config.attention_scale or config.head_dim**-0.5
    scalar = scale**-2
    return {
        **write_common(config),
        **write_layer_types(config),
        "hidden_activation": write_mlp(config.mlp, GATED_MLPS),
        "query_pre_attn_scalar": round(scalar) if round(scalar) ** -0.5 == scale else scalar,
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
    }


def _read_gemma2(hf_config: HFConfig, names: Set[str]) -> dict[str, Any]:
    return {**_gemma(hf_config, names), **read_layer_types(hf_config, lambda i: i % 2 == 0)}


def _write_gemma2(config: ModelConfig) -> dict[str, Any]:
    return {**_class_of("Gemma2ForCausalLM", "gemma2"), **_write_gemma(config)}


def _read_gemma3(hf_config: HFConfig, names: Set[str]) -> dict[str, Any]:
    pattern = (
        hf_config.get("sliding_window_pattern") or hf_config.get("_sliding_window_pattern") or 6
    )
    found = {**_gemma(hf_config, names), "qk_norm": True}
    found |= read_layer_types(hf_config, lambda i: (i + 1) % pattern != 0)
    if "rope_parameters" not in hf_config:
        found["rope_theta_local"] = float(hf_config.get("rope_local_base_freq", 10_000.0))
    return found


def _write_gemma3(config: ModelConfig) -> dict[str, Any]:
    local = config.rope_theta_local or config.rope_theta
    class_keys = _class_of("Gemma3ForCausalLM", "gemma3_text")
    return {**class_keys, **_write_gemma(config), "rope_local_base_freq": local}


def _read_mixtral(hf_config: HFConfig, names: Set[str]) -> dict[str, Any]:
    return {
        **read_common(hf_config, names),
        "attention_window": hf_config.get("sliding_window"),
        "num_experts": hf_config["num_local_experts"],
        "num_active_experts": hf_config["num_experts_per_tok"],
    }


def _write_mixtral(config: ModelConfig) -> dict[str, Any]:
    return {
        **_class_of("MixtralForCausalLM", "mixtral"),
        **write_common(config),
        "sliding_window": config.attention_window,
        "num_local_experts": config.num_experts,
        "num_experts_per_tok": config.num_active_experts,
    }


def _read_qwen3_moe(hf_config: HFConfig, names: Set[str]) -> dict[str, Any]:
    require_values(hf_config, decoder_sparse_step=1, mlp_only_layers=[])
    return {
        **_read_qwen(hf_config, names),
        "qk_norm": True,
        "num_experts": hf_config.get("num_experts") or hf_config["num_local_experts"],
        "num_active_experts": hf_config["num_experts_per_tok"],
        "expert_dim": hf_config["moe_intermediate_size"],
        "router_normalized": hf_config.get("norm_topk_prob", False),
    }


def _write_qwen3_moe(config: ModelConfig) -> dict[str, Any]:
    return {
        **_write_qwen(config, "Qwen3MoeForCausalLM", "qwen3_moe"),
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.num_active_experts,
        "moe_intermediate_size": config.expert_width,
        "norm_topk_prob": config.router_normalized,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _family(**fields: Any) -> Family:
    return Family(
        **{
            "tensors": tensors,
            "ignored_suffixes": _COMPUTED,
            "tied_tensors": {"lm_head.weight": "model.embed_tokens.weight"},
            **fields,
        }
    )


LLAMA = _family(
    model_type="llama",
    read_config=read_common,
    write_config=lambda config: {**_class_of("LlamaForCausalLM", "llama"), **write_common(config)},
)
MISTRAL = _family(model_type="mistral", read_config=_read_mistral, write_config=_write_mistral)
QWEN2 = _family(
    model_type="qwen2",
    read_config=lambda hf_config, names: {**_read_qwen(hf_config, names), "qkv_bias": True},
    write_config=lambda config: _write_qwen(config, "Qwen2ForCausalLM", "qwen2"),
)
QWEN3 = _family(
    model_type="qwen3",
    read_config=lambda hf_config, names: {**_read_qwen(hf_config, names), "qk_norm": True},
    write_config=lambda config: _write_qwen(config, "Qwen3ForCausalLM", "qwen3"),
)
OLMO2 = _family(
    model_type="olmo2",
    read_config=_read_olmo2,
    write_config=lambda config: {**_class_of("Olmo2ForCausalLM", "olmo2"), **write_common(config)},
)
GEMMA2 = _family(model_type="gemma2", read_config=_read_gemma2, write_config=_write_gemma2)
GEMMA3 = _family(model_type="gemma3_text", read_config=_read_gemma3, write_config=_write_gemma3)
MIXTRAL = _family(
    model_type="mixtral",
    read_config=_read_mixtral,
    write_config=_write_mixtral,
    tensors=_mixtral_tensors,
)
QWEN3_MOE = _family(
    model_type="qwen3_moe",
    read_config=_read_qwen3_moe,
    write_config=_write_qwen3_moe,
    tensors=_qwen3_moe_tensors,
)
