"""All families, and which of them a config.json or a ModelConfig belongs to."""

import dataclasses
from collections.abc import Set
from typing import Any

from configs.errors import SettingsError
from configs.model import ModelConfig
from model.hf.families.decoders import DECODERS
from model.hf.families.deepseek import DEEPSEEK_V3
from model.hf.families.encoder_decoders import MARIAN, T5
from model.hf.families.encoders import BERT, MODERNBERT
from model.hf.families.gpt2 import GPT2
from model.hf.family import Family, HFConfig

FAMILIES = (*DECODERS, DEEPSEEK_V3, GPT2, BERT, MODERNBERT, T5, MARIAN)
"""In the order in which an export tries them."""

_NOT_IN_HF = (
    "dtype",
    "dropout",
    "attention_dropout",
    "init_std",
    "remat",
    "remat_saved",
    "remat_offloaded",
    "context_attention",
    "attention_backend",
    "num_unrolled_layers",
    "expert_dispatch",
    "expert_capacity_factor",
    "balance_weight",
    "router_z_weight",
    "router_bias_rate",
    "mtp_weight",
)
"""Fields of ModelConfig about training or execution, which no config.json has."""


def read_hf_config(
    hf_config: HFConfig, tensor_names: Set[str], **overrides: Any
) -> tuple[Family, ModelConfig]:
    """Returns the family of a checkpoint and the settings of its model.

    Args:
        tensor_names: of the stored tensors; empty if only config.json is known.
        overrides: fields of ModelConfig that config.json does not have, such as dtype.

    Raises:
        SettingsError: model_type or a value is not supported, or a key is missing.
    """
    model_type = hf_config.get("model_type")
    family = next((family for family in FAMILIES if family.model_type == model_type), None)
    if family is None:
        supported = ", ".join(sorted(family.model_type for family in FAMILIES))
        raise SettingsError(f"config.json: model_type={model_type} must be one of {supported}")
    try:
        names = {family.canonical_name(name) for name in tensor_names}
        return family, ModelConfig(**{**family.read_config(hf_config, names), **overrides})
    except KeyError as error:
        raise SettingsError(
            f"config.json: {error.args[0]}=None must be given for model_type={model_type}"
        ) from None


def find_family(config: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """Returns the first family that can hold a model, and the content of its config.json.

    A family can hold it if config.json, read back, gives the same effective settings.

    Raises:
        SettingsError: none can; names the settings in which the closest one differs.
    """
    closest: tuple[str, dict[str, tuple[Any, Any]]] | None = None
    for family in FAMILIES:
        changes = _changes(family, config)
        if changes is None:
            continue
        if not changes:
            return family, family.write_config(config)
        if "architecture" not in changes and (closest is None or len(changes) < len(closest[1])):
            closest = family.model_type, changes
    if closest is None:
        raise SettingsError(
            f"no supported Hugging Face class has model.architecture={config.architecture}"
        )
    name, changes = closest
    differences = ", ".join(
        f"model.{field}={old} (it has {new})" for field, (old, new) in changes.items()
    )
    raise SettingsError(
        f"no Hugging Face class has a model of these settings; the closest is {name}, except for "
        f"{differences}"
    )


def _changes(family: Family, config: ModelConfig) -> dict[str, tuple[Any, Any]] | None:
    """Returns {field: (given, read back)} where a family changes a model; None if it cannot try."""
    try:
        back = ModelConfig(**family.read_config(family.write_config(config), frozenset()))
    except (SettingsError, KeyError, TypeError):
        return None
    given, read_back = effective_settings(config), effective_settings(back)
    return {
        name: (given[name], read_back[name]) for name in given if given[name] != read_back[name]
    }


def architecture_fields() -> list[str]:
    """Returns the fields of ModelConfig that define the architecture."""
    return [f.name for f in dataclasses.fields(ModelConfig) if f.name not in _NOT_IN_HF]


def effective_settings(config: ModelConfig) -> dict[str, Any]:
    """Returns the architecture fields with defaults resolved, None where a field has no effect."""
    changed: dict[str, Any] = {}
    if config.attention_scale is None:
        width = config.head_dim + (config.rope_head_dim or 0)
        changed["attention_scale"] = width**-0.5
    if config.position != "rotary":
        changed |= dict.fromkeys(("rope_theta", "rope_theta_local", "rope_scaling"))
    if config.rope_theta_local == config.rope_theta and config.rope_scaling.kind == "none":
        changed["rope_theta_local"] = None
    if config.num_experts is None:
        changed |= dict.fromkeys(("router", "router_normalized", "router_scale"))
    elif config.num_dense_layers == 0:
        changed |= {"mlp_dim": None, "expert_dim": config.expert_width}
    return {name: changed.get(name, getattr(config, name)) for name in architecture_fields()}
