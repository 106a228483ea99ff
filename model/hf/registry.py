"""Which family a checkpoint or a model of ours belongs to."""

import dataclasses
from collections.abc import Set
from typing import Any

from configs.errors import SettingsError
from configs.model import ModelConfig
from model.hf.families.decoders import (
    GEMMA2,
    GEMMA3,
    LLAMA,
    MISTRAL,
    MIXTRAL,
    OLMO2,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
)
from model.hf.families.deepseek import DEEPSEEK_V3
from model.hf.families.encoder_decoders import MARIAN, T5
from model.hf.families.encoders import BERT, MODERNBERT
from model.hf.families.gpt2 import GPT2
from model.hf.family import Family, Said

FAMILIES = (
    LLAMA,
    QWEN3,
    QWEN2,
    MISTRAL,
    OLMO2,
    GEMMA2,
    GEMMA3,
    MIXTRAL,
    QWEN3_MOE,
    DEEPSEEK_V3,
    GPT2,
    BERT,
    MODERNBERT,
    T5,
    MARIAN,
)
"""In the order in which a model of ours that fits several is given to one."""

_OURS_ALONE = (
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
    "future_weight",
)
"""Settings of ours that say how a model is trained or computed, and not what it is."""


def read_settings(said: Said, names: Set[str], **ours: Any) -> tuple[Family, ModelConfig]:
    """Returns the family of a checkpoint and the settings of its model.

    Args:
        said: its config.json.
        names: of its tensors.
        ours: settings that a checkpoint does not have, such as dtype.

    Raises:
        SettingsError: the architecture or a setting is none that we have, or one is missing.
    """
    kind = said.get("model_type")
    family = next((family for family in FAMILIES if family.model_type == kind), None)
    if family is None:
        supported = ", ".join(sorted(family.model_type for family in FAMILIES))
        raise SettingsError(
            f"config.json: model_type={kind} is not supported; models of these types are: "
            f"{supported}"
        )
    try:
        canonical = {family.canonical(name) for name in names}
        return family, ModelConfig(**{**family.read(said, canonical), **ours})
    except KeyError as error:
        raise SettingsError(
            f"config.json: {error.args[0]}=None must be given for model_type={kind}"
        ) from None


def find_family(config: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """Returns the family that has a model of these settings, and its settings in their words.

    A family has it where what it can say, read back, is the same model.

    Raises:
        SettingsError: none has; names the settings that stand against the closest one.
    """
    closest: tuple[str, dict[str, tuple[Any, Any]]] | None = None
    for family in FAMILIES:
        changes = _lost(family, config)
        if changes is None:
            continue
        if not changes:
            return family, family.write(config)
        if "architecture" not in changes and (closest is None or len(changes) < len(closest[1])):
            closest = family.model_type, changes
    if closest is None:
        raise SettingsError(
            f"no Hugging Face class that is known here has model.architecture={config.architecture}"
        )
    name, changes = closest
    words = ", ".join(
        f"model.{field}={old} (it has {new})" for field, (old, new) in changes.items()
    )
    raise SettingsError(
        f"no Hugging Face class has a model of these settings; the closest is {name}, but for "
        f"{words}"
    )


def _lost(family: Family, config: ModelConfig) -> dict[str, tuple[Any, Any]] | None:
    """Returns {setting: (ours, what comes back)} of what a family cannot say; None if nothing."""
    try:
        back = ModelConfig(**family.read(family.write(config), frozenset()))
    except (SettingsError, KeyError, TypeError):
        return None
    return {
        name: (ours, theirs)
        for name, ours, theirs in zip(
            settings_of_model(), meaning(config).values(), meaning(back).values(), strict=True
        )
        if ours != theirs
    }


def settings_of_model() -> list[str]:
    """Returns the names of the settings that say what a model is."""
    return [f.name for f in dataclasses.fields(ModelConfig) if f.name not in _OURS_ALONE]


def meaning(config: ModelConfig) -> dict[str, Any]:
    """Returns the settings that say what a model is, None for those that are not read."""
    unread: dict[str, Any] = {}
    if config.attention_scale is None:
        width = config.head_dim + (config.rope_head_dim or 0)
        unread["attention_scale"] = width**-0.5
    if config.position != "rotary":
        unread |= dict.fromkeys(("rope_theta", "rope_theta_local", "rope_scaling"))
    if config.position != "relative":
        unread |= dict.fromkeys(("num_relative_buckets", "max_relative_distance"))
    if config.rope_theta_local == config.rope_theta and config.rope_scaling == "none":
        unread["rope_theta_local"] = None
    if config.num_experts is None:
        unread |= dict.fromkeys(("router", "router_normalized", "router_scale"))
    elif config.num_dense_layers == 0:
        unread |= {"mlp_dim": None, "expert_dim": config.expert_width}
    return {name: unread.get(name, getattr(config, name)) for name in settings_of_model()}
