"""Trees of arrays as tables by path, such as layers/attention/query, and back."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util


def by_path(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by path, in its order."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tree of dicts that has these leaves by path."""
    return traverse_util.unflatten_dict(leaves, sep="/")
