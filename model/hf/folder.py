"""A folder as `save_pretrained` writes it: settings and weights of a model, and its tokenizer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.check import require
from configs.errors import SettingsError
from configs.model import ModelConfig
from model.hf.family import Family
from model.hf.registry import read_settings
from model.hf.safetensors import INDEX, Stored, stored_tensors
from model.hf.tensors import Tensor
from model.hf.weights import Tree, match_tensors, read_weights

CONFIG = "config.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
"""The best first."""


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """A model in the way of Hugging Face, all of whose tensors have a place in one of ours."""

    path: Path
    said: Mapping[str, Any]
    """Its config.json."""
    family: Family
    config: ModelConfig
    pairs: list[tuple[Tensor, Stored]]
    """What each of its tensors becomes."""

    @property
    def tokenizer(self) -> Path | None:
        """The file of its tokenizer, None where there is none that we read."""
        return next((self.path / n for n in _TOKENIZERS if (self.path / n).is_file()), None)

    @property
    def small_files(self) -> list[Path]:
        """What is beside its weights: settings, tokenizer and the like."""
        is_small = {".json", ".model", ".txt", ".jinja"}
        paths = (p for p in sorted(self.path.iterdir()) if p.suffix in is_small and p.is_file())
        return [path for path in paths if path.name != INDEX]

    @property
    def longest_row(self) -> int:
        """Tokens of the longest text that it is said to read."""
        for key in ("max_position_embeddings", "n_positions"):
            if self.said.get(key):
                return int(self.said[key])
        return 512

    def read(self, shapes: Tree, layout: Tree) -> dict[str, Any]:
        """Returns its parameters as ours, in this layout, layers in model order."""
        return read_weights(self.pairs, shapes, layout)


def is_published(path: Path) -> bool:
    """Says whether a folder holds a model in the way of Hugging Face, and not a run of ours."""
    try:
        said = json.loads((path / CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and "model_type" in said


def open_published(path: Path, **ours: Any) -> PublishedModel:
    """Returns the model in a folder, whose weights are not read yet.

    Args:
        ours: settings that it cannot say, such as dtype.

    Raises:
        SettingsError: it is no such folder, or a model that we do not have, or has other tensors
            than its settings say.
        IntegrityError: a file is missing or cut short.
    """
    file = path / CONFIG
    require(
        file.is_file(),
        f"{path} must be the folder of a Hugging Face model, with {CONFIG} and weights, but has no "
        f"{CONFIG}",
    )
    try:
        said = json.loads(file.read_bytes())
    except ValueError as error:
        raise SettingsError(f"{file} must be JSON, but does not parse: {error}") from None
    require(isinstance(said, dict), f"{file} must be one JSON object")
    stored = stored_tensors(path)
    family, config = read_settings(said, stored.keys(), **ours)
    pairs = match_tensors(family, config, stored)
    return PublishedModel(path=path, said=said, family=family, config=config, pairs=pairs)
