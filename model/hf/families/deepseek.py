"""DeepSeek-V3: MLA, grouped and shared experts, leading layers with a dense MLP."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from configs.model import ModelConfig
from model.hf.families.decoders import COMMON, EXPERT_DIM, NUM_ACTIVE_EXPERTS, decoder, tensors
from model.hf.family import HFConfig, Names, Row, fixed_fields, fixed_keys, key, mscale, write_rope
from model.hf.tensors import HFTensor, concatenated, reordered, reshaped, transposed


def _read_attention(hf_config: HFConfig, names: Names) -> dict[str, Any]:
    rope = {**(hf_config.get("rope_scaling") or {}), **(hf_config.get("rope_parameters") or {})}
    scale = (hf_config["qk_nope_head_dim"] + hf_config["qk_rope_head_dim"]) ** -0.5
    if rope.get("mscale_all_dim"):
        scale *= mscale(rope["factor"], rope["mscale_all_dim"]) ** 2
    return {"num_kv_heads": hf_config["num_attention_heads"], "attention_scale": scale}


def _write_attention(config: ModelConfig) -> dict[str, Any]:
    hf_config = write_rope(config)
    rope = hf_config.get("rope_scaling")
    if rope is not None and config.rope_scaling.attention_factor == 1.0:
        # As DeepSeek does: the factor scales attention scores, not queries and keys.
        del rope["attention_factor"]
        rope |= {"mscale": 1.0, "mscale_all_dim": 1.0}
    return {**hf_config, "head_dim": config.rope_head_dim}


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


def _attention(config: ModelConfig, hf_name: str, path: str, layer: int) -> Iterator[HFTensor]:
    C, R, W = config.kv_latent_dim, config.rope_head_dim, config.value_head_dim
    assert C is not None
    assert R is not None
    assert W is not None
    D, N, H = config.embed_dim, config.num_heads, config.head_dim
    index = (layer,)
    query_dim, name = D, f"{hf_name}.q_proj.weight"
    if config.query_latent_dim is not None:
        query_dim, name = config.query_latent_dim, f"{hf_name}.q_b_proj.weight"
        yield transposed(f"{hf_name}.q_a_proj.weight", f"{path}/query_down", index, (D, query_dim))
        norm = f"{path}/query_latent_norm/scale"
        yield reshaped(f"{hf_name}.q_a_layernorm.weight", norm, index, (query_dim,))
    query = transposed(name, f"{path}/query", index, (query_dim, N, H + R))
    yield reordered(query, _deinterleaved(N, H, R))
    down = transposed("", f"{path}/down", index, (D, C))
    rotary = transposed("", f"{path}/key_rotary", index, (D, R))
    both = (down, reordered(rotary, _deinterleaved(1, 0, R)))
    yield concatenated(f"{hf_name}.kv_a_proj_with_mqa.weight", both)
    yield reshaped(f"{hf_name}.kv_a_layernorm.weight", f"{path}/latent_norm/scale", index, (C,))
    key = transposed("", f"{path}/key", index, (C, N, H))
    value = transposed("", f"{path}/value", index, (C, N, W))
    both = concatenated(f"{hf_name}.kv_b_proj.weight", (key, value))
    yield reordered(both, _keys_then_values(N, H, W))
    yield transposed(f"{hf_name}.o_proj.weight", f"{path}/out", index, (N, W, D), 2)


DEEPSEEK_V3 = decoder(
    model_type="deepseek_v3",
    hf_class="DeepseekV3ForCausalLM",
    rows=(
        *COMMON,
        fixed_fields(attention="mla", router="sigmoid", router_bias=True),
        Row(_read_attention, _write_attention),
        key("q_lora_rank", "query_latent_dim", None),
        key("kv_lora_rank", "kv_latent_dim"),
        key("qk_rope_head_dim", "rope_head_dim"),
        key("qk_nope_head_dim", "head_dim"),
        key("v_head_dim", "value_head_dim"),
        key("n_routed_experts", "num_experts"),
        NUM_ACTIVE_EXPERTS,
        EXPERT_DIM,
        key("n_shared_experts", "num_shared_experts", 0),
        key("first_k_dense_replace", "num_dense_layers"),
        key("norm_topk_prob", "router_normalized"),
        key("routed_scaling_factor", "router_scale", convert=float),
        key("n_group", "num_expert_groups"),
        key("topk_group", "num_active_groups"),
        fixed_keys(topk_method="noaux_tc", scoring_func="sigmoid"),
        fixed_keys(moe_layer_freq=1, rope_interleave=True),
    ),
    tensors=partial(tensors, attention=_attention),
)
