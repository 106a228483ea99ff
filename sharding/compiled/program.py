"""What a compiled program asks of a device: its memory, its matmuls, what it sends to others.

XLA's own count of FLOPs takes the body of a loop once; here everything counts as often as it runs.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import jax
import numpy as np

from sharding.compiled.hlo import (
    Array,
    Computation,
    Instruction,
    parse_groups,
    parse_module,
    parse_pairs,
)

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclass(frozen=True)
class Loop:
    """A while loop around an instruction."""

    num_trips: int
    """1 where the text does not say how often."""
    op_name: str


@dataclass(frozen=True, kw_only=True)
class Collective:
    """Arrays that devices exchange in one instruction."""

    kind: str
    """One of KINDS. An all-reduce of which each device keeps a part is a reduce-scatter."""
    axes: tuple[str, ...]
    """Axes of the mesh along which the devices that exchange differ, the outermost first."""
    arrays: tuple[Array, ...]
    """What a device has of each array where it has most: the result, or what is scattered."""
    loops: tuple[int, ...]
    """How often the loops around it run, the outermost first; none is once in a step."""
    is_backward: bool
    """It is in the backward pass, as far as XLA knows from where it comes."""

    @property
    def num_times(self) -> int:
        """How often it is executed in a step."""
        return math.prod(self.loops)

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays of one execution."""
        return sum(array.num_bytes for array in self.arrays)


@dataclass(frozen=True, kw_only=True)
class Program:
    """A compiled program as one device sees it; bytes and FLOPs are those of a device."""

    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    """Bytes of arguments whose memory becomes that of results."""
    temp_bytes: int
    matmul_flops: int
    """Multiplications and additions of all matmuls, as if every branch were taken."""
    collectives: tuple[Collective, ...]
    arrays: frozenset[Array]
    """The type of everything that is computed, inside fusions as well."""

    @property
    def peak_bytes(self) -> int:
        """Memory that is enough: arguments, temporaries, and results that are no arguments."""
        return self.argument_bytes + self.temp_bytes + self.output_bytes - self.alias_bytes


def describe(compiled: jax.stages.Compiled, mesh: jax.sharding.Mesh) -> Program:
    """Returns what a program compiled for a mesh asks of each of its devices."""
    memory = compiled.memory_analysis()
    assert memory is not None
    text = compiled.as_text()
    assert text is not None
    flops, collectives, arrays = read_text(text, mesh.shape)
    return Program(
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        matmul_flops=flops,
        collectives=collectives,
        arrays=arrays,
    )


def read_text(
    text: str, mesh_shape: Mapping[str, int]
) -> tuple[int, tuple[Collective, ...], frozenset[Array]]:
    """Returns the FLOPs of matmuls, the collectives and the types of all arrays of a program.

    Args:
        text: HLO after partitioning, for devices numbered in the order of the mesh.
        mesh_shape: {axis: size} from the outermost axis to the innermost.
    """
    computations, entry = parse_module(text)
    flops = 0
    collectives: list[Collective] = []
    arrays: set[Array] = set()
    for instruction, computation, loops in _walk(computations, entry):
        if instruction.opcode not in ("parameter", "get-tuple-element", "tuple", "while"):
            arrays.update(instruction.arrays)
        times = math.prod(loop.num_trips for loop in loops)
        flops += times * matmul_flops(instruction, computation)
        collective = _collective(instruction, computation, loops, mesh_shape)
        if collective is not None:
            collectives.append(collective)
    return flops, tuple(collectives), frozenset(arrays)


def _walk(
    computations: dict[str, Computation], name: str, loops: tuple[Loop, ...] = ()
) -> Iterator[tuple[Instruction, Computation, tuple[Loop, ...]]]:
    """Yields all that a computation runs, with the computation it is in and the loops around it."""
    computation = computations[name]
    for instruction in computation.values():
        yield instruction, computation, loops
        inner = loops
        if instruction.opcode == "while":
            inner = (*loops, Loop(num_trips(instruction, computations), instruction.op_name))
        elif not _runs_what_it_names(instruction):
            continue
        for called in instruction.called:
            yield from _walk(computations, called, inner)


def _runs_what_it_names(instruction: Instruction) -> bool:
    """Says whether the computations that an instruction names run once, not for each element.

    The end of something asynchronous may name what its start has named already.
    """
    if instruction.opcode.endswith(("-start", "-done", "-update")):
        return instruction.opcode in ("async-start", "call-start")
    return instruction.opcode in ("fusion", "call", "conditional")


def num_trips(loop: Instruction, computations: dict[str, Computation]) -> int:
    """Returns how often the body of a while loop runs: as XLA has found, or its bound.

    The bound is the one integer constant of the condition, for a loop that counts from 0 by 1; 1
    where there is none.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if known:
        return int(known[1])
    condition = re.search(r"\bcondition=%?([\w.\-]+)", loop.attributes)
    assert condition is not None, loop
    bounds = [
        int(number[1])
        for instruction, *_ in _walk(computations, condition[1])
        if instruction.opcode == "constant"
        and (number := re.match(r"\((\d+)\)", instruction.attributes))
    ]
    return bounds[0] if len(bounds) == 1 else 1


def _collective(
    instruction: Instruction,
    computation: Computation,
    loops: tuple[Loop, ...],
    mesh_shape: Mapping[str, int],
) -> Collective | None:
    """Returns what an instruction exchanges; None for any other instruction."""
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    arrays = _exchanged(instruction)
    axes = _axes(instruction, mesh_shape)
    if not axes:
        return None  # each device with itself
    root = next((each for each in computation.values() if each.is_root), None)
    if kind == "reduce-scatter":
        size = math.prod(mesh_shape[axis] for axis in axes)
        arrays = tuple(Array(x.dtype, (size, *x.dims)) for x in arrays)
    elif kind == "all-reduce" and root is not None and root.opcode == "dynamic-slice":
        kind = "reduce-scatter"  # as XLA for TPU writes it: a fusion of the two
    names = (instruction.op_name, *(loop.op_name for loop in loops))
    return Collective(
        kind=kind,
        axes=axes,
        arrays=arrays,
        loops=tuple(loop.num_trips for loop in loops),
        is_backward=any("transpose(" in name for name in names),
    )


def _exchanged(instruction: Instruction) -> tuple[Array, ...]:
    """Returns the results of a collective, without what else its type holds."""
    arrays = instruction.arrays
    match instruction.opcode:
        case "all-gather-start" | "reduce-scatter-start":  # (operands, results)
            return arrays[len(arrays) // 2 :]
        case "collective-permute-start":  # (operand, result, two numbers of a context)
            return arrays[1:2]
        case "all-to-all" if len(arrays) > 1:  # a part for each device, together one array
            first = arrays[0]
            return (Array(first.dtype, (len(arrays), *first.dims)),)
    return arrays


def _axes(instruction: Instruction, mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the axes of the mesh along which the devices of a group have different places."""
    sizes = tuple(mesh_shape.values())
    groups = parse_pairs(instruction.attributes)
    if groups is None:
        groups = parse_groups(instruction.attributes, math.prod(sizes))
    if groups is None:
        return ()
    places = np.stack(np.unravel_index(groups, sizes))  # [axes, groups, devices of a group]
    differs = (places != places[..., :1]).any(axis=(1, 2))
    return tuple(axis for axis, is_spanned in zip(mesh_shape, differs, strict=True) if is_spanned)


def matmul_flops(instruction: Instruction, computation: Computation) -> int:
    """Returns the FLOPs of one execution of a dot or a convolution; 0 for anything else."""
    if instruction.opcode not in ("dot", "convolution"):
        return 0
    left, right = (computation[name].arrays[0] for name in instruction.operands[:2])
    (result,) = instruction.arrays
    if instruction.opcode == "convolution":
        return _convolution_flops(instruction, left.dims, right.dims, result.dims)
    contracted = instruction.ints("lhs_contracting_dims")
    return 2 * result.size * math.prod(left.dims[dim] for dim in contracted)


def _convolution_flops(
    instruction: Instruction,
    left: tuple[int, ...],
    right: tuple[int, ...],
    result: tuple[int, ...],
) -> int:
    """Returns the FLOPs of what XLA for TPU makes of a matmul.

    Batch dims of a matmul are dims along which the window is moved so that it meets one element of
    the input each time; only pairs that meet are counted.
    """
    labels = re.search(r"\bdim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels is not None, instruction
    window = _window(instruction.attributes)
    pairs = 1
    for dim in range(len(left) - 2):
        size, moved = left[labels[1].index(str(dim))], result[labels[3].index(str(dim))]
        pairs *= _num_pairs(size, moved, **{name: values[dim] for name, values in window.items()})
    batch, features = result[labels[3].index("b")], result[labels[3].index("f")]
    return 2 * batch * features * right[labels[2].index("i")] * pairs


def _window(attributes: str) -> dict[str, list[int]]:
    """Reads window={size=8x4 stride=7x1 pad=0_0x3_3 lhs_dilate=8x1}, one number for each dim."""
    match = re.search(r"\bwindow=\{([^}]*)\}", attributes)
    if match is None:
        return {}
    fields = dict(field.split("=") for field in match[1].split())
    sizes = [int(size) for size in fields["size"].split("x")]
    ones = "x".join("1" * len(sizes))
    zeros = "x".join(["0_0"] * len(sizes))
    return {
        "size": sizes,
        "stride": [int(n) for n in fields.get("stride", ones).split("x")],
        "before": [int(n.split("_")[0]) for n in fields.get("pad", zeros).split("x")],
        "dilation": [int(n) for n in fields.get("lhs_dilate", ones).split("x")],
        "window_dilation": [int(n) for n in fields.get("rhs_dilate", ones).split("x")],
    }


def _num_pairs(
    length: int,
    num_places: int,
    *,
    size: int,
    stride: int,
    before: int,
    dilation: int,
    window_dilation: int,
) -> int:
    """Returns how many (place of a window, element of it) meet an element of the input."""
    at = np.arange(num_places)[:, None] * stride - before
    at = at + np.arange(size)[None, :] * window_dilation
    return int(((at >= 0) & (at % dilation == 0) & (at // dilation < length)).sum())
