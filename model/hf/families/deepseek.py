"""DeepSeek-V3: MLA, grouped and shared experts, leading layers with a dense MLP."""

from collections.abc import Iterator, Set
from typing import Any

import numpy as np

from configs.model import ModelConfig
from model.hf.families.decoders import embed_and_head, gated_mlp, norms, read_common, write_common
from model.hf.family import Family, HFConfig, mscale, require_values
from model.hf.tensors import HFTensor, ParamSlice, concatenated, reordered, reshaped, transposed


def _read(hf_config: HFConfig, names: Set[str]) -> dict[str, Any]:
    require_values(hf_config, rope_interleave=True, moe_layer_freq=1)
    require_values(hf_config, topk_method="noaux_tc", scoring_func="sigmoid")
    rope = {**(hf_config.get("rope_scaling") or {}), **(hf_config.get("rope_parameters") or {})}
    width = hf_config["qk_nope_head_dim"] + hf_config["qk_rope_head_dim"]
    scale = width**-0.5
    if rope.get("mscale_all_dim"):
        scale *= mscale(rope["factor"], rope["mscale_all_dim"]) ** 2
    return {
        **read_common({**hf_config, "head_dim": hf_config["qk_nope_head_dim"]}, names),
        "attention": "mla",
        "query_latent_dim": hf_config.get("q_lora_rank"),
        "kv_latent_dim": hf_config["kv_lora_rank"],
        "rope_head_dim": hf_config["qk_rope_head_dim"],
        "value_head_dim": hf_config["v_head_dim"],
        "num_kv_heads": hf_config["num_attention_heads"],
        "attention_scale": scale,
        "num_experts": hf_config["n_routed_experts"],
        "num_active_experts": hf_config["num_experts_per_tok"],
        "expert_dim": hf_config["moe_intermediate_size"],
        "num_shared_experts": hf_config.get("n_shared_experts") or 0,
        "num_dense_layers": hf_config["first_k_dense_replace"],
        "router": "sigmoid",
        "router_bias": True,
        "router_normalized": hf_config["norm_topk_prob"],
        "router_scale": float(hf_config["routed_scaling_factor"]),
        "num_expert_groups": hf_config["n_group"],
        "num_active_groups": hf_config["topk_group"],
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    hf_config = write_common(config)
    rope = hf_config.get("rope_scaling")
    if rope is not None and config.rope_scaling.attention_factor == 1.0:
        # As DeepSeek does: the factor scales attention scores, not queries and keys.
        del rope["attention_factor"]
        rope |= {"mscale": 1.0, "mscale_all_dim": 1.0}
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        **hf_config,
        "head_dim": config.rope_head_dim,
        "q_lora_rank": config.query_latent_dim,
        "kv_lora_rank": config.kv_latent_dim,
        "qk_rope_head_dim": config.rope_head_dim,
        "qk_nope_head_dim": config.head_dim,
        "v_head_dim": config.value_head_dim,
        "n_routed_experts": config.num_experts,
        "num_experts_per_tok": config.num_active_experts,
        "moe_intermediate_size": config.expert_width,
        "n_shared_experts": config.num_shared_experts,
        "first_k_dense_replace": config.num_dense_layers,
        "norm_topk_prob": config.router_normalized,
        "routed_scaling_factor": config.router_scale,
        "n_group": config.num_expert_groups,
        "topk_group": config.num_active_groups,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "moe_layer_freq": 1,
        "rope_interleave": True,
    }


def _deinterleaved(num_heads: int, num_plain: int, num_rotated: int) -> np.ndarray:
    """Returns the rows that move RoPE channel pairs (2j, 2j + 1) to (j, j + R/2), by head."""
    pairs = np.arange(num_rotated).reshape(-1, 2).T.reshape(-1)
    head = np.concatenate((np.arange(num_plain), num_plain + pairs))
    width = num_plain + num_rotated
    return (np.arange(num_heads)[:, None] * width + head).reshape(-1)


def _keys_then_values(num_heads: int, key_dim: int, value_dim: int) -> np.ndarray:
    """Returns the rows that put all keys before all values, which alternate by head."""
    rows = np.arange(num_heads * (key_dim + value_dim)).reshape(num_heads, -1)
    return np.concatenate((rows[:, :key_dim].reshape(-1), rows[:, key_dim:].reshape(-1)))


def _attention(config: ModelConfig, path: str, hf_name: str, layer: int) -> Iterator[HFTensor]:
    C, R, W = config.kv_latent_dim, config.rope_head_dim, config.value_head_dim
    assert C is not None
    assert R is not None
    assert W is not None
    D, N, H = config.embed_dim, config.num_heads, config.head_dim

    def param(field: str) -> ParamSlice:
        return ParamSlice(f"{path}/{field}", (layer,))

    query_dim, name = D, f"{hf_name}.q_proj.weight"
    if config.query_latent_dim is not None:
        query_dim, name = config.query_latent_dim, f"{hf_name}.q_b_proj.weight"
        yield transposed(f"{hf_name}.q_a_proj.weight", param("query_down"), (D, query_dim))
        norm = param("query_latent_norm/scale")
        yield reshaped(f"{hf_name}.q_a_layernorm.weight", norm, (query_dim,))
    query = transposed(name, param("query"), (query_dim, N, H + R))
    yield reordered(query, _deinterleaved(N, H, R))
    down = transposed("", param("down"), (D, C))
    rotary = reordered(transposed("", param("key_rotary"), (D, R)), _deinterleaved(1, 0, R))
    yield concatenated(f"{hf_name}.kv_a_proj_with_mqa.weight", (down, rotary))
    yield reshaped(f"{hf_name}.kv_a_layernorm.weight", param("latent_norm/scale"), (C,))
    key = transposed("", param("key"), (C, N, H))
    value = transposed("", param("value"), (C, N, W))
    both = concatenated(f"{hf_name}.kv_b_proj.weight", (key, value))
    yield reordered(both, _keys_then_values(N, H, W))
    yield transposed(f"{hf_name}.o_proj.weight", param("out"), (N, W, D), 2)


def _tensors(config: ModelConfig) -> Iterator[HFTensor]:
    E, D, num_dense = config.num_experts, config.embed_dim, config.num_dense_layers
    assert E is not None
    yield from embed_and_head(config)
    for i in range(config.num_layers):
        hf_name = f"model.layers.{i}"
        stack, number = ("leading_layers", i) if i < num_dense else ("layers", i - num_dense)
        yield from norms(config, stack, hf_name, number)
        yield from _attention(config, f"{stack}/attention", f"{hf_name}.self_attn", number)
        mlp = f"{hf_name}.mlp"
        if i < num_dense:
            dim = config.mlp_dim
            yield from gated_mlp(config, "leading_layers/mlp", mlp, (number,), dim)
            continue
        yield transposed(f"{mlp}.gate.weight", ParamSlice("layers/mlp/router", (number,)), (D, E))
        bias = ParamSlice("layers/mlp/router_bias", (number,))
        yield reshaped(f"{mlp}.gate.e_score_correction_bias", bias, (E,))
        dim = config.expert_width
        for e in range(E):
            expert = f"{mlp}.experts.{e}"
            yield from gated_mlp(config, "layers/mlp", expert, (number, e), dim)
        if config.num_shared_experts:
            dim *= config.num_shared_experts
            shared = f"{mlp}.shared_experts"
            yield from gated_mlp(config, "layers/mlp/shared", shared, (number,), dim)


DEEPSEEK_V3 = Family(
    model_type="deepseek_v3",
    read_config=_read,
    write_config=_write,
    tensors=_tensors,
    ignored_suffixes=("rotary_emb.inv_freq",),
    tied_tensors={"lm_head.weight": "model.embed_tokens.weight"},
)
