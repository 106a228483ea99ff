"""Settings of the decoder: its shape, its variants, and how it is computed."""

from dataclasses import dataclass
from typing import Literal

from configs.check import require, require_at_least, require_fraction

VOCAB_MULTIPLE = 128
"""The embedding has a multiple of this many rows whatever the layout: shapes never change."""

Activation = Literal["query", "key", "value", "attention", "attention_out", "gate", "up", "mlp_out"]
"""What a block may keep for the backward pass: the projected heads, what they gather, its output
projection, the hidden layers of the MLP and its output."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only Transformer. Letters in brackets are those of `sharding/rules.py`."""

    num_layers: int
    """Transformer blocks [L]."""
    embed_dim: int
    """Width of the residual stream [D]."""
    num_heads: int
    """Query heads [N]."""
    num_kv_heads: int
    """Key and value heads [K]; fewer than num_heads is grouped-query attention."""
    head_dim: int
    """Width of one head [H]."""
    mlp_dim: int
    """Hidden width of the MLP [F]."""
    vocab_size: int | Literal["tokenizer"] = "tokenizer"
    """Token ids [V]; "tokenizer" takes as many as the tokenizer has."""
    norm: Literal["rms", "layer"] = "rms"
    """Normalization before attention, before the MLP and at the end."""
    norm_epsilon: float = 1e-6
    """Added to the variance inside the square root of each norm."""
    position: Literal["rotary", "learned"] = "rotary"
    """How the order of tokens enters: rotated queries and keys, or a table added to the input."""
    rope_theta: float = 10_000.0
    """Base of the rotary wavelengths; only read with position=rotary."""
    num_positions: int | None = None
    """Rows of the learned table, the longest sequence; only read with position=learned."""
    qk_norm: bool = False
    """RMS norm of each query and key head before rotation (Qwen3, OLMo 2)."""
    attention_window: int | None = None
    """Tokens that a query sees, itself the last of them; None is the whole row (Mistral 7B)."""
    mlp: Literal["swiglu", "gelu", "gelu_tanh", "relu2"] = "swiglu"
    """swiglu has three matrices, the others two; relu2 is the squared ReLU."""
    num_experts: int | None = None
    """MLPs of a block [E], of which a router picks some for each token; None is one for all."""
    num_active_experts: int | None = None
    """Experts that compute a token [A]; only read with num_experts."""
    expert_dispatch: Literal["dropless", "capacity"] = "dropless"
    """dropless computes every token; capacity leaves out what is beyond an expert's places."""
    expert_capacity_factor: float = 1.25
    """Places of an expert in a row, over its even share; only with expert_dispatch=capacity."""
    balance_weight: float = 0.01
    """Weight of the load-balance loss of the router beside the cross entropy."""
    tied_head: bool = True
    """The output matrix is the embedding, transposed."""
    logit_softcap: float | None = None
    """Logits become cap * tanh(logits / cap)."""
    bias: bool = False
    """Every projection (but not the head) and every layer norm has a bias."""
    dropout: float = 0.0
    """Rate after the embedding, the attention and the MLP, in training."""
    attention_dropout: float = 0.0
    """Rate on the attention probabilities, in training."""
    init_std: float = 0.02
    """Standard deviation of initial weights; output projections get init_std / sqrt(2 L)."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of activations; parameters, norms, softmax and loss are always float32."""
    remat: Literal["none", "dots", "full", "named"] = "none"
    """What the backward pass computes again: nothing, all but matmuls, each whole block, or all but
    the activations of remat_saved and remat_offloaded."""
    remat_saved: tuple[Activation, ...] = ()
    """Activations that are kept on the device; only read with remat=named."""
    remat_offloaded: tuple[Activation, ...] = ()
    """Activations that wait in the memory of the host; only read with remat=named."""
    context_attention: Literal["ring", "all_gather"] = "ring"
    """How attention spans a row that mesh.context cuts: keys and values go around, or are gathered
    on every device."""
    num_unrolled_layers: int = 1
    """Blocks in an iteration of the scan over layers; on CPU all of them is up to 1.3 x faster."""

    def __post_init__(self) -> None:
        for name in ("num_layers", "embed_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim"):
            require_at_least(f"model.{name}", getattr(self, name), 1)
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"model.num_heads={self.num_heads} must be a multiple of "
            f"model.num_kv_heads={self.num_kv_heads}",
        )
        require(
            self.vocab_size == "tokenizer" or self.vocab_size >= 2,
            f'model.vocab_size={self.vocab_size} must be at least 2, or "tokenizer"',
        )
        require(
            self.position != "rotary" or self.head_dim % 2 == 0,
            f"model.head_dim={self.head_dim} must be even for model.position=rotary",
        )
        require(
            (self.position == "learned") == (self.num_positions is not None),
            f"model.num_positions={self.num_positions} must be a number of tokens with "
            f"model.position=learned and None otherwise, but model.position={self.position}",
        )
        require_fraction("model.dropout", self.dropout)
        require_fraction("model.attention_dropout", self.attention_dropout)
        for name in ("norm_epsilon", "rope_theta", "init_std"):
            require(
                getattr(self, name) > 0, f"model.{name}={getattr(self, name)} must be above zero"
            )
        require(
            self.logit_softcap is None or self.logit_softcap > 0,
            f"model.logit_softcap={self.logit_softcap} must be above zero, or None for no cap",
        )
        self._check_experts()
        self._check_remat()
        require_at_least("model.attention_window", self.attention_window or 1, 1)
        require(
            self.num_unrolled_layers >= 1 and self.num_layers % self.num_unrolled_layers == 0,
            f"model.num_unrolled_layers={self.num_unrolled_layers} must divide "
            f"model.num_layers={self.num_layers}",
        )

    def _check_experts(self) -> None:
        E, A = self.num_experts, self.num_active_experts
        require(
            (E is None) == (A is None),
            f"model.num_active_experts={A} must be a number with model.num_experts and None "
            f"without, but model.num_experts={E}",
        )
        require_at_least("model.num_experts", E or 1, 1)
        require(
            1 <= (A or 1) <= (E or 1),
            f"model.num_active_experts={A} must be at least 1 and at most model.num_experts={E}",
        )
        require(
            E is None or not self.bias,
            f"model.bias={self.bias} must be False with model.num_experts={E}: they have no bias",
        )
        require(
            self.expert_capacity_factor > 0,
            f"model.expert_capacity_factor={self.expert_capacity_factor} must be above zero",
        )
        require_at_least("model.balance_weight", self.balance_weight, 0)

    def _check_remat(self) -> None:
        saved, offloaded = self.remat_saved, self.remat_offloaded
        given = f"model.remat_saved={saved} and model.remat_offloaded={offloaded}"
        require(
            (self.remat == "named") == bool(saved or offloaded),
            f"{given} must name activations with model.remat=named and none otherwise, but "
            f"model.remat={self.remat}",
        )
        twice = ", ".join(sorted({*saved} & {*offloaded}))
        require(not twice, f"{given} must not both name {twice}")

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary once it is known; V without padding."""
        assert isinstance(self.vocab_size, int), "model.vocab_size is not resolved yet"
        return self.vocab_size

    @property
    def num_padded_tokens(self) -> int:
        """Rows of the embedding and the head: the vocabulary rounded up to VOCAB_MULTIPLE."""
        return -(-self.num_tokens // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
