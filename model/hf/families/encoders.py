"""Encoders: BERT and ModernBERT."""

from collections.abc import Iterator, Set
from typing import Any

from configs.model import ModelConfig, head_of
from model.hf.family import (
    GATED_MLPS,
    UNGATED_MLPS,
    Family,
    HFConfig,
    read_layer_types,
    read_mlp,
    read_rope,
    require_values,
    write_mlp,
)
from model.hf.tensors import HFTensor, ParamSlice, concatenated, padded, reshaped, transposed


def linear(
    path: str, hf_name: str, index: tuple[int, ...], shape: tuple[int, ...], num_in: int = 1
) -> Iterator[HFTensor]:
    """Yields the matrix of a linear layer and its bias."""
    yield transposed(f"{hf_name}.weight", ParamSlice(path, index), shape, num_in)
    yield reshaped(f"{hf_name}.bias", ParamSlice(f"{path}_bias", index), shape[num_in:])


def layer_norm(
    path: str, hf_name: str, index: tuple[int, ...], dim: int, *, bias: bool = True
) -> Iterator[HFTensor]:
    """Yields the scale of a layer norm, and its bias."""
    yield reshaped(f"{hf_name}.weight", ParamSlice(f"{path}/scale", index), (dim,))
    if bias:
        yield reshaped(f"{hf_name}.bias", ParamSlice(f"{path}/bias", index), (dim,))


def _read_bert(hf_config: HFConfig, names: Set[str]) -> dict[str, Any]:
    require_values(hf_config, position_embedding_type="absolute", is_decoder=False)
    require_values(hf_config, tie_word_embeddings=True)
    D, N = hf_config["hidden_size"], hf_config["num_attention_heads"]
    classes = hf_config.get("architectures") or ["BertForPreTraining"]
    has_head = any(name.startswith("cls.predictions.") for name in names)
    has_next = any(name.startswith("cls.seq_relationship.") for name in names)
    has_pooler = any(name.startswith("bert.pooler.") for name in names)
    if not names:
        has_pooler = classes[0] in ("BertForPreTraining", "BertModel")
        has_head = classes[0] in ("BertForPreTraining", "BertForMaskedLM")
        has_next = classes[0] == "BertForPreTraining"
    return {
        "architecture": "encoder",
        "num_layers": hf_config["num_hidden_layers"],
        "embed_dim": D,
        "num_heads": N,
        "num_kv_heads": N,
        "head_dim": D // N,
        "mlp_dim": hf_config["intermediate_size"],
        "vocab_size": hf_config["vocab_size"],
        "norm": "layer",
        "norm_placement": "post",
        "norm_epsilon": hf_config.get("layer_norm_eps", 1e-12),
        "position": "learned",
        "num_positions": hf_config["max_position_embeddings"],
        "num_token_types": hf_config.get("type_vocab_size", 2),
        "embed_norm": True,
        "mlp": read_mlp(hf_config, "hidden_act", UNGATED_MLPS),
        "bias": True,
        "head": head_of(
            head_bias=has_head,
            head_transform=has_head,
            pooler=has_pooler,
            next_sentence=has_next,
        ),
    }


def _write_bert(config: ModelConfig) -> dict[str, Any]:
    without_next = "BertForMaskedLM" if config.head_transform else "BertModel"
    return {
        "architectures": ["BertForPreTraining" if config.next_sentence else without_next],
        "model_type": "bert",
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "vocab_size": config.num_tokens,
        "layer_norm_eps": config.norm_epsilon,
        "max_position_embeddings": config.num_positions,
        "type_vocab_size": config.num_token_types,
        "hidden_act": write_mlp(config.mlp, UNGATED_MLPS),
        "tie_word_embeddings": True,
    }


def _bert_tensors(config: ModelConfig) -> Iterator[HFTensor]:
    V, P, D, F = config.num_tokens, config.num_padded_tokens, config.embed_dim, config.mlp_dim
    N, H = config.num_heads, config.head_dim
    embeddings = "bert.embeddings"
    table = reshaped("", ParamSlice("embedding"), (P, D), (P, D))
    yield padded(f"{embeddings}.word_embeddings.weight", table, V, P)
    for path, hf_name, num in (
        ("positions", "position_embeddings", config.num_positions),
        ("types", "token_type_embeddings", config.num_token_types),
    ):
        assert num is not None
        yield reshaped(f"{embeddings}.{hf_name}.weight", ParamSlice(path), (num, D), (num, D))
    yield from layer_norm("embed_norm", f"{embeddings}.LayerNorm", (), D)
    for i in range(config.num_layers):
        hf_name, index = f"bert.encoder.layer.{i}", (i,)
        for field in ("query", "key", "value"):
            path = f"layers/attention/{field}"
            yield from linear(path, f"{hf_name}.attention.self.{field}", index, (D, N, H))
        out = f"{hf_name}.attention.output"
        yield from linear("layers/attention/out", f"{out}.dense", index, (N, H, D), 2)
        yield from layer_norm("layers/attention_out_norm", f"{out}.LayerNorm", index, D)
        yield from linear("layers/mlp/up", f"{hf_name}.intermediate.dense", index, (D, F))
        yield from linear("layers/mlp/down", f"{hf_name}.output.dense", index, (F, D))
        yield from layer_norm("layers/mlp_out_norm", f"{hf_name}.output.LayerNorm", index, D)
    if config.pooler:
        yield from linear("pooler", "bert.pooler.dense", (), (D, D))
    if config.next_sentence:
        yield from linear("next_sentence", "cls.seq_relationship", (), (D, 2))
    if config.head_transform:
        transform = "cls.predictions.transform"
        yield from linear("transform", f"{transform}.dense", (), (D, D))
        yield from layer_norm("transform_norm", f"{transform}.LayerNorm", (), D)
        bias = reshaped("", ParamSlice("head_bias"), (P,))
        yield padded("cls.predictions.bias", bias, V, P)


def _bert_canonical_name(name: str) -> str:
    """Adds the prefix that headless checkpoints lack; renames the norms of the oldest ones."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    name = name.replace("LayerNorm.beta", "LayerNorm.bias")
    return name if name.startswith(("bert.", "cls.")) else f"bert.{name}"


def _read_modernbert(hf_config: HFConfig, names: Set[str]) -> dict[str, Any]:
    require_values(hf_config, attention_bias=False, mlp_bias=False, norm_bias=False)
    require_values(hf_config, classifier_bias=False, decoder_bias=True, tie_word_embeddings=True)
    require_values(hf_config, classifier_activation="gelu")
    D, N = hf_config["hidden_size"], hf_config["num_attention_heads"]
    rope: dict[str, Any] = {
        "rope_theta": float(hf_config.get("global_rope_theta", 160_000.0)),
        "rope_theta_local": float(hf_config.get("local_rope_theta") or 10_000.0),
    }
    if "rope_parameters" in hf_config:
        rope = read_rope(hf_config)
    every, activation = hf_config.get("global_attn_every_n_layers", 3), "hidden_activation"
    # local_attention counts both sides, without the token itself.
    window = hf_config.get("local_attention", 128) // 2 + 1
    return {
        "architecture": "encoder",
        "num_layers": hf_config["num_hidden_layers"],
        "embed_dim": D,
        "num_heads": N,
        "num_kv_heads": N,
        "head_dim": D // N,
        "mlp_dim": hf_config["intermediate_size"],
        "vocab_size": hf_config["vocab_size"],
        "norm": "layer",
        "norm_epsilon": hf_config.get("norm_eps", 1e-5),
        "first_norm": False,
        "embed_norm": True,
        "mlp": read_mlp({activation: "gelu", **hf_config}, activation, GATED_MLPS),
        "head": "mlm",
        **rope,
        **read_layer_types({**hf_config, "sliding_window": window}, lambda i: i % every != 0),
    }


def _write_modernbert(config: ModelConfig) -> dict[str, Any]:
    pattern = config.attention_pattern
    return {
        "architectures": ["ModernBertForMaskedLM"],
        "model_type": "modernbert",
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "vocab_size": config.num_tokens,
        "norm_eps": config.norm_epsilon,
        "global_rope_theta": config.rope_theta,
        "local_rope_theta": config.rope_theta_local or config.rope_theta,
        "global_attn_every_n_layers": len(pattern) if pattern else 1,
        "local_attention": 2 * ((config.attention_window or 1) - 1),
        "hidden_activation": write_mlp(config.mlp, GATED_MLPS),
        "attention_bias": False,
        "mlp_bias": False,
        "norm_bias": False,
        "classifier_bias": False,
        "decoder_bias": True,
        "tie_word_embeddings": True,
    }


def _modernbert_tensors(config: ModelConfig) -> Iterator[HFTensor]:
    V, P, D, F = config.num_tokens, config.num_padded_tokens, config.embed_dim, config.mlp_dim
    N, H = config.num_heads, config.head_dim
    table = reshaped("", ParamSlice("embedding"), (P, D), (P, D))
    yield padded("model.embeddings.tok_embeddings.weight", table, V, P)
    yield from layer_norm("embed_norm", "model.embeddings.norm", (), D, bias=False)
    yield from layer_norm("norm", "model.final_norm", (), D, bias=False)
    for i in range(config.num_layers):
        hf_name = f"model.layers.{i}"
        stack, index = ("leading_layers", (0,)) if i == 0 else ("layers", (i - 1,))
        if i > 0:
            yield from layer_norm(
                f"{stack}/attention_norm", f"{hf_name}.attn_norm", index, D, bias=False
            )
        params = [ParamSlice(f"{stack}/attention/{x}", index) for x in ("query", "key", "value")]
        heads = [transposed("", param, (D, N, H)) for param in params]
        yield concatenated(f"{hf_name}.attn.Wqkv.weight", heads)
        out = ParamSlice(f"{stack}/attention/out", index)
        yield transposed(f"{hf_name}.attn.Wo.weight", out, (N, H, D), 2)
        yield from layer_norm(f"{stack}/mlp_norm", f"{hf_name}.mlp_norm", index, D, bias=False)
        halves = [
            transposed("", ParamSlice(f"{stack}/mlp/{x}", index), (D, F)) for x in ("gate", "up")
        ]
        yield concatenated(f"{hf_name}.mlp.Wi.weight", halves)
        yield transposed(f"{hf_name}.mlp.Wo.weight", ParamSlice(f"{stack}/mlp/down", index), (F, D))
    yield transposed("head.dense.weight", ParamSlice("transform"), (D, D))
    yield from layer_norm("transform_norm", "head.norm", (), D, bias=False)
    yield padded("decoder.bias", reshaped("", ParamSlice("head_bias"), (P,)), V, P)


BERT = Family(
    model_type="bert",
    read_config=_read_bert,
    write_config=_write_bert,
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
    read_config=_read_modernbert,
    write_config=_write_modernbert,
    tensors=_modernbert_tensors,
    ignored_suffixes=("rotary_emb.inv_freq",),
    tied_tensors={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
)
