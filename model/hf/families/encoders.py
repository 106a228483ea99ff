"""Encoders: BERT and ModernBERT."""

from collections.abc import Iterator, Set
from typing import Any

from configs.model import ModelConfig
from model.hf.family import (
    GATED,
    UNGATED,
    Family,
    Said,
    kind_of,
    name_of,
    read_layer_types,
    read_rope,
    refuse,
)
from model.hf.tensors import Part, Tensor, padded, same, together, transposed


def linear(
    ours: str, theirs: str, index: tuple[int, ...], shape: tuple[int, ...], num_in: int = 1
) -> Iterator[Tensor]:
    """Yields a matrix and its bias."""
    yield transposed(f"{theirs}.weight", Part(ours, index), shape, num_in)
    yield same(f"{theirs}.bias", Part(f"{ours}_bias", index), shape[num_in:])


def layer_norm(
    ours: str, theirs: str, index: tuple[int, ...], dim: int, *, bias: bool = True
) -> Iterator[Tensor]:
    """Yields a layer norm."""
    yield same(f"{theirs}.weight", Part(f"{ours}/scale", index), (dim,))
    if bias:
        yield same(f"{theirs}.bias", Part(f"{ours}/bias", index), (dim,))


def _read_bert(said: Said, names: Set[str]) -> dict[str, Any]:
    refuse(said, position_embedding_type="absolute", is_decoder=False, tie_word_embeddings=True)
    D, N = said["hidden_size"], said["num_attention_heads"]
    kinds = said.get("architectures") or ["BertForPreTraining"]
    has_head = any(name.startswith("cls.predictions.") for name in names)
    has_next = any(name.startswith("cls.seq_relationship.") for name in names)
    has_pooler = any(name.startswith("bert.pooler.") for name in names)
    if not names:
        has_pooler = kinds[0] in ("BertForPreTraining", "BertModel")
        has_head = kinds[0] in ("BertForPreTraining", "BertForMaskedLM")
        has_next = kinds[0] == "BertForPreTraining"
    return {
        "architecture": "encoder",
        "num_layers": said["num_hidden_layers"],
        "embed_dim": D,
        "num_heads": N,
        "num_kv_heads": N,
        "head_dim": D // N,
        "mlp_dim": said["intermediate_size"],
        "vocab_size": said["vocab_size"],
        "norm": "layer",
        "norm_place": "residual",
        "norm_epsilon": said.get("layer_norm_eps", 1e-12),
        "position": "learned",
        "num_positions": said["max_position_embeddings"],
        "num_token_types": said.get("type_vocab_size", 2),
        "embed_norm": True,
        "mlp": kind_of(said, "hidden_act", UNGATED),
        "bias": True,
        "head_transform": has_head,
        "head_bias": has_head,
        "pooler": has_pooler,
        "next_sentence": has_next,
    }


def _write_bert(config: ModelConfig) -> dict[str, Any]:
    kind = "BertForMaskedLM" if config.head_transform else "BertModel"
    return {
        "architectures": ["BertForPreTraining" if config.next_sentence else kind],
        "model_type": "bert",
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "vocab_size": config.num_tokens,
        "layer_norm_eps": config.norm_epsilon,
        "max_position_embeddings": config.num_positions,
        "type_vocab_size": config.num_token_types,
        "hidden_act": name_of(config.mlp, UNGATED),
        "tie_word_embeddings": True,
    }


def _bert_tensors(config: ModelConfig) -> Iterator[Tensor]:
    V, P, D, F = config.num_tokens, config.num_padded_tokens, config.embed_dim, config.mlp_dim
    N, H = config.num_heads, config.head_dim
    embeddings = "bert.embeddings"
    words = same("", Part("embedding"), (P, D), (P, D))
    yield padded(f"{embeddings}.word_embeddings.weight", words, V, P)
    for ours, theirs, num in (
        ("positions", "position_embeddings", config.num_positions),
        ("types", "token_type_embeddings", config.num_token_types),
    ):
        assert num is not None
        yield same(f"{embeddings}.{theirs}.weight", Part(ours), (num, D), (num, D))
    yield from layer_norm("embed_norm", f"{embeddings}.LayerNorm", (), D)
    for i in range(config.num_layers):
        theirs, index = f"bert.encoder.layer.{i}", (i,)
        for field in ("query", "key", "value"):
            ours = f"layers/attention/{field}"
            yield from linear(ours, f"{theirs}.attention.self.{field}", index, (D, N, H))
        out = f"{theirs}.attention.output"
        yield from linear("layers/attention/out", f"{out}.dense", index, (N, H, D), 2)
        yield from layer_norm("layers/attention_out_norm", f"{out}.LayerNorm", index, D)
        yield from linear("layers/mlp/up", f"{theirs}.intermediate.dense", index, (D, F))
        yield from linear("layers/mlp/down", f"{theirs}.output.dense", index, (F, D))
        yield from layer_norm("layers/mlp_out_norm", f"{theirs}.output.LayerNorm", index, D)
    if config.pooler:
        yield from linear("pooler", "bert.pooler.dense", (), (D, D))
    if config.next_sentence:
        yield from linear("next_sentence", "cls.seq_relationship", (), (D, 2))
    if config.head_transform:
        transform = "cls.predictions.transform"
        yield from linear("transform", f"{transform}.dense", (), (D, D))
        yield from layer_norm("transform_norm", f"{transform}.LayerNorm", (), D)
        bias = same("", Part("head_bias"), (P,))
        yield padded("cls.predictions.bias", bias, V, P)


def _bert_canonical(name: str) -> str:
    """Encoders without heads lack the model's own name; the oldest have other ones for norms."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    name = name.replace("LayerNorm.beta", "LayerNorm.bias")
    return name if name.startswith(("bert.", "cls.")) else f"bert.{name}"


def _read_modernbert(said: Said, names: Set[str]) -> dict[str, Any]:
    refuse(said, attention_bias=False, mlp_bias=False, norm_bias=False, classifier_bias=False)
    refuse(said, tie_word_embeddings=True, decoder_bias=True, classifier_activation="gelu")
    D, N = said["hidden_size"], said["num_attention_heads"]
    rope: dict[str, Any] = {
        "rope_theta": float(said.get("global_rope_theta", 160_000.0)),
        "rope_theta_local": float(said.get("local_rope_theta") or 10_000.0),
    }
    if "rope_parameters" in said:
        rope = read_rope(said)
    every = said.get("global_attn_every_n_layers", 3)
    # A token sees so many to each side, itself not counted.
    window = said.get("local_attention", 128) // 2 + 1
    return {
        "architecture": "encoder",
        "num_layers": said["num_hidden_layers"],
        "embed_dim": D,
        "num_heads": N,
        "num_kv_heads": N,
        "head_dim": D // N,
        "mlp_dim": said["intermediate_size"],
        "vocab_size": said["vocab_size"],
        "norm": "layer",
        "norm_epsilon": said.get("norm_eps", 1e-5),
        "first_norm": False,
        "embed_norm": True,
        "mlp": kind_of({"hidden_activation": "gelu", **said}, "hidden_activation", GATED),
        "head_transform": True,
        "head_bias": True,
        **rope,
        **read_layer_types({**said, "sliding_window": window}, lambda i: i % every != 0),
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
        "hidden_activation": name_of(config.mlp, GATED),
        "attention_bias": False,
        "mlp_bias": False,
        "norm_bias": False,
        "classifier_bias": False,
        "decoder_bias": True,
        "tie_word_embeddings": True,
    }


def _modernbert_tensors(config: ModelConfig) -> Iterator[Tensor]:
    V, P, D, F = config.num_tokens, config.num_padded_tokens, config.embed_dim, config.mlp_dim
    N, H = config.num_heads, config.head_dim
    words = same("", Part("embedding"), (P, D), (P, D))
    yield padded("model.embeddings.tok_embeddings.weight", words, V, P)
    yield from layer_norm("embed_norm", "model.embeddings.norm", (), D, bias=False)
    yield from layer_norm("norm", "model.final_norm", (), D, bias=False)
    for i in range(config.num_layers):
        theirs = f"model.layers.{i}"
        stack, index = ("leading_layers", (0,)) if i == 0 else ("layers", (i - 1,))
        if i > 0:
            yield from layer_norm(
                f"{stack}/attention_norm", f"{theirs}.attn_norm", index, D, bias=False
            )
        parts = [Part(f"{stack}/attention/{x}", index) for x in ("query", "key", "value")]
        heads = [transposed("", part, (D, N, H)) for part in parts]
        yield together(f"{theirs}.attn.Wqkv.weight", heads)
        out = Part(f"{stack}/attention/out", index)
        yield transposed(f"{theirs}.attn.Wo.weight", out, (N, H, D), 2)
        yield from layer_norm(f"{stack}/mlp_norm", f"{theirs}.mlp_norm", index, D, bias=False)
        halves = [transposed("", Part(f"{stack}/mlp/{x}", index), (D, F)) for x in ("gate", "up")]
        yield together(f"{theirs}.mlp.Wi.weight", halves)
        yield transposed(f"{theirs}.mlp.Wo.weight", Part(f"{stack}/mlp/down", index), (F, D))
    yield transposed("head.dense.weight", Part("transform"), (D, D))
    yield from layer_norm("transform_norm", "head.norm", (), D, bias=False)
    yield padded("decoder.bias", same("", Part("head_bias"), (P,)), V, P)


BERT = Family(
    model_type="bert",
    read=_read_bert,
    write=_write_bert,
    tensors=_bert_tensors,
    canonical=_bert_canonical,
    ignored=("embeddings.position_ids", "embeddings.token_type_ids"),
    copies={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
)
MODERNBERT = Family(
    model_type="modernbert",
    read=_read_modernbert,
    write=_write_modernbert,
    tensors=_modernbert_tensors,
    ignored=("rotary_emb.inv_freq",),
    copies={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
)
