"""Encoders: BERT and ModernBERT."""

from collections.abc import Iterator
from typing import Any

from configs.model import ModelConfig, head_of
from model.hf.families.layers import embedding, head_bias, layer_norm, linear
from model.hf.family import (
    GATED_MLPS,
    LAYERS_AND_HEADS,
    MLP_AND_VOCAB,
    UNGATED_MLPS,
    Family,
    HFConfig,
    Names,
    Row,
    checked_keys,
    fixed_fields,
    fixed_keys,
    key,
    read_layer_types,
    read_rope,
)
from model.hf.tensors import HFTensor, concatenated, reshaped, transposed


def _bert_tensors(config: ModelConfig) -> Iterator[HFTensor]:
    D, F, N, H = config.embed_dim, config.mlp_dim, config.num_heads, config.head_dim
    embeddings = "bert.embeddings"
    yield embedding(config, f"{embeddings}.word_embeddings.weight")
    for path, hf_name, num in (
        ("positions", "position_embeddings", config.num_positions),
        ("types", "token_type_embeddings", config.num_token_types),
    ):
        assert num is not None
        yield reshaped(f"{embeddings}.{hf_name}.weight", path, (), (num, D), (num, D))
    yield from layer_norm(f"{embeddings}.LayerNorm", "embed_norm", (), D)
    for i in range(config.num_layers):
        hf_name, index = f"bert.encoder.layer.{i}", (i,)
        for field in ("query", "key", "value"):
            name = f"{hf_name}.attention.self.{field}"
            yield from linear(name, f"layers/attention/{field}", index, (D, N, H))
        out = f"{hf_name}.attention.output"
        yield from linear(f"{out}.dense", "layers/attention/out", index, (N, H, D), 2)
        yield from layer_norm(f"{out}.LayerNorm", "layers/attention_out_norm", index, D)
        yield from linear(f"{hf_name}.intermediate.dense", "layers/mlp/up", index, (D, F))
        yield from linear(f"{hf_name}.output.dense", "layers/mlp/down", index, (F, D))
        yield from layer_norm(f"{hf_name}.output.LayerNorm", "layers/mlp_out_norm", index, D)
    if config.pooler:
        yield from linear("bert.pooler.dense", "pooler", (), (D, D))
    if config.next_sentence:
        yield from linear("cls.seq_relationship", "next_sentence", (), (D, 2))
    if config.head_transform:
        transform = "cls.predictions.transform"
        yield from linear(f"{transform}.dense", "transform", (), (D, D))
        yield from layer_norm(f"{transform}.LayerNorm", "transform_norm", (), D)
        yield head_bias(config, "cls.predictions.bias")


def _bert_canonical_name(name: str) -> str:
    """Adds the prefix that headless checkpoints lack; renames the norms of the oldest ones."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    name = name.replace("LayerNorm.beta", "LayerNorm.bias")
    return name if name.startswith(("bert.", "cls.")) else f"bert.{name}"


def _read_bert_heads(hf_config: HFConfig, names: Names) -> dict[str, Any]:
    has_head = any(name.startswith("cls.predictions.") for name in names)
    has_next = any(name.startswith("cls.seq_relationship.") for name in names)
    has_pooler = any(name.startswith("bert.pooler.") for name in names)
    if not names:
        hf_class = (hf_config.get("architectures") or ["BertForPreTraining"])[0]
        has_pooler = hf_class in ("BertForPreTraining", "BertModel")
        has_head = hf_class in ("BertForPreTraining", "BertForMaskedLM")
        has_next = hf_class == "BertForPreTraining"
    return {
        "head": head_of(
            head_bias=has_head,
            head_transform=has_head,
            pooler=has_pooler,
            next_sentence=has_next,
        )
    }


def _write_bert_heads(config: ModelConfig) -> dict[str, Any]:
    without_next = "BertForMaskedLM" if config.head_transform else "BertModel"
    return {"architectures": ["BertForPreTraining" if config.next_sentence else without_next]}


def _modernbert_tensors(config: ModelConfig) -> Iterator[HFTensor]:
    D, F, N, H = config.embed_dim, config.mlp_dim, config.num_heads, config.head_dim

    def norm(hf_name: str, path: str, index: tuple[int, ...] = ()) -> HFTensor:
        return reshaped(f"{hf_name}.weight", f"{path}/scale", index, (D,))

    yield embedding(config, "model.embeddings.tok_embeddings.weight")
    yield norm("model.embeddings.norm", "embed_norm")
    yield norm("model.final_norm", "norm")
    for i in range(config.num_layers):
        hf_name = f"model.layers.{i}"
        stack, index = ("leading_layers", (0,)) if i == 0 else ("layers", (i - 1,))
        if i > 0:
            yield norm(f"{hf_name}.attn_norm", f"{stack}/attention_norm", index)
        heads = [
            transposed("", f"{stack}/attention/{field}", index, (D, N, H))
            for field in ("query", "key", "value")
        ]
        yield concatenated(f"{hf_name}.attn.Wqkv.weight", heads)
        yield transposed(f"{hf_name}.attn.Wo.weight", f"{stack}/attention/out", index, (N, H, D), 2)
        yield norm(f"{hf_name}.mlp_norm", f"{stack}/mlp_norm", index)
        halves = [transposed("", f"{stack}/mlp/{field}", index, (D, F)) for field in ("gate", "up")]
        yield concatenated(f"{hf_name}.mlp.Wi.weight", halves)
        yield transposed(f"{hf_name}.mlp.Wo.weight", f"{stack}/mlp/down", index, (F, D))
    yield transposed("head.dense.weight", "transform", (), (D, D))
    yield norm("head.norm", "transform_norm")
    yield head_bias(config, "decoder.bias")


def _read_modernbert_rope(hf_config: HFConfig, names: Names) -> dict[str, Any]:
    if "rope_parameters" in hf_config:
        return read_rope(hf_config, names)
    return {
        "rope_theta": float(hf_config.get("global_rope_theta", 160_000.0)),
        "rope_theta_local": float(hf_config.get("local_rope_theta") or 10_000.0),
    }


def _write_modernbert_rope(config: ModelConfig) -> dict[str, Any]:
    local = config.rope_theta_local or config.rope_theta
    return {"global_rope_theta": config.rope_theta, "local_rope_theta": local}


def _read_modernbert_window(hf_config: HFConfig, names: Names) -> dict[str, Any]:
    every = hf_config.get("global_attn_every_n_layers", 3)
    # local_attention counts both sides, without the token itself.
    window = hf_config.get("local_attention", 128) // 2 + 1
    return read_layer_types({**hf_config, "sliding_window": window}, lambda i: i % every != 0)


def _write_modernbert_window(config: ModelConfig) -> dict[str, Any]:
    return {
        "global_attn_every_n_layers": len(config.attention_pattern) or 1,
        "local_attention": 2 * ((config.attention_window or 1) - 1),
    }


BERT = Family(
    model_type="bert",
    hf_class="BertForPreTraining",
    rows=(
        checked_keys(position_embedding_type="absolute", is_decoder=False),
        fixed_fields(architecture="encoder", norm="layer", norm_placement="post"),
        fixed_fields(position="learned", embed_norm=True, bias=True),
        Row(_read_bert_heads, _write_bert_heads),
        *LAYERS_AND_HEADS,
        *MLP_AND_VOCAB,
        key("layer_norm_eps", "norm_epsilon", 1e-12),
        key("max_position_embeddings", "num_positions"),
        key("type_vocab_size", "num_token_types", 2),
        key("hidden_act", "mlp", choices=UNGATED_MLPS),
        fixed_keys(tie_word_embeddings=True),
    ),
    tensors=_bert_tensors,
    canonical_name=_bert_canonical_name,
    ignored_suffixes=("embeddings.position_ids", "embeddings.token_type_ids"),
    tied_tensors={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
)
MODERNBERT = Family(
    model_type="modernbert",
    hf_class="ModernBertForMaskedLM",
    rows=(
        checked_keys(classifier_activation="gelu"),
        fixed_fields(architecture="encoder", norm="layer", first_norm=False, embed_norm=True),
        fixed_fields(head="mlm"),
        *LAYERS_AND_HEADS,
        *MLP_AND_VOCAB,
        key("norm_eps", "norm_epsilon", 1e-5),
        Row(_read_modernbert_rope, _write_modernbert_rope),
        Row(_read_modernbert_window, _write_modernbert_window),
        key("hidden_activation", "mlp", "gelu", choices=GATED_MLPS),
        fixed_keys(attention_bias=False, mlp_bias=False, norm_bias=False, classifier_bias=False),
        fixed_keys(decoder_bias=True, tie_word_embeddings=True),
    ),
    tensors=_modernbert_tensors,
    ignored_suffixes=("rotary_emb.inv_freq",),
    tied_tensors={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
)
