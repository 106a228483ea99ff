"""Settings of attention: heads, which positions a layer attends to, and how logits are computed."""

from dataclasses import dataclass
from typing import Literal

from configs.attention_backends import AttentionBackend
from configs.require import Count, CountOrNone, Incompatible, PositiveOrNone, Rate, Safe, require

LayerKind = Literal["local", "global"]


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Heads and the positions they attend to. Sizes of heads are not read by lstm and gru."""

    attention: Incompatible[Literal["mha", "mla"]] = "mha"
    """mha: multi-head attention (grouped-query where num_kv_heads is lower); mla: multi-head latent
    attention, keys and values from a latent of kv_latent_dim (DeepSeek-V3)."""
    num_heads: Incompatible[Count] = 1
    """Query heads [N]."""
    num_kv_heads: Incompatible[Count] = 1
    """Key/value heads [K]; fewer than num_heads is grouped-query attention (GQA), 1 is multi-query
    (MQA)."""
    head_dim: Incompatible[Count] = 1
    """Width of one head [H]; with attention=mla of its part without rotary embedding."""
    query_latent_dim: Incompatible[CountOrNone] = None
    """Width of the compressed queries (q_lora_rank); None projects queries from the input (mla)."""
    kv_latent_dim: Incompatible[CountOrNone] = None
    """Width of the compressed keys and values (kv_lora_rank); only with attention=mla."""
    rope_head_dim: Incompatible[CountOrNone] = None
    """Width of the part of a head with rotary embedding, one key for all heads; only with
    attention=mla."""
    value_head_dim: Incompatible[CountOrNone] = None
    """Width of a value head; only with attention=mla."""
    qkv_bias: Incompatible[bool] = False
    """Query, key and value projections have a bias even if model.bias is off (Qwen2)."""
    qk_norm: Incompatible[bool] = False
    """RMSNorm of queries and keys before rotary embedding (Qwen3, Gemma 3, OLMo 2)."""
    qk_norm_over: Incompatible[Literal["head", "heads"]] = "head"
    """What qk_norm normalizes over: each head by itself, or all heads together (OLMo 2)."""
    attention_window: CountOrNone = None
    """Sliding window: tokens a query attends to, itself included; to each side in an encoder. None
    attends to the whole sequence (Mistral 7B has 4096)."""
    attention_pattern: tuple[LayerKind, ...] = ()
    """Kinds of consecutive layers, repeated: local has the sliding window, global attends to the
    whole sequence (Gemma). Empty: every layer has the window."""
    attention_scale: PositiveOrNone = None
    """Attention logits are q . k times this; None is 1 / sqrt(head_dim)."""
    attention_softcap: PositiveOrNone = None
    """Attention logits become cap * tanh(logits / cap) (Gemma 2); None is no cap."""
    attention_sinks: Incompatible[bool] = False
    """Attention sinks: a learned logit per head in the softmax, without a value (GPT-OSS)."""
    attention_dropout: Rate = 0.0
    """Dropout rate of attention probabilities, in training."""
    attention_backend: Safe[AttentionBackend] = "auto"
    """How attention is computed: plain holds the scores of all queries and keys, blockwise those of
    one pair of blocks (FlashAttention's algorithm, without a kernel); auto is plain, and blockwise
    under context_attention=ring."""

    def check_attention(self) -> None:
        """Raises SettingsError where settings of attention cannot be or do not fit each other."""
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"model.num_heads={self.num_heads} must be a multiple of "
            f"model.num_kv_heads={self.num_kv_heads}",
        )
        require(
            not self.attention_pattern
            or ("local" in self.attention_pattern) == (self.attention_window is not None),
            f"model.attention_window={self.attention_window} must be a number of tokens with a "
            "local layer and None without, but model.attention_pattern="
            f"{' '.join(self.attention_pattern)}",
        )
        self._check_latent()

    def _check_latent(self) -> None:
        is_latent = self.attention == "mla"
        for name in ("kv_latent_dim", "rope_head_dim", "value_head_dim"):
            value = getattr(self, name)
            require(
                (value is not None) == is_latent,
                f"model.{name}={value} must be a width with model.attention=mla and None "
                f"otherwise, but model.attention={self.attention}",
            )
        require(
            is_latent or self.query_latent_dim is None,
            f"model.query_latent_dim={self.query_latent_dim} must be None with "
            f"model.attention={self.attention}",
        )
        unused = {
            "num_kv_heads": (self.num_kv_heads, self.num_heads),
            "qk_norm": (self.qk_norm, False),
            "qkv_bias": (self.qkv_bias, False),
            "attention_sinks": (self.attention_sinks, False),
        }
        for name, (value, only) in unused.items():
            require(
                not is_latent or value == only,
                f"model.{name}={value} must be {only} with model.attention=mla",
            )

    def is_local(self, layer: int) -> bool:
        """Returns whether a layer, from 0, sees attention_window and not the whole row."""
        pattern = self.attention_pattern or ("local",)
        return pattern[layer % len(pattern)] == "local" and self.attention_window is not None
