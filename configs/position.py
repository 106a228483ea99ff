"""Settings of position information: how a model knows the order of tokens."""

from dataclasses import dataclass
from typing import Literal

from configs.require import (
    CountOrNone,
    Incompatible,
    Positive,
    PositiveOrNone,
    check_bounds,
    require,
)

NUM_RELATIVE_BUCKETS = 32
"""Buckets of distances that share a bias, with position=relative (T5)."""
MAX_RELATIVE_DISTANCE = 128
"""Distances from this on share the last bucket."""


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How RoPE is scaled to sequences longer than original_len."""

    kind: Literal["none", "linear", "llama3", "yarn"] = "none"
    """How RoPE is scaled to sequences longer than original_len."""
    factor: Positive = 1.0
    """Factor by which the context is extended."""
    original_len: CountOrNone = None
    """Tokens of the original context; only with llama3 and yarn."""
    low_frequency: Positive = 1.0
    """Rotations within original_len below which a dimension is scaled fully (llama3)."""
    high_frequency: Positive = 4.0
    """Rotations within original_len above which a dimension is not scaled (llama3)."""
    beta_fast: Positive = 32.0
    """Rotations within original_len above which a dimension is not scaled (yarn)."""
    beta_slow: Positive = 1.0
    """Rotations within original_len below which a dimension is scaled fully (yarn)."""
    attention_factor: Positive = 1.0
    """Rotated queries and keys are multiplied by this (yarn's attention temperature)."""

    def __post_init__(self) -> None:
        check_bounds(self, "model.rope_scaling")
        require(
            (self.kind in ("llama3", "yarn")) == (self.original_len is not None),
            f"model.rope_scaling.original_len={self.original_len} must be a number of tokens if "
            f"model.rope_scaling.kind=llama3 or yarn, else None; here model.rope_scaling.kind="
            f"{self.kind}",
        )
        require(
            self.high_frequency > self.low_frequency,
            f"model.rope_scaling.high_frequency={self.high_frequency} must be above "
            f"model.rope_scaling.low_frequency={self.low_frequency}",
        )


@dataclass(frozen=True, kw_only=True)
class PositionConfig:
    """Positions: rotary, learned, sinusoidal or relative."""

    position: Incompatible[Literal["rotary", "learned", "sinusoidal", "relative", "none"]] = (
        "rotary"
    )
    """rotary embedding (RoPE) of queries and keys; a learned table or sinusoids added to the input;
    a relative bias of attention logits (T5); or none."""
    rope_theta: Positive = 10_000.0
    """Base of the RoPE wavelengths; only read with position=rotary."""
    rope_theta_local: PositiveOrNone = None
    """Base in the local layers of attention_pattern, to which rope_scaling does not apply (Gemma
    3); None is the same as in other layers."""
    rope_scaling: RopeScaling = RopeScaling()
    """How RoPE is scaled to longer sequences."""
    num_positions: Incompatible[CountOrNone] = None
    """Rows of the learned position table: the longest sequence; only with position=learned."""

    def check_positions(self) -> None:
        """Raises SettingsError where settings of positions cannot be or do not fit each other."""
        require(
            (self.position == "learned") == (self.num_positions is not None),
            f"model.num_positions={self.num_positions} must be a number of tokens if "
            f"model.position=learned, else None; here model.position={self.position}",
        )
