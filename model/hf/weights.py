"""Weights read from a checkpoint straight into sharded arrays, and written from them."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from configs.errors import SettingsError
from configs.model import ModelConfig
from model.hf.family import Family
from model.hf.safetensors import Stored, by_file
from model.hf.tensors import Part, Tensor
from sharding.piecewise import fill, zeros
from sharding.tree_paths import by_path, nested

Tree = Mapping[str, Any]
"""Arrays by module path, nested."""


def match_tensors(
    family: Family, config: ModelConfig, stored: Mapping[str, Stored]
) -> list[tuple[Tensor, Stored]]:
    """Returns what each stored tensor becomes, in the order in which they lie on disk.

    Raises:
        SettingsError: tensors are missing, are too many, or have other shapes; it names them.
    """
    wanted = {tensor.name: tensor for tensor in family.tensors(config)}
    found: dict[str, tuple[Tensor, Stored]] = {}
    extra, shapes = [], []
    for name, there in by_file(stored):
        canonical = family.canonical(name)
        tensor = wanted.get(canonical)
        if tensor is not None:
            found[canonical] = (tensor, there)
            if there.shape != tensor.shape:
                shapes.append(f"{name} is {there.shape} and must be {tensor.shape}")
        elif canonical not in family.copies and not canonical.endswith(family.ignored or ("\0",)):
            extra.append(name)
    missing = [name for name in wanted if name not in found]
    problems = [
        f"{words}: {_some(names)}"
        for words, names in (
            ("tensors are missing", missing),
            ("tensors that this model does not have", extra),
            ("tensors of another shape", shapes),
        )
        if names
    ]
    if problems:
        raise SettingsError(
            f"the weights do not fit config.json (model_type={family.model_type}); "
            + "; ".join(problems)
        )
    return list(found.values())


def _some(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def read_weights(pairs: list[tuple[Tensor, Stored]], shapes: Tree, layout: Tree) -> dict[str, Any]:
    """Returns float32 parameters, each filled tensor by tensor where it lies.

    Args:
        shapes: of all parameters, by path.
        layout: the sharding of each.
    """
    flat_shapes, flat_layout = by_path(shapes), by_path(layout)
    arrays = {
        path: zeros(leaf.shape, leaf.dtype, flat_layout[path]) for path, leaf in flat_shapes.items()
    }
    for tensor, stored in pairs:
        parts = tensor.split(stored.read())
        for part, value in zip(tensor.parts, parts, strict=True):
            where = flat_layout[part.path]
            arrays[part.path] = fill(arrays[part.path], value, where, part.index)
    return nested(arrays)


def tensor_arrays(params: Tree, tensors: list[Tensor]) -> Iterator[np.ndarray]:
    """Yields each tensor in their shape, float32, fetched as it is asked for."""
    flat = by_path(params)
    for tensor in tensors:
        yield tensor.join([_get(flat[part.path], part) for part in tensor.parts])


def _get(array: jax.Array, part: Part) -> np.ndarray:
    return np.asarray(array[part.index] if part.index else array)
