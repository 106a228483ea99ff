"""What a family of Hugging Face models is to us, and what their settings have in common."""

import math
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from configs.check import require
from configs.model import ModelConfig
from model.hf.tensors import Tensor

Said = Mapping[str, Any]
"""What a config.json says."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models of one class of Hugging Face, of any size."""

    model_type: str
    read: Callable[[Said, Set[str]], dict[str, Any]]
    """From their settings and the names of their tensors to ours, by field of ModelConfig."""
    write: Callable[[ModelConfig], dict[str, Any]]
    """From our settings to theirs, as far as they have a place there; class and type too."""
    tensors: Callable[[ModelConfig], Iterator[Tensor]]
    canonical: Callable[[str], str] = lambda name: name
    """From a name of a tensor in some checkpoint to that in this list."""
    ignored: tuple[str, ...] = ()
    """Ends of names of tensors that are computed and not learned."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """{a name: another} of tensors that some checkpoints hold twice."""


GATED = {"silu": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu_tanh"}
"""Their names of activations, and our names of the MLPs with a gate that have them."""
UNGATED = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
UNGATED |= {"relu": "relu", "silu": "silu", "swish": "silu"}


def kind_of(said: Said, key: str, kinds: Mapping[str, str]) -> str:
    """Returns our name of an activation; raises SettingsError for one that we have not."""
    value = said[key]
    require(value in kinds, f"config.json: {key}={value} must be one of {', '.join(kinds)}")
    return kinds[value]


def name_of(kind: str, kinds: Mapping[str, str]) -> str:
    """Returns their name of an activation; where they have not ours, that of another one."""
    return next((theirs for theirs, ours in kinds.items() if ours == kind), next(iter(kinds)))


def refuse(said: Said, **only: Any) -> None:
    """Raises SettingsError where a setting of theirs is there and not the only one we have."""
    for key, value in only.items():
        given = said.get(key, value)
        require(
            given == value or (not given and not value),
            f"config.json: {key}={given} must be {value}: Tessera has no model with another one",
        )


def read_rope(said: Said) -> dict[str, Any]:
    """Returns our settings of rotation; theirs are in one of two styles.

    Raises:
        SettingsError: a kind of scaling that we do not have.
    """
    rope = dict(said.get("rope_parameters") or {})
    if "full_attention" in rope:  # one for each kind of layer
        local = rope.get("sliding_attention") or rope["full_attention"]
        found = read_rope({**said, "rope_parameters": rope["full_attention"]})
        if local != rope["full_attention"]:
            refuse(local, rope_type="default")
            found["rope_theta_local"] = float(local["rope_theta"])
        return found
    rope = {
        "rope_theta": said.get("rope_theta", 10_000.0),
        **(said.get("rope_scaling") or {}),
        **rope,
    }
    theta, factor = float(rope["rope_theta"]), float(rope.get("factor", 1.0))
    length = rope.get("original_max_position_embeddings", said.get("max_position_embeddings"))
    match rope.get("rope_type", rope.get("type", "default")):
        case "default":
            return {"rope_theta": theta}
        case "linear":
            more = {}
        case "llama3":
            more = {
                "rope_original_len": length,
                "rope_low_frequency": float(rope["low_freq_factor"]),
                "rope_high_frequency": float(rope["high_freq_factor"]),
            }
        case "yarn":
            refuse(rope, truncate=True)
            more = {
                "rope_original_len": length,
                "rope_beta_fast": float(rope.get("beta_fast") or 32),
                "rope_beta_slow": float(rope.get("beta_slow") or 1),
                "rope_attention_factor": _attention_factor(rope, factor),
            }
        case kind:
            require(
                False,
                f"config.json: rope_type={kind} must be default, linear, llama3 or yarn: Tessera "
                "has no other",
            )
            raise AssertionError
    kind = rope.get("rope_type", rope.get("type"))
    return {"rope_theta": theta, "rope_scaling": kind, "rope_scaling_factor": factor, **more}


def _attention_factor(rope: Said, factor: float) -> float:
    given = rope.get("attention_factor")
    if given is not None:
        return float(given)
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return mscale(factor, rope["mscale"]) / mscale(factor, rope["mscale_all_dim"])
    return mscale(factor, 1.0)


def mscale(factor: float, weight: float) -> float:
    """Returns by how much scores grow with a longer row. Source: arXiv:2309.00071, eq. 22."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """Returns their settings of rotation."""
    said: dict[str, Any] = {"rope_theta": config.rope_theta}
    if config.rope_scaling == "none":
        return said
    scaling: dict[str, Any] = {
        "rope_type": config.rope_scaling,
        "factor": config.rope_scaling_factor,
    }
    if config.rope_original_len is not None:
        scaling["original_max_position_embeddings"] = config.rope_original_len
    if config.rope_scaling == "llama3":
        scaling["low_freq_factor"] = config.rope_low_frequency
        scaling["high_freq_factor"] = config.rope_high_frequency
    if config.rope_scaling == "yarn":
        scaling["beta_fast"], scaling["beta_slow"] = config.rope_beta_fast, config.rope_beta_slow
        scaling["attention_factor"] = config.rope_attention_factor
    return {**said, "rope_scaling": scaling}


def read_layer_types(said: Said, default: Callable[[int], bool]) -> dict[str, Any]:
    """Returns our pattern of local and global layers.

    Args:
        default: whether a layer is local where config.json does not list the kinds.
    """
    num = said["num_hidden_layers"]
    kinds = said.get("layer_types")
    if kinds is None:
        local = [default(i) for i in range(num)]
    else:
        unknown = {*kinds} - {"sliding_attention", "full_attention"}
        require(
            not unknown,
            f"config.json: layer_types={' '.join(sorted(unknown))} must be sliding_attention or "
            "full_attention",
        )
        local = [kind == "sliding_attention" for kind in kinds]
    window = said.get("sliding_window")
    if window is None or not any(local):
        return {}
    if all(local):
        return {"attention_window": window}
    period = next(p for p in range(1, num + 1) if local[p:] == local[: num - p])
    pattern = tuple("local" if is_local else "global" for is_local in local[:period])
    return {"attention_window": window, "attention_pattern": pattern}


def write_layer_types(config: ModelConfig) -> dict[str, Any]:
    """Returns their list of kinds of layers, and the window of the local ones."""
    kinds = [
        "sliding_attention" if config.is_local(i) else "full_attention"
        for i in range(config.num_layers)
    ]
    return {"layer_types": kinds, "sliding_window": config.attention_window}
