"""Settings of a model: its shape, its variants, and how it is computed."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

from configs.attention import AttentionConfig
from configs.attention_backends import Feature, check_backend
from configs.experts import ExpertsConfig
from configs.position import PositionConfig
from configs.require import (
    Count,
    CountFromZero,
    CountOrNone,
    Incompatible,
    Positive,
    PositiveOrNone,
    Rate,
    Safe,
    Weight,
    at_least,
    check_bounds,
    require,
)

VOCAB_MULTIPLE = 128
"""The embedding has a multiple of this many rows whatever the layout: shapes never change."""

Activation = Literal["query", "key", "value", "attention", "attention_out", "gate", "up", "mlp_out"]
"""What a block may keep for the backward pass: the projected heads, what they gather, its output
projection, the hidden layers of the MLP and its output."""

GATED = ("swiglu", "geglu", "geglu_tanh")
"""Kinds of MLP with a gate: three matrices, where the others have two."""


Head = Literal["linear", "bias", "mlm", "pooler", "mlm_pooler", "nsp", "mlm_nsp"]
HEADS: dict[Head, set[str]] = {
    "linear": set(),
    "bias": {"head_bias"},
    "mlm": {"head_bias", "head_transform"},
    "pooler": {"pooler"},
    "mlm_pooler": {"head_bias", "head_transform", "pooler"},
    "nsp": {"pooler", "next_sentence"},
    "mlm_nsp": {"head_bias", "head_transform", "pooler", "next_sentence"},
}
"""{name: its parts beside the output matrix}."""


def head_of(**parts: bool) -> Head:
    """Returns the head that has these parts; raises SettingsError where none has them."""
    wanted = {name for name, is_there in parts.items() if is_there}
    found: list[Head] = [name for name, own in HEADS.items() if own == wanted]
    require(bool(found), f"model.head must be one of {', '.join(HEADS)}: none is {sorted(wanted)}")
    return found[0]


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ExpertsConfig, AttentionConfig, PositionConfig):
    """A language model. Letters in brackets are those of `sharding/rules.py`."""

    architecture: Incompatible[Literal["decoder", "encoder", "encoder_decoder", "lstm", "gru"]] = (
        "decoder"
    )
    """decoder (GPT, causal), encoder (BERT, bidirectional), encoder_decoder (T5), or a recurrent
    network."""
    num_layers: Incompatible[Count]
    """Transformer blocks [L]; those of the decoder in an encoder_decoder."""
    num_encoder_layers: Incompatible[CountOrNone] = None
    """Blocks of the encoder; only with architecture=encoder_decoder."""
    embed_dim: Incompatible[Count]
    """Width of the residual stream [D] (hidden size), and of a recurrent state."""
    mlp_dim: Incompatible[Count] = 1
    """Hidden width of the MLP [F]; not read by lstm and gru."""
    vocab_size: Incompatible[Annotated[int | Literal["tokenizer"], at_least(2)]] = "tokenizer"
    """Vocabulary size [V]; tokenizer: that of the tokenizer."""
    norm: Incompatible[Literal["rms", "layer"]] = "rms"
    """RMSNorm or LayerNorm."""
    norm_placement: Incompatible[Literal["pre", "reordered", "sandwich", "post"]] = "pre"
    """Where norms are, for f an attention or an MLP: pre: x + f(norm(x)); reordered: x + norm(f(x))
    (OLMo 2); sandwich: x + norm(f(norm(x))) (Gemma 2 and 3); post: norm(x + f(x)) (BERT, the first
    Transformer), which has no final norm."""
    norm_epsilon: Positive = 1e-6
    """Added to the variance inside the square root of each norm."""
    norm_zero_centered: Incompatible[bool] = False
    """RMSNorm multiplies by 1 + its parameter (Gemma)."""
    first_norm: Incompatible[bool] = True
    """The attention of the first layer has a pre-norm (ModernBERT has none there)."""
    embed_norm: Incompatible[bool] = False
    """A norm after the embedding (BERT)."""
    embed_scaled: bool = False
    """Embeddings are multiplied by sqrt(embed_dim) (Gemma, the first Transformer)."""
    num_token_types: Incompatible[CountOrNone] = None
    """Number of token types (segments), each with an embedding: 2 in BERT; None has none."""
    mlp: Incompatible[
        Literal["swiglu", "geglu", "geglu_tanh", "gelu", "gelu_tanh", "relu", "relu2", "silu"]
    ] = "swiglu"
    """Activation of the MLP. swiglu and geglu are gated: three matrices, the others two; relu2 is
    the squared ReLU, _tanh the approximated GELU."""
    tied_embeddings: Incompatible[bool] = True
    """The output matrix is the transposed token embedding (weight tying)."""
    head: Incompatible[Head] = "linear"
    """What makes logits: linear; bias: linear with a bias; mlm: a dense layer, GELU, norm, linear
    with a bias (ModernBERT). Beside that pooler has a dense layer and tanh over the hidden state of
    [CLS], and nsp next-sentence prediction on it: mlm_nsp is BERT's."""
    mtp_depth: Incompatible[CountFromZero] = 0
    """Multi-token prediction (MTP): further tokens predicted at each position, one block each
    (DeepSeek-V3 has 1)."""
    mtp_weight: Weight = 0.3
    """Weight of the mean MTP loss, added to the cross entropy (0.3 as in DeepSeek-V3); only with
    mtp_depth."""
    logit_softcap: PositiveOrNone = None
    """Logits become cap * tanh(logits / cap) (Gemma 2); None is no cap."""
    bias: Incompatible[bool] = False
    """Every projection (but the output head) and every LayerNorm has a bias."""
    dropout: Rate = 0.0
    """Dropout rate after the embedding, attention and MLP, in training."""
    init_std: Positive = 0.02
    """Standard deviation of initial weights; output projections have init_std / sqrt(2 L)
    (GPT-2)."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of activations and matmuls; parameters, norms, softmax and loss are float32."""
    remat: Safe[Literal["none", "dots", "full", "named"]] = "none"
    """Rematerialization (activation checkpointing), what the backward pass recomputes: none; dots:
    all but matmuls; full: each whole block; named: all but the activations of remat_saved and
    remat_offloaded."""
    remat_saved: Safe[tuple[Activation, ...]] = ()
    """Activations kept on the device; only read with remat=named."""
    remat_offloaded: Safe[tuple[Activation, ...]] = ()
    """Activations offloaded to host memory; only read with remat=named."""
    context_attention: Safe[Literal["ring", "all_gather"]] = "ring"
    """Attention under context parallelism (mesh.context > 1): ring attention, or keys and values
    all-gathered."""
    num_unrolled_layers: Safe[Annotated[int | Literal["auto"], at_least(1)]] = "auto"
    """Unroll factor of the scan over layers, rounded down to a divisor of their number. auto
    unrolls all on CPU (up to 1.3 x faster) and one elsewhere, which compiles faster."""

    def __post_init__(self) -> None:
        check_bounds(self, "model")
        self.check_positions()
        self.check_attention()
        self.check_experts()
        self._check_rotation()
        self._check_norms()
        self._check_architecture()
        self._check_attention_backend()
        self._check_layers()
        self._check_remat()

    def _check_rotation(self) -> None:
        require(
            self.attention == "mha" or self.position == "rotary",
            f"model.position={self.position} must be rotary with model.attention=mla",
        )
        name = "rope_head_dim" if self.attention == "mla" else "head_dim"
        require(
            self.position != "rotary" or self.is_recurrent or self.rotated_dim % 2 == 0,
            f"model.{name}={self.rotated_dim} must be even for model.position=rotary",
        )
        require(
            self.position != "sinusoidal" or self.embed_dim % 2 == 0,
            f"model.embed_dim={self.embed_dim} must be even for model.position=sinusoidal",
        )

    def _check_norms(self) -> None:
        require(
            not self.norm_zero_centered or self.norm == "rms",
            f"model.norm_zero_centered={self.norm_zero_centered} must be False with "
            f"model.norm={self.norm}",
        )
        require(
            self.first_norm or self.norm_placement == "pre",
            f"model.first_norm={self.first_norm} must be True with "
            f"model.norm_placement={self.norm_placement}",
        )

    def _check_architecture(self) -> None:
        kind = self.architecture
        require(
            (kind == "encoder_decoder") == (self.num_encoder_layers is not None),
            f"model.num_encoder_layers={self.num_encoder_layers} must be a number if "
            f"model.architecture=encoder_decoder, else None; here model.architecture={kind}",
        )
        only: list[tuple[str, object, tuple[str, ...]]] = [
            ("num_experts", None, ("decoder",)),
            ("mtp_depth", 0, ("decoder",)),
            ("attention", "mha", ("decoder",)),
            ("num_token_types", None, ("encoder",)),
            ("first_norm", True, ("encoder", "decoder")),
            ("attention_window", None, ("decoder", "encoder")),
        ]
        for name, other, kinds in only:
            value = getattr(self, name)
            require(
                value == other or kind in kinds,
                f"model.{name}={value} must be {other} with model.architecture={kind}; it is for "
                f"{' and '.join(kinds)}",
            )
        require(
            not self.pooler or kind == "encoder",
            f"model.head={self.head} must be linear, bias or mlm with model.architecture={kind}; "
            "it is for encoder",
        )
        require(
            self.position != "relative" or not self.is_recurrent,
            f"model.position={self.position} must not be relative with model.architecture={kind}",
        )

    def _check_attention_backend(self) -> None:
        """Refuses a backend that lacks what the model needs; RunConfig checks the objective."""
        kind = self.architecture
        settings: tuple[tuple[Feature, str, bool], ...] = (
            ("causal", "architecture", kind != "encoder"),
            ("full", "architecture", kind in ("encoder", "encoder_decoder")),
            ("cross-attention", "architecture", kind == "encoder_decoder"),
            ("segments", "architecture", True),
            ("window", "attention_window", self.attention_window is not None),
            ("softcap", "attention_softcap", self.attention_softcap is not None),
            ("bias", "position", self.position == "relative"),
            ("sinks", "attention_sinks", self.attention_sinks),
            ("dropout", "attention_dropout", self.attention_dropout > 0),
            ("grouped heads", "num_kv_heads", self.num_kv_heads < self.num_heads),
            ("unequal widths", "attention", self.value_head_dim is not None),
        )
        needs: dict[Feature, str] = {
            feature: f"model.{name}={getattr(self, name)}"
            for feature, name, is_needed in settings
            if is_needed and not self.is_recurrent
        }
        check_backend(self.attention_backend, needs)

    def _check_layers(self) -> None:
        require(
            self.num_leading_layers < self.num_layers,
            f"model.num_layers={self.num_layers} must be above model.num_dense_layers="
            f"{self.num_dense_layers}" + ("" if self.first_norm else ", or 1 for model.first_norm"),
        )
        require(
            self.num_experts is None or not self.bias,
            f"model.bias={self.bias} must be False with model.num_experts={self.num_experts}: "
            "they have no bias",
        )

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

    @property
    def is_recurrent(self) -> bool:
        """Whether a state is handed from token to token, and nothing is attended to."""
        return self.architecture in ("lstm", "gru")

    @property
    def is_gated(self) -> bool:
        """Whether the MLP has a gate."""
        return self.mlp in GATED

    @property
    def head_bias(self) -> bool:
        """Whether the logits have a bias."""
        return "head_bias" in HEADS[self.head]

    @property
    def head_transform(self) -> bool:
        """Whether a dense layer, GELU and norm are before the logits."""
        return "head_transform" in HEADS[self.head]

    @property
    def pooler(self) -> bool:
        """Whether there is a dense layer with tanh over hidden states."""
        return "pooler" in HEADS[self.head]

    @property
    def next_sentence(self) -> bool:
        """Whether a head on the pooler predicts if a text follows."""
        return "next_sentence" in HEADS[self.head]

    @property
    def rotated_dim(self) -> int:
        """Width of what positions rotate in a head."""
        return self.head_dim if self.rope_head_dim is None else self.rope_head_dim

    @property
    def num_leading_layers(self) -> int:
        """Layers before those that are alike: they have one MLP, or no norm of their input."""
        return max(self.num_dense_layers, 0 if self.first_norm else 1)

    @property
    def num_stacked_layers(self) -> int:
        """Layers that are alike, and so what a pipeline cuts into stages."""
        return self.num_layers - self.num_leading_layers

    def leading(self) -> Self:
        """Returns the settings of the blocks of the first layers."""
        return replace(
            self,
            num_experts=None,
            num_active_experts=None,
            expert_dim=None,
            num_shared_experts=0,
            num_dense_layers=0,
            num_expert_groups=1,
            num_active_groups=1,
            router_bias=False,
        )

    @property
    def expert_width(self) -> int:
        """Hidden width of an expert."""
        return self.expert_dim or self.mlp_dim

    @property
    def period(self) -> int:
        """Layers after which the kinds of attention_pattern repeat."""
        return len(self.attention_pattern) if len(set(self.attention_pattern)) > 1 else 1
