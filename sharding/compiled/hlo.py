"""Reading the text of a compiled program: its computations, instructions, types and groups.

The text is XLA's HLO as `compiled.as_text()` gives it, of any backend.
"""

import math
import re
from dataclasses import dataclass

import numpy as np

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "token": 0, "opaque": 0, "bf16": 2}
_HEADER = re.compile(r"(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_END = re.compile(r"\}(?:, execution_thread=.*)?$")
"""Not each line that begins with a brace: a kernel's configuration may have lines of its own."""
_HEAD = re.compile(r"\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = ")
_ARRAY = re.compile(r"\b(?P<dtype>[a-z][a-z0-9]*)\[(?P<dims>[0-9,]*)\]")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
    r"|\b(?:branch_computations|called_computations)=\{([^}]*)\}"
)


@dataclass(frozen=True)
class Array:
    """The type of an array on one device."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its elements."""
        return math.prod(self.dims)

    @property
    def num_bytes(self) -> int:
        """Its bytes without padding."""
        bits = re.search(r"\d+", self.dtype)
        width = _BYTES.get(self.dtype, int(bits[0]) / 8 if bits else 1)
        return math.ceil(self.size * width)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    type_text: str
    """The type of the result as it is written, layouts included."""
    operands: tuple[str, ...]
    """Names of the instructions that it reads."""
    attributes: str
    """The operands as written, and the rest of the line."""
    is_root: bool

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of the result, those of a tuple one after the other."""
        return parse_type(self.type_text)

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it runs, or applies to pairs of elements."""
        names = []
        for single, several in _CALLED.findall(self.attributes):
            names += [single] if single else re.findall(r"[\w.\-]+", several)
        return tuple(names)

    def ints(self, name: str) -> tuple[int, ...]:
        """Returns the list of numbers of an attribute such as lhs_contracting_dims={0,1}."""
        match = re.search(rf"\b{name}=\{{([0-9,]*)\}}", self.attributes)
        return _ints(match[1]) if match else ()

    @property
    def op_name(self) -> str:
        """Where in the traced function it comes from; "" where XLA made it."""
        match = re.search(r'\bop_name="([^"]*)"', self.attributes)
        return match[1] if match else ""


Computation = dict[str, Instruction]
"""Instructions by name, in order."""


def parse_module(text: str) -> tuple[dict[str, Computation], str]:
    """Returns the computations of a program by name, and the name of the first that runs."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            header = _HEADER.match(line)
            if header and " -> " in line:
                current = computations[header["name"]] = {}
                entry = header["name"] if line.startswith("ENTRY") else entry
        elif _END.match(line):
            current = None
        else:
            instruction = parse_instruction(line)
            if instruction is not None:
                current[instruction.name] = instruction
    assert entry, "the text has no ENTRY computation"
    return computations, entry


def parse_instruction(line: str) -> Instruction | None:
    """Returns what a line of a computation says; None for a line that is no instruction."""
    head = _HEAD.match(line)
    if head is None:
        return None
    start = head.end()
    type_end = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    opening = line.index("(", type_end)
    operands_end = _closing(line, opening)
    return Instruction(
        name=head["name"],
        opcode=line[type_end:opening].strip(),
        type_text=line[start:type_end],
        operands=tuple(re.findall(r"%([\w.\-]+)", line[opening:operands_end])),
        attributes=line[opening:],
        is_root=head["root"] is not None,
    )


def parse_type(text: str) -> tuple[Array, ...]:
    """Returns the arrays of a type, of which a tuple has several and nested ones are flat."""
    return tuple(Array(match["dtype"], _ints(match["dims"])) for match in _ARRAY.finditer(text))


def parse_groups(attributes: str, num_devices: int) -> np.ndarray | None:
    """Returns the devices of each replica group, [groups, devices]; None where there are none.

    Devices are numbered by their place in the mesh. The three ways in which XLA writes groups are
    lists ({{0,1},{2,3}}), reshapes of a count ([2,2]<=[4]) and axes of a mesh (mesh['a'=2,'b'=2]
    {'a'}).
    """
    match = re.search(r"\breplica_groups=(.*)", attributes)
    if match is None:
        return None
    text = match[1]
    if text.startswith("mesh"):
        return _mesh_groups(text)
    if text.startswith("["):
        shape = re.match(r"\[([0-9,]+)\]<=(\[[0-9,]+\](?:T\([0-9,]+\))?)", text)
        assert shape is not None, text[:80]
        return _counted(shape[2]).reshape(_ints(shape[1]))
    groups = re.findall(r"\{([0-9,]+)\}", text[: text.index("}}") + 2] if "}}" in text else "")
    if not groups:
        return np.arange(num_devices)[None]
    return np.array([_ints(group) for group in groups])


def parse_pairs(attributes: str) -> np.ndarray | None:
    """Returns the (source, target) devices of a permutation, [pairs, 2]; None without one."""
    match = re.search(r"\bsource_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
    if match is None:
        return None
    return np.array([_ints(pair) for pair in re.findall(r"\{([0-9,]+)\}", match[1])]).reshape(-1, 2)


def _mesh_groups(text: str) -> np.ndarray:
    """Reads mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b', 'a':(1)2}."""
    match = re.match(r"mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", text)
    assert match is not None, text[:80]
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
    order = _counted(match[2]) if match[2] else np.arange(math.prod(sizes.values()))
    grouped: dict[str, tuple[int, int]] = {}  # {axis: (size before the grouped part, its size)}
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", match[3]):
        grouped[name] = (int(before), int(size)) if size else (1, sizes[name])
    dims: list[int] = []
    inside: list[int] = []
    for name, total in sizes.items():
        before, size = grouped.get(name, (total, 1))
        inside.append(len(dims) + 1)
        dims += [before, size, total // before // size]
    outside = [dim for dim in range(len(dims)) if dim not in inside]
    size = math.prod(dims[dim] for dim in inside)
    return order.reshape(dims).transpose(outside + inside).reshape(-1, size)


def _counted(text: str) -> np.ndarray:
    """Reads [2,4]T(1,0): numbers from 0 in this shape, transposed, and flat again; or a list."""
    match = re.match(r"\[([0-9,]+)\](?:T\(([0-9,]+)\))?", text)
    if match is None:
        return np.array(_ints(text))
    shape = _ints(match[1])
    order = np.arange(math.prod(shape)).reshape(shape)
    return (order.transpose(_ints(match[2])) if match[2] else order).reshape(-1)


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def _closing(line: str, opening: int) -> int:
    """Returns the place after the parenthesis that closes the one at `opening`."""
    depth = 0
    for i in range(opening, len(line)):
        depth += (line[i] == "(") - (line[i] == ")")
        if depth == 0:
            return i + 1
    return len(line)
