"""Trees of arrays as tables by path, such as layers/attention/query, and back."""

from collections.abc import Mapping
from typing import Any

import jax


def by_path(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by path, in its order."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tree of dicts that has these leaves by path."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *rooms, name = path.split("/")
        room = tree
        for key in rooms:
            room = room.setdefault(key, {})
        room[name] = leaf
    return tree
