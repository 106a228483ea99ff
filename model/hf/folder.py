"""The folder of a Hugging Face model, as `save_pretrained` writes it: its settings and weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import SettingsError
from configs.model import ModelConfig
from configs.require import require
from model.hf.family import Family, HFConfig
from model.hf.registry import read_hf_config
from model.hf.safetensors import StoredTensor, stored_tensors
from model.hf.tensors import HFTensor
from model.hf.weights import Tree, match_tensors, read_params

CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class HFModel:
    """A Hugging Face model that Tessera supports, its weights not read yet."""

    path: Path
    hf_config: HFConfig
    """The content of config.json."""
    family: Family
    config: ModelConfig
    matched_tensors: list[tuple[HFTensor, StoredTensor]]
    """Each tensor and where it is stored, in the order on disk."""

    @property
    def max_sequence_len(self) -> int:
        """Tokens of the longest sequence by config.json, 512 where it does not say."""
        for key in ("max_position_embeddings", "n_positions"):
            if self.hf_config.get(key):
                return int(self.hf_config[key])
        return 512

    def read_params(self, shapes: Tree, layout: Tree) -> dict[str, Any]:
        """Returns Tessera's parameters in this layout."""
        return read_params(self.matched_tensors, shapes, layout)


def is_hf_folder(path: Path) -> bool:
    """Returns whether a folder holds a Hugging Face model, rather than a run."""
    try:
        hf_config = json.loads((path / CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(hf_config, dict) and "model_type" in hf_config


def open_hf_model(path: Path, **overrides: Any) -> HFModel:
    """Returns the model in a folder; reads config.json and the headers of the weights.

    Args:
        overrides: fields of ModelConfig that config.json does not have, such as dtype.

    Raises:
        SettingsError: it is not such a folder, the model is not supported, or its tensors do not
            match config.json.
        IntegrityError: a file is missing or truncated.
    """
    file = path / CONFIG
    require(file.is_file(), f"{path} must be a Hugging Face model's folder, but has no {CONFIG}")
    try:
        hf_config = json.loads(file.read_bytes())
    except ValueError as error:
        raise SettingsError(f"{file} must be JSON, but does not parse: {error}") from None
    require(isinstance(hf_config, dict), f"{file} must be one JSON object")
    stored = stored_tensors(path)
    family, config = read_hf_config(hf_config, stored.keys(), **overrides)
    return HFModel(
        path=path,
        hf_config=hf_config,
        family=family,
        config=config,
        matched_tensors=match_tensors(family, config, stored),
    )
