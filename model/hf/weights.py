"""Weights read from a checkpoint straight into sharded arrays, and back into its tensors."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from configs.errors import SettingsError
from configs.model import ModelConfig
from model.hf.family import Family
from model.hf.safetensors import StoredTensor
from model.hf.tensors import HFTensor
from sharding.fill_sharded import fill, zeros
from sharding.tree_paths import by_path, nested

Tree = Mapping[str, Any]
"""Arrays by module path, nested."""


def match_tensors(
    family: Family, config: ModelConfig, stored: Mapping[str, StoredTensor]
) -> list[tuple[HFTensor, StoredTensor]]:
    """Returns each tensor of the family with where it is stored, in the order on disk.

    Raises:
        SettingsError: tensors are missing, unexpected, or of another shape; it names them.
    """
    expected = {tensor.name: tensor for tensor in family.tensors(config)}
    matched: dict[str, tuple[HFTensor, StoredTensor]] = {}
    unexpected, wrong_shapes = [], []
    on_disk = sorted(stored.items(), key=lambda item: (item[1].file.name, item[1].start))
    for stored_name, there in on_disk:
        name = family.canonical_name(stored_name)
        tensor = expected.get(name)
        if tensor is not None:
            matched[name] = (tensor, there)
            if there.shape != tensor.shape:
                wrong_shapes.append(f"{stored_name} is {there.shape} and must be {tensor.shape}")
        elif name not in family.tied_tensors and not name.endswith(family.ignored_suffixes):
            unexpected.append(stored_name)
    problems = [
        f"{problem}: {_first_of(names)}"
        for problem, names in (
            ("missing tensors", [name for name in expected if name not in matched]),
            ("unexpected tensors", unexpected),
            ("tensors of another shape", wrong_shapes),
        )
        if names
    ]
    if problems:
        raise SettingsError(
            f"the weights do not match config.json (model_type={family.model_type}); "
            + "; ".join(problems)
        )
    return list(matched.values())


def _first_of(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def read_params(
    matched: list[tuple[HFTensor, StoredTensor]], shapes: Tree, layout: Tree
) -> dict[str, Any]:
    """Returns float32 parameters, initialized sharded and filled tensor by tensor."""
    flat_shapes, flat_layout = by_path(shapes), by_path(layout)
    arrays = {
        path: zeros(leaf.shape, leaf.dtype, flat_layout[path]) for path, leaf in flat_shapes.items()
    }
    for tensor, stored in matched:
        values = tensor.to_slices(stored.read())
        for param, value in zip(tensor.slices, values, strict=True):
            where = flat_layout[param.path]
            arrays[param.path] = fill(arrays[param.path], value, where, param.index)
    return nested(arrays)


def hf_arrays(params: Tree, tensors: list[HFTensor]) -> Iterator[np.ndarray]:
    """Yields the array of each tensor in its Hugging Face shape, float32, one fetched at a time."""
    flat = by_path(params)
    for tensor in tensors:
        arrays = ((flat[param.path], param.index) for param in tensor.slices)
        yield tensor.from_slices([np.asarray(x[index] if index else x) for x, index in arrays])
