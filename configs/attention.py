"""Settings of attention: its heads, what each layer sees, and how scores are formed."""

from dataclasses import dataclass
from typing import Literal

from configs.attention_backends import AttentionBackend
from configs.check import require, require_at_least, require_fraction

LayerKind = Literal["local", "global"]


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Heads and what they see. The sizes of heads are not read by lstm and gru."""

    attention: Literal["heads", "latent"] = "heads"
    """Projected heads, or keys and values out of a latent of kv_latent_dim (DeepSeek-V3)."""
    num_heads: int = 1
    """Query heads [N]."""
    num_kv_heads: int = 1
    """Key and value heads [K]; fewer than num_heads is grouped-query attention."""
    head_dim: int = 1
    """Width of one head [H]; with attention=latent of its part that is not rotated."""
    query_latent_dim: int | None = None
    """Width of the latent that queries come out of; None is the input (attention=latent)."""
    kv_latent_dim: int | None = None
    """Width of the latent that keys and values come out of; only with attention=latent."""
    rope_head_dim: int | None = None
    """Width of the rotated part of a head, one key for all; only with attention=latent."""
    value_head_dim: int | None = None
    """Width of a value head; only with attention=latent."""
    qkv_bias: bool = False
    """Queries, keys and values have a bias also where model.bias is off (Qwen2)."""
    qk_norm: bool = False
    """RMS norm of queries and keys before rotation (Qwen3, Gemma 3, OLMo 2)."""
    qk_norm_over: Literal["head", "heads"] = "head"
    """What that norm is over: each head by itself, or all heads together (OLMo 2)."""
    attention_window: int | None = None
    """Tokens that a query sees, itself among them: the last ones, or in an encoder so many to each
    side; None is the whole row (Mistral 7B)."""
    attention_pattern: tuple[LayerKind, ...] = ()
    """Layers in turn, repeated: local has the window, global sees the whole row (Gemma). Without a
    pattern all layers have the window."""
    attention_scale: float | None = None
    """Scores are products of query and key times this; None is one over the root of head_dim."""
    attention_softcap: float | None = None
    """Scores become cap * tanh(scores / cap) (Gemma 2)."""
    attention_sinks: bool = False
    """Each head has a learned score that takes part in the softmax and gives nothing (GPT-OSS)."""
    attention_dropout: float = 0.0
    """Rate on the attention probabilities, in training."""
    attention_backend: AttentionBackend = "auto"
    """How attention is computed: plain holds the scores of all queries and keys, blockwise those of
    one pair of blocks (FlashAttention's algorithm, without a kernel); auto is plain, and blockwise
    under context_attention=ring."""

    def check_attention(self) -> None:
        """Raises SettingsError where settings of attention cannot be or do not fit each other."""
        for name in ("num_heads", "num_kv_heads", "head_dim"):
            require_at_least(f"model.{name}", getattr(self, name), 1)
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"model.num_heads={self.num_heads} must be a multiple of "
            f"model.num_kv_heads={self.num_kv_heads}",
        )
        require_fraction("model.attention_dropout", self.attention_dropout)
        for name in ("attention_scale", "attention_softcap"):
            value = getattr(self, name)
            require(value is None or value > 0, f"model.{name}={value} must be above zero, or None")
        require_at_least("model.attention_window", self.attention_window or 1, 1)
        require(
            not self.attention_pattern
            or ("local" in self.attention_pattern) == (self.attention_window is not None),
            f"model.attention_window={self.attention_window} must be a number of tokens with a "
            "local layer and None without, but model.attention_pattern="
            f"{' '.join(self.attention_pattern)}",
        )
        self._check_latent()

    def _check_latent(self) -> None:
        is_latent = self.attention == "latent"
        for name in ("kv_latent_dim", "rope_head_dim", "value_head_dim"):
            value = getattr(self, name)
            require(
                (value is not None) == is_latent,
                f"model.{name}={value} must be a width with model.attention=latent and None "
                f"otherwise, but model.attention={self.attention}",
            )
            require_at_least(f"model.{name}", value or 1, 1)
        require(
            is_latent or self.query_latent_dim is None,
            f"model.query_latent_dim={self.query_latent_dim} must be None with "
            f"model.attention={self.attention}",
        )
        require_at_least("model.query_latent_dim", self.query_latent_dim or 1, 1)
        unused = {
            "num_kv_heads": (self.num_kv_heads, self.num_heads),
            "qk_norm": (self.qk_norm, False),
            "qkv_bias": (self.qkv_bias, False),
            "attention_sinks": (self.attention_sinks, False),
        }
        for name, (value, only) in unused.items():
            require(
                not is_latent or value == only,
                f"model.{name}={value} must be {only} with model.attention=latent",
            )

    def is_local(self, layer: int) -> bool:
        """Returns whether a layer, from 0, sees attention_window and not the whole row."""
        pattern = self.attention_pattern or ("local",)
        return pattern[layer % len(pattern)] == "local" and self.attention_window is not None
