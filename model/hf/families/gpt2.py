"""GPT-2: learned positions, layer norms, matrices that are not transposed."""

from collections.abc import Iterator, Set
from typing import Any

from configs.model import ModelConfig
from model.hf.family import UNGATED, Family, Said, kind_of, name_of, refuse
from model.hf.tensors import Part, Tensor, padded, same, together, transposed


def _read(said: Said, names: Set[str]) -> dict[str, Any]:
    refuse(said, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    D, N = said["n_embd"], said["n_head"]
    return {
        "num_layers": said["n_layer"],
        "embed_dim": D,
        "num_heads": N,
        "num_kv_heads": N,
        "head_dim": D // N,
        "mlp_dim": said.get("n_inner") or 4 * D,
        "vocab_size": said["vocab_size"],
        "norm": "layer",
        "norm_epsilon": said.get("layer_norm_epsilon", 1e-5),
        "position": "learned",
        "num_positions": said["n_positions"],
        "mlp": kind_of({"activation_function": "gelu_new", **said}, "activation_function", UNGATED),
        "bias": True,
        "tied_embeddings": said.get("tie_word_embeddings", "lm_head.weight" not in names),
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
        "activation_function": name_of(config.mlp, UNGATED),
        "tie_word_embeddings": config.tied_embeddings,
    }


def _tensors(config: ModelConfig) -> Iterator[Tensor]:
    V, P, D, F = config.num_tokens, config.num_padded_tokens, config.embed_dim, config.mlp_dim
    N, H = config.num_heads, config.head_dim

    def norm(ours: str, theirs: str, index: tuple[int, ...] = ()) -> Iterator[Tensor]:
        yield same(f"{theirs}.weight", Part(f"{ours}/scale", index), (D,))
        yield same(f"{theirs}.bias", Part(f"{ours}/bias", index), (D,))

    name = "transformer.wte.weight"
    yield padded(name, same(name, Part("embedding"), (P, D), (P, D)), V, P)
    shape = (config.num_positions or 0, D)
    yield same("transformer.wpe.weight", Part("positions"), shape, shape)
    yield from norm("norm", "transformer.ln_f")
    if not config.tied_embeddings:
        yield padded("lm_head.weight", transposed("", Part("head"), (D, P)), V, P)
    for i in range(config.num_layers):
        theirs = f"transformer.h.{i}"

        def part(field: str, number: int = i) -> Part:
            return Part(f"layers/{field}", (number,))

        yield from norm("layers/attention_norm", f"{theirs}.ln_1", (i,))
        yield from norm("layers/mlp_norm", f"{theirs}.ln_2", (i,))
        heads = ("query", "key", "value")
        kernels = [same("", part(f"attention/{x}"), (D, N, H), (D, N * H)) for x in heads]
        yield together(f"{theirs}.attn.c_attn.weight", kernels, axis=1)
        biases = [same("", part(f"attention/{x}_bias"), (N, H)) for x in heads]
        yield together(f"{theirs}.attn.c_attn.bias", biases)
        out = f"{theirs}.attn.c_proj"
        yield same(f"{out}.weight", part("attention/out"), (N, H, D), (N * H, D))
        yield same(f"{out}.bias", part("attention/out_bias"), (D,))
        for field, name, shape in (("up", "c_fc", (D, F)), ("down", "c_proj", (F, D))):
            yield same(f"{theirs}.mlp.{name}.weight", part(f"mlp/{field}"), shape, shape)
            yield same(f"{theirs}.mlp.{name}.bias", part(f"mlp/{field}_bias"), shape[1:])


def _canonical(name: str) -> str:
    """Names of the first published checkpoints lack the model's own."""
    return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"


GPT2 = Family(
    model_type="gpt2",
    read=_read,
    write=_write,
    tensors=_tensors,
    canonical=_canonical,
    ignored=(".attn.bias", ".attn.masked_bias"),
    copies={"lm_head.weight": "transformer.wte.weight"},
)
