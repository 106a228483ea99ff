"""How one tensor of a Hugging Face checkpoint and parts of our parameters make up each other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

Arrays = Sequence[np.ndarray]


@dataclass(frozen=True)
class Part:
    """An array of ours, or one layer, or one expert of a layer of it."""

    path: str
    """Of the parameter, such as layers/attention/query."""
    index: tuple[int, ...] = ()
    """Which layer, and which expert."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of theirs, the parts of ours that are in it, and the way from each to the other."""

    name: str
    shape: tuple[int, ...]
    """Theirs."""
    parts: tuple[Part, ...]
    split: Callable[[np.ndarray], Arrays]
    """From theirs to the parts."""
    join: Callable[[Arrays], np.ndarray]
    """From the parts to theirs; gives back every bit of what was split."""


def same(name: str, part: Part, ours: tuple[int, ...], theirs: tuple[int, ...] = ()) -> Tensor:
    """Returns a tensor whose elements stand in the same order, in the same shape or another."""
    theirs = theirs or (prod(ours),)
    return Tensor(
        name,
        theirs,
        (part,),
        split=lambda x: [x.reshape(ours)],
        join=lambda parts: parts[0].reshape(theirs),
    )


def transposed(name: str, part: Part, ours: tuple[int, ...], num_in: int = 1) -> Tensor:
    """Returns a linear layer: theirs is [out, in], ours is [in..., out...].

    Args:
        num_in: dims of ours that are the input.
    """
    into, out = prod(ours[:num_in]), prod(ours[num_in:])
    return Tensor(
        name,
        (out, into),
        (part,),
        split=lambda x: [x.T.reshape(ours)],
        join=lambda parts: parts[0].reshape(into, out).T,
    )


def padded(name: str, tensor: Tensor, num: int, num_padded: int, axis: int = 0) -> Tensor:
    """Returns a tensor of which theirs has fewer rows than ours, whose others are zero.

    Args:
        tensor: with num_padded rows.
        axis: of theirs, along which the rows are.
    """
    shape = list(tensor.shape)
    shape[axis] = num

    def split(x: np.ndarray) -> Arrays:
        widths = [(0, num_padded - num if i == axis else 0) for i in range(x.ndim)]
        return tensor.split(np.pad(x, widths))

    def join(parts: Arrays) -> np.ndarray:
        rows = (slice(None),) * axis + (slice(num),)
        return tensor.join(parts)[rows]

    return Tensor(name, tuple(shape), tensor.parts, split, join)


def together(name: str, tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Returns one tensor that several make up, one after the other along an axis of theirs."""
    edges = np.cumsum([tensor.shape[axis] for tensor in tensors])
    nums = np.cumsum([len(tensor.parts) for tensor in tensors])
    shape = list(tensors[0].shape)
    shape[axis] = int(edges[-1])

    def split(x: np.ndarray) -> Arrays:
        pieces = np.split(x, edges[:-1], axis=axis)
        return [
            part
            for tensor, piece in zip(tensors, pieces, strict=True)
            for part in tensor.split(piece)
        ]

    def join(parts: Arrays) -> np.ndarray:
        groups = [parts[n - len(t.parts) : n] for n, t in zip(nums, tensors, strict=True)]
        pieces = [tensor.join(group) for tensor, group in zip(tensors, groups, strict=True)]
        return np.concatenate(pieces, axis=axis)

    return Tensor(name, tuple(shape), tuple(part for t in tensors for part in t.parts), split, join)


def reordered(tensor: Tensor, order: np.ndarray) -> Tensor:
    """Returns a tensor whose rows, taken in an order, are those of another one."""
    back = np.argsort(order)
    return Tensor(
        tensor.name,
        tensor.shape,
        tensor.parts,
        split=lambda x: tensor.split(x[order]),
        join=lambda parts: tensor.join(parts)[back],
    )
