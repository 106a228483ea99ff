"""DeepSeek-V3: latent attention, experts in groups beside shared ones, first layers without."""

from collections.abc import Iterator, Set
from typing import Any

import numpy as np

from configs.model import ModelConfig
from model.hf.families.decoders import ends, gated_mlp, norms, read_common, write_common
from model.hf.family import Family, Said, mscale, refuse
from model.hf.tensors import Part, Tensor, reordered, same, together, transposed


def _read(said: Said, names: Set[str]) -> dict[str, Any]:
    refuse(
        said, rope_interleave=True, moe_layer_freq=1, topk_method="noaux_tc", scoring_func="sigmoid"
    )
    rope = {**(said.get("rope_scaling") or {}), **(said.get("rope_parameters") or {})}
    width = said["qk_nope_head_dim"] + said["qk_rope_head_dim"]
    scale = width**-0.5
    if rope.get("mscale_all_dim"):
        scale *= mscale(rope["factor"], rope["mscale_all_dim"]) ** 2
    return {
        **read_common({**said, "head_dim": said["qk_nope_head_dim"]}, names),
        "attention": "latent",
        "query_latent_dim": said.get("q_lora_rank"),
        "kv_latent_dim": said["kv_lora_rank"],
        "rope_head_dim": said["qk_rope_head_dim"],
        "value_head_dim": said["v_head_dim"],
        "num_kv_heads": said["num_attention_heads"],
        "attention_scale": scale,
        "num_experts": said["n_routed_experts"],
        "num_active_experts": said["num_experts_per_tok"],
        "expert_dim": said["moe_intermediate_size"],
        "num_shared_experts": said.get("n_shared_experts") or 0,
        "num_dense_layers": said["first_k_dense_replace"],
        "router": "sigmoid",
        "router_bias": True,
        "router_normalized": said["norm_topk_prob"],
        "router_scale": float(said["routed_scaling_factor"]),
        "num_expert_groups": said["n_group"],
        "num_active_groups": said["topk_group"],
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    said = write_common(config)
    rope = said.get("rope_scaling")
    if rope is not None and config.rope_attention_factor == 1.0:
        # The published way: scores, and not queries and keys, grow with the factor.
        del rope["attention_factor"]
        rope |= {"mscale": 1.0, "mscale_all_dim": 1.0}
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        **said,
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


def _interleaved(num_heads: int, num_plain: int, num_rotated: int) -> np.ndarray:
    """Returns where our rows of heads are in theirs, whose rotated channels stand in pairs."""
    pairs = np.arange(num_rotated).reshape(-1, 2).T.reshape(-1)
    head = np.concatenate((np.arange(num_plain), num_plain + pairs))
    width = num_plain + num_rotated
    return (np.arange(num_heads)[:, None] * width + head).reshape(-1)


def _keys_then_values(num_heads: int, key_dim: int, value_dim: int) -> np.ndarray:
    """Returns the rows of all keys and then of all values, where theirs take turns by head."""
    rows = np.arange(num_heads * (key_dim + value_dim)).reshape(num_heads, -1)
    return np.concatenate((rows[:, :key_dim].reshape(-1), rows[:, key_dim:].reshape(-1)))


def _attention(config: ModelConfig, ours: str, theirs: str, number: int) -> Iterator[Tensor]:
    C, R, W = config.kv_latent_dim, config.rope_head_dim, config.value_head_dim
    assert C is not None
    assert R is not None
    assert W is not None
    D, N, H = config.embed_dim, config.num_heads, config.head_dim

    def part(field: str) -> Part:
        return Part(f"{ours}/{field}", (number,))

    query_dim, name = D, f"{theirs}.q_proj.weight"
    if config.query_latent_dim is not None:
        query_dim, name = config.query_latent_dim, f"{theirs}.q_b_proj.weight"
        yield transposed(f"{theirs}.q_a_proj.weight", part("query_down"), (D, query_dim))
        yield same(f"{theirs}.q_a_layernorm.weight", part("query_latent_norm/scale"), (query_dim,))
    query = transposed(name, part("query"), (query_dim, N, H + R))
    yield reordered(query, _interleaved(N, H, R))
    down = transposed("", part("down"), (D, C))
    rotary = reordered(transposed("", part("key_rotary"), (D, R)), _interleaved(1, 0, R))
    yield together(f"{theirs}.kv_a_proj_with_mqa.weight", (down, rotary))
    yield same(f"{theirs}.kv_a_layernorm.weight", part("latent_norm/scale"), (C,))
    key = transposed("", part("key"), (C, N, H))
    value = transposed("", part("value"), (C, N, W))
    both = together(f"{theirs}.kv_b_proj.weight", (key, value))
    yield reordered(both, _keys_then_values(N, H, W))
    yield transposed(f"{theirs}.o_proj.weight", part("out"), (N, W, D), 2)


def _tensors(config: ModelConfig) -> Iterator[Tensor]:
    E, D, num_dense = config.num_experts, config.embed_dim, config.num_dense_layers
    assert E is not None
    yield from ends(config)
    for i in range(config.num_layers):
        theirs = f"model.layers.{i}"
        stack, number = ("leading_layers", i) if i < num_dense else ("layers", i - num_dense)
        yield from norms(config, stack, theirs, number)
        yield from _attention(config, f"{stack}/attention", f"{theirs}.self_attn", number)
        mlp = f"{theirs}.mlp"
        if i < num_dense:
            dim = config.mlp_dim
            yield from gated_mlp(config, "leading_layers/mlp", mlp, (number,), dim)
            continue
        yield transposed(f"{mlp}.gate.weight", Part("layers/mlp/router", (number,)), (D, E))
        bias = Part("layers/mlp/router_bias", (number,))
        yield same(f"{mlp}.gate.e_score_correction_bias", bias, (E,))
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
    read=_read,
    write=_write,
    tensors=_tensors,
    ignored=("rotary_emb.inv_freq",),
    copies={"lm_head.weight": "model.embed_tokens.weight"},
)
