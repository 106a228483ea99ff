"""GPT-2: learned positions, layer norms, matrices stored as [in, out]."""

from collections.abc import Iterator, Set
from typing import Any

from configs.model import ModelConfig
from model.hf.family import UNGATED_MLPS, Family, HFConfig, read_mlp, require_values, write_mlp
from model.hf.tensors import HFTensor, ParamSlice, concatenated, padded, reshaped, transposed


def _read(hf_config: HFConfig, names: Set[str]) -> dict[str, Any]:
    require_values(hf_config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    D, N = hf_config["n_embd"], hf_config["n_head"]
    return {
        "num_layers": hf_config["n_layer"],
        "embed_dim": D,
        "num_heads": N,
        "num_kv_heads": N,
        "head_dim": D // N,
        "mlp_dim": hf_config.get("n_inner") or 4 * D,
        "vocab_size": hf_config["vocab_size"],
        "norm": "layer",
        "norm_epsilon": hf_config.get("layer_norm_epsilon", 1e-5),
        "position": "learned",
        "num_positions": hf_config["n_positions"],
        "mlp": read_mlp(
            {"activation_function": "gelu_new", **hf_config}, "activation_function", UNGATED_MLPS
        ),
        "bias": True,
        "tied_embeddings": hf_config.get("tie_word_embeddings", "lm_head.weight" not in names),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_layer": config.num_layers,
        "n_embd": config.embed_dim,
        "n_head": config.num_heads,
        "n_inner": config.mlp_dim,
        "vocab_size": config.num_tokens,
        "layer_norm_epsilon": config.norm_epsilon,
        "n_positions": config.num_positions,
        "activation_function": write_mlp(config.mlp, UNGATED_MLPS),
        "tie_word_embeddings": config.tied_embeddings,
    }


def _tensors(config: ModelConfig) -> Iterator[HFTensor]:
    V, P, D, F = config.num_tokens, config.num_padded_tokens, config.embed_dim, config.mlp_dim
    N, H = config.num_heads, config.head_dim

    def norm(path: str, hf_name: str, index: tuple[int, ...] = ()) -> Iterator[HFTensor]:
        yield reshaped(f"{hf_name}.weight", ParamSlice(f"{path}/scale", index), (D,))
        yield reshaped(f"{hf_name}.bias", ParamSlice(f"{path}/bias", index), (D,))

    name = "transformer.wte.weight"
    yield padded(name, reshaped(name, ParamSlice("embedding"), (P, D), (P, D)), V, P)
    shape = (config.num_positions or 0, D)
    yield reshaped("transformer.wpe.weight", ParamSlice("positions"), shape, shape)
    yield from norm("norm", "transformer.ln_f")
    if not config.tied_embeddings:
        yield padded("lm_head.weight", transposed("", ParamSlice("head"), (D, P)), V, P)
    for i in range(config.num_layers):
        hf_name = f"transformer.h.{i}"

        def param(field: str, layer: int = i) -> ParamSlice:
            return ParamSlice(f"layers/{field}", (layer,))

        yield from norm("layers/attention_norm", f"{hf_name}.ln_1", (i,))
        yield from norm("layers/mlp_norm", f"{hf_name}.ln_2", (i,))
        heads = ("query", "key", "value")
        kernels = [reshaped("", param(f"attention/{x}"), (D, N, H), (D, N * H)) for x in heads]
        yield concatenated(f"{hf_name}.attn.c_attn.weight", kernels, axis=1)
        biases = [reshaped("", param(f"attention/{x}_bias"), (N, H)) for x in heads]
        yield concatenated(f"{hf_name}.attn.c_attn.bias", biases)
        out = f"{hf_name}.attn.c_proj"
        yield reshaped(f"{out}.weight", param("attention/out"), (N, H, D), (N * H, D))
        yield reshaped(f"{out}.bias", param("attention/out_bias"), (D,))
        for field, name, shape in (("up", "c_fc", (D, F)), ("down", "c_proj", (F, D))):
            yield reshaped(f"{hf_name}.mlp.{name}.weight", param(f"mlp/{field}"), shape, shape)
            yield reshaped(f"{hf_name}.mlp.{name}.bias", param(f"mlp/{field}_bias"), shape[1:])


def _canonical_name(name: str) -> str:
    """Adds the prefix that the first checkpoints lack."""
    return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"


GPT2 = Family(
    model_type="gpt2",
    read_config=_read,
    write_config=_write,
    tensors=_tensors,
    canonical_name=_canonical_name,
    ignored_suffixes=(".attn.bias", ".attn.masked_bias"),
    tied_tensors={"lm_head.weight": "transformer.wte.weight"},
)
