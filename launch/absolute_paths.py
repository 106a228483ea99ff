"""Paths as they are kept in config.json: whole, so that a run is found from any folder."""

import dataclasses
import os
from pathlib import Path

from configs.data import STDLIB, TOKENIZER_FILES, DataConfig
from data.hf_hub import is_hub
from data.object_store import is_remote

RUNS = Path("runs")
"""Where runs are, below the folder that a command is given in."""


def with_whole_paths(config: DataConfig) -> DataConfig:
    tokenizer = config.tokenizer
    is_path = "/" in tokenizer or tokenizer.endswith(TOKENIZER_FILES)
    return dataclasses.replace(
        config,
        path=None if config.mixture else config.path and whole_path(config.path),
        mixture=tuple(map(_whole_entry, config.mixture)),
        validation=tuple(map(_whole_entry, config.validation)),
        decontaminate_from=tuple(map(whole_path, config.decontaminate_from)),
        tokenizer=whole_path(tokenizer) if is_path else tokenizer,
    )


def whole_path(path: str) -> str:
    """Returns a path that holds from any folder; what is not of this machine stays as it is."""
    if path == STDLIB or is_remote(path) or is_hub(path):
        return path
    return os.path.abspath(os.path.expanduser(path))  # links are kept


def _whole_entry(entry: str) -> str:
    name, _, path = entry.partition("=")
    return f"{name}={whole_path(path)}"
