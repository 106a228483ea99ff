"""Tensors of a Hugging Face checkpoint as slices of Tessera's parameters, and back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

Arrays = Sequence[np.ndarray]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class ParamSlice:
    """A parameter of Tessera, or one layer of it, or one expert of a layer."""

    path: str
    """Of the parameter, such as layers/attention/query."""
    index: tuple[int, ...] = ()
    """The layer, and the expert in it; () is the whole parameter."""


@dataclass(frozen=True)
class HFTensor:
    """A tensor of a Hugging Face checkpoint and the parameter slices that it is made of."""

    name: str
    shape: Shape
    """In the checkpoint."""
    slices: tuple[ParamSlice, ...]
    to_slices: Callable[[np.ndarray], Arrays]
    """From the tensor to the values of its slices."""
    from_slices: Callable[[Arrays], np.ndarray]
    """The inverse, exact to the bit."""


def reshaped(
    name: str, path: str, index: tuple[int, ...], shape: Shape, hf_shape: Shape = ()
) -> HFTensor:
    """Returns a tensor with the elements of a slice in the same order; hf_shape () is flat."""
    hf_shape = hf_shape or (prod(shape),)
    return HFTensor(
        name,
        hf_shape,
        (ParamSlice(path, index),),
        to_slices=lambda x: [x.reshape(shape)],
        from_slices=lambda values: values[0].reshape(hf_shape),
    )


def transposed(
    name: str, path: str, index: tuple[int, ...], shape: Shape, num_in: int = 1
) -> HFTensor:
    """Returns a linear layer: [out, in] in the checkpoint, [in..., out...] in Tessera.

    Args:
        num_in: leading dims of the slice's shape that are the input.
    """
    into, out = prod(shape[:num_in]), prod(shape[num_in:])
    return HFTensor(
        name,
        (out, into),
        (ParamSlice(path, index),),
        to_slices=lambda x: [x.T.reshape(shape)],
        from_slices=lambda values: values[0].reshape(into, out).T,
    )


def padded(name: str, tensor: HFTensor, num: int, num_padded: int, axis: int = 0) -> HFTensor:
    """Returns a tensor with num rows in the checkpoint, zero-padded to num_padded in Tessera.

    Args:
        tensor: the padded one, of num_padded rows.
        axis: of the checkpoint's tensor, along which the rows are counted.
    """
    shape = list(tensor.shape)
    shape[axis] = num

    def to_slices(x: np.ndarray) -> Arrays:
        widths = [(0, num_padded - num if i == axis else 0) for i in range(x.ndim)]
        return tensor.to_slices(np.pad(x, widths))

    def from_slices(values: Arrays) -> np.ndarray:
        rows = (slice(None),) * axis + (slice(num),)
        return tensor.from_slices(values)[rows]

    return HFTensor(name, tuple(shape), tensor.slices, to_slices, from_slices)


def concatenated(name: str, tensors: Sequence[HFTensor], axis: int = 0) -> HFTensor:
    """Returns one tensor that holds several, concatenated along an axis in the checkpoint."""
    edges = np.cumsum([tensor.shape[axis] for tensor in tensors])
    nums = np.cumsum([len(tensor.slices) for tensor in tensors])
    shape = list(tensors[0].shape)
    shape[axis] = int(edges[-1])

    def to_slices(x: np.ndarray) -> Arrays:
        pieces = np.split(x, edges[:-1], axis=axis)
        return [
            value
            for tensor, piece in zip(tensors, pieces, strict=True)
            for value in tensor.to_slices(piece)
        ]

    def from_slices(values: Arrays) -> np.ndarray:
        groups = [values[n - len(t.slices) : n] for n, t in zip(nums, tensors, strict=True)]
        pieces = [tensor.from_slices(group) for tensor, group in zip(tensors, groups, strict=True)]
        return np.concatenate(pieces, axis=axis)

    slices = tuple(param for tensor in tensors for param in tensor.slices)
    return HFTensor(name, tuple(shape), slices, to_slices, from_slices)


def reordered(tensor: HFTensor, order: np.ndarray) -> HFTensor:
    """Returns a tensor whose rows in the checkpoint, taken in this order, are those of tensor."""
    inverse = np.argsort(order)
    return HFTensor(
        tensor.name,
        tensor.shape,
        tensor.slices,
        to_slices=lambda x: tensor.to_slices(x[order]),
        from_slices=lambda values: tensor.from_slices(values)[inverse],
    )
