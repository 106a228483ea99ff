"""Names that arrays had in earlier versions: a path is made of module attributes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from sharding.tree_paths import by_path

Tree = TypeVar("Tree")

RENAMED_ARRAYS = {
    "first_layers": "leading_layers",
    "future": "mtp",
    "cross": "cross_attention",
    "cross_norm": "cross_attention_norm",
    "cross_out_norm": "cross_attention_out_norm",
}
"""{part of a path in an earlier version: its name now}. The earlier names must stay unused."""


def inverse(names: Mapping[str, str]) -> dict[str, str]:
    return {new: old for old, new in names.items()}


def with_first_names(tree: Tree) -> Tree:
    """Returns a tree under the first names of its arrays.

    JAX goes through a tree in the order of its names. A sum over its leaves is bit for bit the same
    in every version where it runs in the order of the first ones.
    """
    return renamed(tree, inverse(RENAMED_ARRAYS))


def earlier_names(state: Path, like: Any) -> dict[str, str]:
    """Returns {part of a path in `like`: the earlier name under which a saved state has it}."""
    names = {new: old for new, old in inverse(RENAMED_ARRAYS).items() if new in _parts(like)}
    if not names:
        return {}
    saved = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).metadata(state).item_metadata
    assert saved is not None
    parts = _parts(saved.tree)
    return {new: old for new, old in names.items() if old in parts}


def renamed(tree: Tree, names: Mapping[str, str]) -> Tree:
    """Returns a tree with these names in its paths; the leaves are the same objects."""

    def rename(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        return {names.get(key, key): renamed(child, names) for key, child in node.items()}

    return jax.tree.map(rename, tree, is_leaf=lambda node: isinstance(node, dict))


def _parts(tree: Any) -> set[str]:
    return {part for path in by_path(tree) for part in path.split("/")}
