"""Decoders whose layers are named as Llama's: Mistral, Qwen, OLMo, Gemma, mixtures of experts."""

from collections.abc import Iterator, Set
from typing import Any

from configs.model import ModelConfig
from model.hf.family import (
    GATED,
    Family,
    Said,
    kind_of,
    name_of,
    read_layer_types,
    read_rope,
    refuse,
    write_layer_types,
    write_rope,
)
from model.hf.tensors import Part, Tensor, padded, same, transposed

_NOT_LEARNED = ("rotary_emb.inv_freq",)


def read_common(said: Said, names: Set[str]) -> dict[str, Any]:
    """Returns what all of them say in the same words."""
    refuse(said, attention_bias=False, mlp_bias=False, partial_rotary_factor=1.0)
    num_heads = said["num_attention_heads"]
    return {
        "num_layers": said["num_hidden_layers"],
        "embed_dim": said["hidden_size"],
        "num_heads": num_heads,
        "num_kv_heads": said.get("num_key_value_heads") or num_heads,
        "head_dim": said.get("head_dim") or said["hidden_size"] // num_heads,
        "mlp_dim": said["intermediate_size"],
        "vocab_size": said["vocab_size"],
        "norm_epsilon": said.get("rms_norm_eps", 1e-6),
        "mlp": kind_of(said, "hidden_act", GATED) if "hidden_act" in said else "swiglu",
        "tied_embeddings": said.get("tie_word_embeddings", "lm_head.weight" not in names),
        **read_rope(said),
    }


def write_common(config: ModelConfig) -> dict[str, Any]:
    """Returns what all of them say in the same words."""
    return {
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_dim,
        "vocab_size": config.num_tokens,
        "rms_norm_eps": config.norm_epsilon,
        "hidden_act": name_of(config.mlp, GATED),
        "tie_word_embeddings": config.tied_embeddings,
        **write_rope(config),
    }


def ends(config: ModelConfig, prefix: str = "model.") -> Iterator[Tensor]:
    """Yields what is before and behind the layers."""
    V, P, D = config.num_tokens, config.num_padded_tokens, config.embed_dim
    name = f"{prefix}embed_tokens.weight"
    yield padded(name, same(name, Part("embedding"), (P, D), (P, D)), V, P)
    yield same(f"{prefix}norm.weight", Part("norm/scale"), (D,))
    if not config.tied_embeddings:
        name = "lm_head.weight"
        yield padded(name, transposed(name, Part("head"), (D, P)), V, P)


def attention(config: ModelConfig, ours: str, theirs: str, number: int) -> Iterator[Tensor]:
    """Yields the heads of a layer and their norms.

    Args:
        ours, theirs: the names that paths and tensors begin with.
    """
    D, N, K, H = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
    for name, field, num in (("q", "query", N), ("k", "key", K), ("v", "value", K)):
        part = Part(f"{ours}/{field}", (number,))
        yield transposed(f"{theirs}.{name}_proj.weight", part, (D, num, H))
        if config.qkv_bias:
            part = Part(f"{ours}/{field}_bias", (number,))
            yield same(f"{theirs}.{name}_proj.bias", part, (num, H))
        if config.qk_norm and field != "value":
            shape = (num, H) if config.qk_norm_over == "heads" else (H,)
            yield same(
                f"{theirs}.{name}_norm.weight", Part(f"{ours}/{field}_norm/scale", (number,)), shape
            )
    yield transposed(f"{theirs}.o_proj.weight", Part(f"{ours}/out", (number,)), (N, H, D), 2)
    if config.attention_sinks:
        yield same(f"{theirs}.sinks", Part(f"{ours}/sinks", (number,)), (N,))


def gated_mlp(
    config: ModelConfig,
    ours: str,
    theirs: str,
    index: tuple[int, ...],
    dim: int,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> Iterator[Tensor]:
    """Yields the three matrices of an MLP or of an expert."""
    D = config.embed_dim
    shapes = {"gate": (D, dim), "up": (D, dim), "down": (dim, D)}
    for name, (field, shape) in zip(names, shapes.items(), strict=True):
        yield transposed(f"{theirs}.{name}.weight", Part(f"{ours}/{field}", index), shape)


def norms(config: ModelConfig, ours: str, theirs: str, number: int) -> Iterator[Tensor]:
    """Yields the norms of a block, by the names that they have in each place."""
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
        part = Part(f"{ours}/{field}/scale", (number,))
        yield same(f"{theirs}.{name}.weight", part, (config.embed_dim,))


def tensors(config: ModelConfig) -> Iterator[Tensor]:
    """Yields all tensors of a model whose layers have one MLP each."""
    yield from ends(config)
    for i in range(config.num_layers):
        theirs = f"model.layers.{i}"
        yield from _around_mlp(config, theirs, i)
        yield from gated_mlp(config, "layers/mlp", f"{theirs}.mlp", (i,), config.mlp_dim)


def _around_mlp(config: ModelConfig, theirs: str, number: int) -> Iterator[Tensor]:
    yield from norms(config, "layers", theirs, number)
    yield from attention(config, "layers/attention", f"{theirs}.self_attn", number)


def _mixtral_tensors(config: ModelConfig) -> Iterator[Tensor]:
    return _expert_tensors(config, "block_sparse_moe", ("w1", "w3", "w2"))


def _qwen3_moe_tensors(config: ModelConfig) -> Iterator[Tensor]:
    return _expert_tensors(config, "mlp", ("gate_proj", "up_proj", "down_proj"))


def _expert_tensors(
    config: ModelConfig, room: str, names: tuple[str, str, str]
) -> Iterator[Tensor]:
    E, D = config.num_experts, config.embed_dim
    assert E is not None
    yield from ends(config)
    for i in range(config.num_layers):
        theirs = f"model.layers.{i}"
        yield from _around_mlp(config, theirs, i)
        yield transposed(f"{theirs}.{room}.gate.weight", Part("layers/mlp/router", (i,)), (D, E))
        for e in range(E):
            expert = f"{theirs}.{room}.experts.{e}"
            yield from gated_mlp(config, "layers/mlp", expert, (i, e), config.expert_width, names)


def _named(name: str, model_type: str) -> dict[str, Any]:
    return {"architectures": [name], "model_type": model_type}


def _read_mistral(said: Said, names: Set[str]) -> dict[str, Any]:
    return {**read_common(said, names), "attention_window": said.get("sliding_window")}


def _write_mistral(config: ModelConfig) -> dict[str, Any]:
    named = _named("MistralForCausalLM", "mistral")
    return {**named, **write_common(config), "sliding_window": config.attention_window}


def _read_qwen(said: Said, names: Set[str]) -> dict[str, Any]:
    is_used = said.get("use_sliding_window", False)
    first = said.get("max_window_layers", 0)
    if not is_used:
        return read_common(said, names)
    return {**read_common(said, names), **read_layer_types(said, lambda i: i >= first)}


def _write_qwen(config: ModelConfig, name: str, model_type: str) -> dict[str, Any]:
    said = {**_named(name, model_type), **write_common(config)}
    if config.attention_window is not None:
        said |= {"use_sliding_window": True, **write_layer_types(config)}
    return said


def _read_olmo2(said: Said, names: Set[str]) -> dict[str, Any]:
    common = read_common(said, names)
    return {**common, "norm_placement": "reordered", "qk_norm": True, "qk_norm_over": "heads"}


def _gemma(said: Said, names: Set[str]) -> dict[str, Any]:
    kind = kind_of(
        said, "hidden_activation" if "hidden_activation" in said else "hidden_act", GATED
    )
    scale = said["query_pre_attn_scalar"] ** -0.5
    refuse(said, use_bidirectional_attention=None)
    return {
        **read_common({**said, "hidden_act": "gelu_pytorch_tanh"}, names),
        "mlp": kind,
        "norm_placement": "sandwich",
        "norm_zero_centered": True,
        "embed_scaled": True,
        "attention_scale": scale,
        "attention_softcap": said.get("attn_logit_softcapping"),
        "logit_softcap": said.get("final_logit_softcapping"),
    }


def _write_gemma(config: ModelConfig) -> dict[str, Any]:
    scale = config.attention_scale or config.head_dim**-0.5
    scalar = scale**-2
    return {
        **write_common(config),
        **write_layer_types(config),
        "hidden_activation": name_of(config.mlp, GATED),
        "query_pre_attn_scalar": round(scalar) if round(scalar) ** -0.5 == scale else scalar,
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
    }


def _read_gemma2(said: Said, names: Set[str]) -> dict[str, Any]:
    return {**_gemma(said, names), **read_layer_types(said, lambda i: i % 2 == 0)}


def _write_gemma2(config: ModelConfig) -> dict[str, Any]:
    return {**_named("Gemma2ForCausalLM", "gemma2"), **_write_gemma(config)}


def _read_gemma3(said: Said, names: Set[str]) -> dict[str, Any]:
    pattern = said.get("sliding_window_pattern") or said.get("_sliding_window_pattern") or 6
    found = {**_gemma(said, names), "qk_norm": True}
    found |= read_layer_types(said, lambda i: (i + 1) % pattern != 0)
    if "rope_parameters" not in said:
        found["rope_theta_local"] = float(said.get("rope_local_base_freq", 10_000.0))
    return found


def _write_gemma3(config: ModelConfig) -> dict[str, Any]:
    local = config.rope_theta_local or config.rope_theta
    named = _named("Gemma3ForCausalLM", "gemma3_text")
    return {**named, **_write_gemma(config), "rope_local_base_freq": local}


def _read_mixtral(said: Said, names: Set[str]) -> dict[str, Any]:
    return {
        **read_common(said, names),
        "attention_window": said.get("sliding_window"),
        "num_experts": said["num_local_experts"],
        "num_active_experts": said["num_experts_per_tok"],
    }


def _write_mixtral(config: ModelConfig) -> dict[str, Any]:
    return {
        **_named("MixtralForCausalLM", "mixtral"),
        **write_common(config),
        "sliding_window": config.attention_window,
        "num_local_experts": config.num_experts,
        "num_experts_per_tok": config.num_active_experts,
    }


def _read_qwen3_moe(said: Said, names: Set[str]) -> dict[str, Any]:
    refuse(said, decoder_sparse_step=1, mlp_only_layers=[])
    return {
        **_read_qwen(said, names),
        "qk_norm": True,
        "num_experts": said.get("num_experts") or said["num_local_experts"],
        "num_active_experts": said["num_experts_per_tok"],
        "expert_dim": said["moe_intermediate_size"],
        "router_normalized": said.get("norm_topk_prob", False),
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
            "ignored": _NOT_LEARNED,
            "copies": {"lm_head.weight": "model.embed_tokens.weight"},
            **fields,
        }
    )


LLAMA = _family(
    model_type="llama",
    read=read_common,
    write=lambda config: {**_named("LlamaForCausalLM", "llama"), **write_common(config)},
)
MISTRAL = _family(model_type="mistral", read=_read_mistral, write=_write_mistral)
QWEN2 = _family(
    model_type="qwen2",
    read=lambda said, names: {**_read_qwen(said, names), "qkv_bias": True},
    write=lambda config: _write_qwen(config, "Qwen2ForCausalLM", "qwen2"),
)
QWEN3 = _family(
    model_type="qwen3",
    read=lambda said, names: {**_read_qwen(said, names), "qk_norm": True},
    write=lambda config: _write_qwen(config, "Qwen3ForCausalLM", "qwen3"),
)
OLMO2 = _family(
    model_type="olmo2",
    read=_read_olmo2,
    write=lambda config: {**_named("Olmo2ForCausalLM", "olmo2"), **write_common(config)},
)
GEMMA2 = _family(model_type="gemma2", read=_read_gemma2, write=_write_gemma2)
GEMMA3 = _family(model_type="gemma3_text", read=_read_gemma3, write=_write_gemma3)
MIXTRAL = _family(
    model_type="mixtral", read=_read_mixtral, write=_write_mixtral, tensors=_mixtral_tensors
)
QWEN3_MOE = _family(
    model_type="qwen3_moe", read=_read_qwen3_moe, write=_write_qwen3_moe, tensors=_qwen3_moe_tensors
)
