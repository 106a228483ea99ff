"""GPT-2: learned positions, layer norms, matrices stored as [in, out]."""

from collections.abc import Iterator

from configs.model import ModelConfig
from model.hf.families.layers import embedding, head, layer_norm
from model.hf.family import TIED_EMBEDDINGS, UNGATED_MLPS, Family, checked_keys, fixed_fields, key
from model.hf.tensors import HFTensor, concatenated, reshaped


def _tensors(config: ModelConfig) -> Iterator[HFTensor]:
    D, F, N, H = config.embed_dim, config.mlp_dim, config.num_heads, config.head_dim
    yield embedding(config, "transformer.wte.weight")
    shape = (config.num_positions or 0, D)
    yield reshaped("transformer.wpe.weight", "positions", (), shape, shape)
    yield from layer_norm("transformer.ln_f", "norm", (), D)
    yield from head(config)
    for i in range(config.num_layers):
        hf_name, path, index = f"transformer.h.{i}", "layers/attention", (i,)
        yield from layer_norm(f"{hf_name}.ln_1", "layers/attention_norm", index, D)
        yield from layer_norm(f"{hf_name}.ln_2", "layers/mlp_norm", index, D)
        heads = [f"{path}/{field}" for field in ("query", "key", "value")]
        kernels = [reshaped("", head, index, (D, N, H), (D, N * H)) for head in heads]
        yield concatenated(f"{hf_name}.attn.c_attn.weight", kernels, axis=1)
        biases = [reshaped("", f"{head}_bias", index, (N, H)) for head in heads]
        yield concatenated(f"{hf_name}.attn.c_attn.bias", biases)
        out = f"{hf_name}.attn.c_proj"
        yield reshaped(f"{out}.weight", f"{path}/out", index, (N, H, D), (N * H, D))
        yield reshaped(f"{out}.bias", f"{path}/out_bias", index, (D,))
        for field, name, shape in (("up", "c_fc", (D, F)), ("down", "c_proj", (F, D))):
            linear, param = f"{hf_name}.mlp.{name}", f"layers/mlp/{field}"
            yield reshaped(f"{linear}.weight", param, index, shape, shape)
            yield reshaped(f"{linear}.bias", f"{param}_bias", index, shape[1:])


def _canonical_name(name: str) -> str:
    """Adds the prefix that the first checkpoints lack."""
    return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"


GPT2 = Family(
    model_type="gpt2",
    hf_class="GPT2LMHeadModel",
    rows=(
        checked_keys(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False),
        fixed_fields(norm="layer", position="learned", bias=True),
        key("n_layer", "num_layers"),
        key("n_embd", "embed_dim"),
        key("n_head", "num_heads"),
        key("n_inner", "mlp_dim", lambda hf_config, _: 4 * hf_config["n_embd"]),
        key("vocab_size", "vocab_size"),
        key("layer_norm_epsilon", "norm_epsilon", 1e-5),
        key("n_positions", "num_positions"),
        key("activation_function", "mlp", "gelu_new", choices=UNGATED_MLPS),
        TIED_EMBEDDINGS,
    ),
    tensors=_tensors,
    canonical_name=_canonical_name,
    ignored_suffixes=(".attn.bias", ".attn.masked_bias"),
    tied_tensors={"lm_head.weight": "transformer.wte.weight"},
)
