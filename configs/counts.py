"""How many parameters a model has and how many FLOPs a token costs, from its settings alone.

The convention, which every speed is printed with: N counts the parameters that enter a matmul (the
head, but not the input embedding, positions, norms or biases; of the experts those that compute a
token), without the padding of the vocabulary. `full` is 6N + 12 L d T FLOPs per trained token,
`causal` counts only the keys that come before (half of the attention term, or less in a window).
Source: Kaplan et al. 2020, Scaling laws for neural language models, arXiv:2001.08361, table 1;
Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B.
"""

from dataclasses import dataclass

from configs.model import ModelConfig


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


def count(model: ModelConfig, sequence_len: int) -> Counts:
    """Returns the counts of a model trained on rows of sequence_len tokens."""
    D, F, L = model.embed_dim, model.mlp_dim, model.num_layers
    q_dim, kv_dim = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    num_inputs = 2 if model.mlp == "swiglu" else 1

    attention_matmul = 2 * D * q_dim + 2 * D * kv_dim
    mlp, router = (num_inputs + 1) * D * F, D * (model.num_experts or 0)
    block_matmul = attention_matmul + router + (model.num_active_experts or 1) * mlp
    norm = D * (2 if model.norm == "layer" and model.bias else 1)
    block = attention_matmul + router + (model.num_experts or 1) * mlp + 2 * norm
    if model.qk_norm:
        block += 2 * model.head_dim
    if model.bias:
        block += q_dim + 2 * kv_dim + D + num_inputs * F + D

    embedding = model.num_tokens * D
    positions = (model.num_positions or 0) * D
    head = 0 if model.tied_head else embedding
    matmul = L * block_matmul + embedding
    window = min(sequence_len, model.attention_window or sequence_len)
    num_before = window - window * window / (2 * sequence_len)  # keys of a query, on average
    return Counts(
        total=embedding + positions + L * block + norm + head,
        matmul=matmul,
        flops_full=6 * matmul + 12 * L * q_dim * window,
        flops_causal=6 * matmul + round(12 * L * q_dim * num_before),
    )
