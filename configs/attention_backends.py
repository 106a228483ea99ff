"""The table of attention backends: what each can do, and where. Read without JAX.

The computation of an entry is model/attention/NAME.py, imported once it is chosen. It has
`attend -> y` with the arguments of plain.py, differentiable, whose y is named "attention"
(`checkpoint_name`), so that recomputation can keep it; with ring=True also
`forward -> (y, logsumexp)`, `backward(..., y, logsumexp, dy)` and the sums over hops that
model/attention/ring.py runs over (see blockwise.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from configs.require import require

AttentionBackend = Literal["auto", "plain", "blockwise"]
"""auto, or a name of the table."""

Feature = Literal[
    "causal",
    "full",
    "window",
    "segments",
    "prefix",
    "softcap",
    "bias",
    "sinks",
    "dropout",
    "grouped heads",
    "unequal widths",
    "cross-attention",
]
"""What settings may need: unequal widths are those of keys and values."""

Platform = Literal["cpu", "gpu", "tpu"]
_ALL: frozenset[Feature] = frozenset(get_args(Feature))


@dataclass(frozen=True, kw_only=True)
class Backend:
    """What a backend can do."""

    features: frozenset[Feature] = _ALL
    platforms: tuple[Platform, ...] = ("cpu", "gpu", "tpu")
    ring: bool = False
    """Whether model.context_attention=ring runs over it."""


ATTENTION_BACKENDS: dict[str, Backend] = {
    "plain": Backend(),
    "blockwise": Backend(
        features=_ALL - {"bias", "dropout", "unequal widths", "cross-attention"}, ring=True
    ),
}


def check_backend(name: AttentionBackend, needs: Mapping[Feature, str]) -> None:
    """Raises SettingsError if a backend lacks what the settings need.

    Args:
        needs: {feature: the setting that needs it, as field=value}.
    """
    able = [other for other, b in ATTENTION_BACKENDS.items() if b.features >= needs.keys()]
    for feature, setting in needs.items():
        require(
            name == "auto" or feature in ATTENTION_BACKENDS[name].features,
            f"model.attention_backend={name} has no {feature}, which {setting} needs; "
            f"model.attention_backend may be {', '.join(('auto', *able))}",
        )
