"""A family of Hugging Face models, and the parts of config.json that families share."""

import math
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from configs.errors import SettingsError
from configs.model import ModelConfig
from configs.position import RopeScaling
from configs.require import require
from model.hf.tensors import HFTensor

HFConfig = Mapping[str, Any]
"""The content of a config.json."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """The models of one Hugging Face model_type, of any size."""

    model_type: str
    read_config: Callable[[HFConfig, Set[str]], dict[str, Any]]
    """From config.json and the names of the stored tensors to fields of ModelConfig."""
    write_config: Callable[[ModelConfig], dict[str, Any]]
    """From ModelConfig to config.json with architectures and model_type; drops what has no key."""
    tensors: Callable[[ModelConfig], Iterator[HFTensor]]
    canonical_name: Callable[[str], str] = lambda name: name
    """From the name of a tensor in an older or headless checkpoint to that in `tensors`."""
    ignored_suffixes: tuple[str, ...] = ()
    """Ends of names of stored buffers, which are computed and not trained."""
    tied_tensors: Mapping[str, str] = field(default_factory=dict)
    """{name: the tensor it is tied to}; some checkpoints store both."""


GATED_MLPS = {"silu": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu_tanh"}
"""{activation in config.json: model.mlp} of gated MLPs."""
UNGATED_MLPS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
UNGATED_MLPS |= {"relu": "relu", "silu": "silu", "swish": "silu"}
"""{activation in config.json: model.mlp} of MLPs without a gate."""


def read_mlp(hf_config: HFConfig, key: str, mlps: Mapping[str, str]) -> str:
    """Returns model.mlp for the activation under a key; SettingsError if it is not supported."""
    value = hf_config[key]
    require(value in mlps, f"config.json: {key}={value} must be one of {', '.join(mlps)}")
    return mlps[value]


def write_mlp(mlp: str, mlps: Mapping[str, str]) -> str:
    """Returns the activation of model.mlp in config.json, the first of mlps if it is not there."""
    return next((hf for hf, tessera in mlps.items() if tessera == mlp), next(iter(mlps)))


def require_values(hf_config: HFConfig, **supported: Any) -> None:
    """Raises SettingsError if config.json has a key with another value than the supported one."""
    for key, value in supported.items():
        given = hf_config.get(key, value)
        require(
            given == value or (not given and not value),
            f"config.json: {key}={given} must be {value}: no other value is supported",
        )


def read_rope(hf_config: HFConfig) -> dict[str, Any]:
    """Returns the RoPE fields of ModelConfig, from rope_parameters or from rope_theta and scaling.

    Raises:
        SettingsError: the type of scaling is not supported.
    """
    rope = dict(hf_config.get("rope_parameters") or {})
    if "full_attention" in rope:  # one for each type of layer
        local = rope.get("sliding_attention") or rope["full_attention"]
        found = read_rope({**hf_config, "rope_parameters": rope["full_attention"]})
        if local != rope["full_attention"]:
            require_values(local, rope_type="default")
            found["rope_theta_local"] = float(local["rope_theta"])
        return found
    rope = {
        "rope_theta": hf_config.get("rope_theta", 10_000.0),
        **(hf_config.get("rope_scaling") or {}),
        **rope,
    }
    theta, factor = float(rope["rope_theta"]), float(rope.get("factor", 1.0))
    length = rope.get("original_max_position_embeddings", hf_config.get("max_position_embeddings"))
    match rope.get("rope_type", rope.get("type", "default")):
        case "default":
            return {"rope_theta": theta}
        case "linear":
            more: dict[str, Any] = {}
        case "llama3":
            more = {
                "original_len": length,
                "low_frequency": float(rope["low_freq_factor"]),
                "high_frequency": float(rope["high_freq_factor"]),
            }
        case "yarn":
            require_values(rope, truncate=True)
            more = {
                "original_len": length,
                "beta_fast": float(rope.get("beta_fast") or 32),
                "beta_slow": float(rope.get("beta_slow") or 1),
                "attention_factor": _attention_factor(rope, factor),
            }
        case kind:
            raise SettingsError(
                f"config.json: rope_type={kind} must be default, linear, llama3 or yarn"
            )
    kind: Any = rope.get("rope_type", rope.get("type"))
    return {"rope_theta": theta, "rope_scaling": RopeScaling(kind=kind, factor=factor, **more)}


def _attention_factor(rope: HFConfig, factor: float) -> float:
    given = rope.get("attention_factor")
    if given is not None:
        return float(given)
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return mscale(factor, rope["mscale"]) / mscale(factor, rope["mscale_all_dim"])
    return mscale(factor, 1.0)


def mscale(factor: float, weight: float) -> float:
    """Returns YaRN's factor on queries and keys, sqrt(1/t). Source: arXiv:2309.00071, eq. 22."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """Returns rope_theta and rope_scaling of config.json."""
    hf_config: dict[str, Any] = {"rope_theta": config.rope_theta}
    rope = config.rope_scaling
    if rope.kind == "none":
        return hf_config
    scaling: dict[str, Any] = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.original_len is not None:
        scaling["original_max_position_embeddings"] = rope.original_len
    if rope.kind == "llama3":
        scaling["low_freq_factor"] = rope.low_frequency
        scaling["high_freq_factor"] = rope.high_frequency
    if rope.kind == "yarn":
        scaling["beta_fast"], scaling["beta_slow"] = rope.beta_fast, rope.beta_slow
        scaling["attention_factor"] = rope.attention_factor
    return {**hf_config, "rope_scaling": scaling}


def read_layer_types(hf_config: HFConfig, default: Callable[[int], bool]) -> dict[str, Any]:
    """Returns attention_window and attention_pattern of ModelConfig.

    Args:
        default: whether a layer is local, if config.json has no layer_types.
    """
    num = hf_config["num_hidden_layers"]
    kinds = hf_config.get("layer_types")
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
    window = hf_config.get("sliding_window")
    if window is None or not any(local):
        return {}
    if all(local):
        return {"attention_window": window}
    period = next(p for p in range(1, num + 1) if local[p:] == local[: num - p])
    pattern = tuple("local" if is_local else "global" for is_local in local[:period])
    return {"attention_window": window, "attention_pattern": pattern}


def write_layer_types(config: ModelConfig) -> dict[str, Any]:
    """Returns layer_types and sliding_window of config.json."""
    kinds = [
        "sliding_attention" if config.is_local(i) else "full_attention"
        for i in range(config.num_layers)
    ]
    return {"layer_types": kinds, "sliding_window": config.attention_window}
