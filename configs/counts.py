"""How many parameters a model has and how many FLOPs a token costs, from its settings alone.

The convention, which every speed is printed with: N counts the parameters that enter a matmul (the
head, but not the input embedding, positions, norms or biases; of the experts those that compute a
token), without the padding of the vocabulary. `full` is 6N + 12 L d T FLOPs per trained token,
`causal` counts only the keys that come before (half of the attention term, or less in a window; all
of it in an encoder). Beside an encoder a token is one of either text, and costs their mean.
Source: Kaplan et al. 2020, Scaling laws for neural language models, arXiv:2001.08361, table 1;
Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B.
"""

from dataclasses import dataclass
from typing import NamedTuple

from configs.model import ModelConfig
from configs.position import NUM_RELATIVE_BUCKETS


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Parameters of a model, and the FLOPs of training it on one token."""

    total: int
    """All parameters; a tied head counts once."""
    matmul: int
    """Those that enter a matmul: N of the 6N convention. A tied head counts here."""
    flops_full: int
    """Forward and backward of one token, attention to the whole row."""
    flops_causal: int
    """The same, each token attending to half the row."""


class _Size(NamedTuple):
    """Parameters of a part of a model."""

    total: int
    matmul: int
    """Those that one token is multiplied by."""

    def times(self, num: int) -> "_Size":
        return _Size(num * self.total, num * self.matmul)

    def plus(self, *others: "_Size") -> "_Size":
        parts = (self, *others)
        return _Size(sum(p.total for p in parts), sum(p.matmul for p in parts))


def count(model: ModelConfig, sequence_len: int, target_len: int | None = None) -> Counts:
    """Returns the counts of a model.

    Args:
        sequence_len: tokens of its rows, those of the encoder where it stands beside a decoder.
        target_len: tokens of the rows of such a decoder.
    """
    D, V = model.embed_dim, model.num_tokens
    tables = V + (model.num_positions or 0) + (model.num_token_types or 0)
    relative = NUM_RELATIVE_BUCKETS * model.num_heads if model.position == "relative" else 0
    norms = (1 if model.embed_norm else 0) + (0 if model.norm_placement == "post" else 1)
    norms = 0 if model.is_recurrent else norms
    ends = _Size(tables * D + relative + norms * _norm(model), 0).plus(_head(model))
    if model.is_recurrent:
        num_gates = 4 if model.architecture == "lstm" else 3
        layers = _Size(2 * num_gates * (D * D + D), 2 * num_gates * D * D).times(model.num_layers)
        size = ends.plus(layers)
        flops = 6 * size.matmul
        return Counts(total=size.total, matmul=size.matmul, flops_full=flops, flops_causal=flops)
    return _transformer(model, ends, sequence_len, target_len)


def _transformer(
    model: ModelConfig, ends: _Size, sequence_len: int, target_len: int | None
) -> Counts:
    reads = model.num_encoder_layers is not None
    first = _block(model.leading(), reads_memory=reads).times(model.num_leading_layers)
    if not model.first_norm:
        first = first.plus(_Size(-model.num_leading_layers * _norm(model), 0))
    layers = first.plus(_block(model, reads_memory=reads).times(model.num_stacked_layers))
    if model.mtp_depth:
        own = _Size(2 * _norm(model) + 2 * model.embed_dim**2, 2 * model.embed_dim**2)
        layers = layers.plus(own.plus(_block(model.leading())).times(model.mtp_depth))
    size = ends.plus(layers)
    length = sequence_len if target_len is None else target_len
    full, before = _attention_flops(model, range(model.num_layers), length)
    if model.architecture == "encoder":
        before = full
    flops_full, flops_causal = 6 * size.matmul + full, 6 * size.matmul + before
    if model.num_encoder_layers is None:
        total, matmul = size.total, size.matmul
    else:
        num = model.num_encoder_layers
        encoder = _block(model).times(num)
        relative = 0
        if model.position == "relative":
            relative = NUM_RELATIVE_BUCKETS * model.num_heads
        norm = 0 if model.norm_placement == "post" else _norm(model)
        total, matmul = size.total + encoder.total + relative + norm, size.matmul + encoder.matmul
        own, _ = _attention_flops(model, range(num), sequence_len)
        # Each target reads the whole encoded text, whose tokens are made keys and values of.
        read = model.num_layers * 12 * model.num_heads * model.head_dim * sequence_len
        kv = 2 * model.embed_dim * model.num_kv_heads * model.head_dim * model.num_layers
        encoding = 6 * (encoder.matmul + kv) + own
        both = sequence_len + length
        flops_full, flops_causal = (
            round((encoding * sequence_len + (flops + read - 6 * kv) * length) / both)
            for flops in (flops_full, flops_causal)
        )
    return Counts(total=total, matmul=matmul, flops_full=flops_full, flops_causal=flops_causal)


def _attention_flops(model: ModelConfig, layers: range, length: int) -> tuple[int, int]:
    """Returns the FLOPs of scores and what they gather for one token: of all keys, of those before.

    A window counts in both.
    """
    width = model.num_heads * (_key_width(model) + (model.value_head_dim or model.head_dim))
    full, before = 0, 0.0
    for layer in layers:
        window = length
        if model.is_local(layer) and model.attention_window is not None:
            window = min(length, model.attention_window)
        full += 6 * width * window
        before += 6 * width * (window - window * window / (2 * length))  # keys, on average
    return full, round(before)


def _key_width(model: ModelConfig) -> int:
    return model.head_dim + (model.rope_head_dim or 0)


def _norm(model: ModelConfig) -> int:
    return model.embed_dim * (2 if model.norm == "layer" and model.bias else 1)


def _head(model: ModelConfig) -> _Size:
    D, V = model.embed_dim, model.num_tokens
    head = _Size(0 if model.tied_embeddings else V * D, V * D)
    if model.head_bias:
        head = head.plus(_Size(V, 0))
    if model.head_transform:
        bias = D if model.bias else 0
        head = head.plus(_Size(D * D + bias + _norm(model), D * D))
    if model.pooler:
        head = head.plus(_Size(D * D + D, D * D))
    if model.next_sentence:
        head = head.plus(_Size(2 * D + 2, 2 * D))
    return head


def _block(model: ModelConfig, *, reads_memory: bool = False) -> _Size:
    norms = 4 if model.norm_placement == "sandwich" else 2
    attention = _attention(model) if model.attention == "mha" else _latent(model)
    block = attention.plus(_mlp(model), _Size(norms * _norm(model), 0))
    if reads_memory:
        block = block.plus(_attention(model), _Size(norms // 2 * _norm(model), 0))
    return block


def _attention(model: ModelConfig) -> _Size:
    D, H = model.embed_dim, model.head_dim
    q_dim, kv_dim = model.num_heads * H, model.num_kv_heads * H
    matmul = 2 * D * q_dim + 2 * D * kv_dim
    total = matmul
    if model.bias or model.qkv_bias:
        total += q_dim + 2 * kv_dim
    if model.bias:
        total += D
    if model.qk_norm:
        total += 2 * H if model.qk_norm_over == "head" else q_dim + kv_dim
    if model.attention_sinks:
        total += model.num_heads
    return _Size(total, matmul)


def _latent(model: ModelConfig) -> _Size:
    assert model.kv_latent_dim is not None
    assert model.rope_head_dim is not None
    assert model.value_head_dim is not None
    D, N, C = model.embed_dim, model.num_heads, model.kv_latent_dim
    query_dim, norms, matmul = D, C, 0
    if model.query_latent_dim is not None:
        query_dim = model.query_latent_dim
        matmul, norms = D * query_dim, norms + query_dim
    matmul += query_dim * N * _key_width(model)
    matmul += D * (C + model.rope_head_dim)
    matmul += C * N * (model.head_dim + model.value_head_dim)
    matmul += N * model.value_head_dim * D
    return _Size(matmul + norms, matmul)


def _mlp(model: ModelConfig) -> _Size:
    D = model.embed_dim
    num_inputs = 2 if model.is_gated else 1
    E, A = model.num_experts, model.num_active_experts
    if E is None or A is None:
        F = model.mlp_dim
        matmul = (num_inputs + 1) * D * F
        return _Size(matmul + (num_inputs * F + D if model.bias else 0), matmul)
    expert = (num_inputs + 1) * D * model.expert_width
    always = D * E + model.num_shared_experts * expert
    bias = E if model.router_bias else 0
    return _Size(always + E * expert + bias, always + A * expert)
