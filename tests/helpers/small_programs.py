"""Small training steps, compiled for layouts over eight devices, and what is read from them."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ahead_of_time import compile_ahead_of_time
from small_model import mesh_of, small_model, small_run

from configs.run import MeshConfig, RunConfig
from sharding.compiled.program import Program, describe

VOCAB = 384
"""A size that nothing else has, so that an array with the whole vocabulary is known by it."""
MODEL = small_model(
    num_layers=8,
    embed_dim=64,
    num_heads=8,
    num_kv_heads=8,
    head_dim=16,
    mlp_dim=192,
    vocab_size=VOCAB,
    tied_embeddings=False,
    remat="full",
)
"""Wide enough that the norms, which every device has whole, are little beside the matrices."""
EXPERTS: Mapping[str, Any] = {"num_experts": 4, "num_active_experts": 2}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Settings by which a program differs from that of one device."""

    cut: Mapping[str, int]
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mesh: Mapping[str, Any] = dataclasses.field(default_factory=dict)


LAYOUTS = {
    "data 8": Layout({"data": 8}),
    "fsdp 8": Layout({"fsdp": 8}),
    "fsdp 8, only the optimizer": Layout({"fsdp": 8}, mesh={"sharded_state": "optimizer"}),
    "data 2, fsdp 4": Layout({"data": 2, "fsdp": 4}),
    "tensor 2": Layout({"tensor": 2}),
    "tensor 4": Layout({"tensor": 4}),
    "tensor 8": Layout({"tensor": 8}),
    "data 2, fsdp 2, tensor 2": Layout({"data": 2, "fsdp": 2, "tensor": 2}),
    "context 4, ring": Layout({"context": 4}),
    "context 4, all-gather": Layout({"context": 4}, {"context_attention": "all_gather"}),
    "expert 4, dropless": Layout({"expert": 4}, EXPERTS),
    "expert 4, capacity": Layout({"expert": 4}, {**EXPERTS, "expert_dispatch": "capacity"}),
    "stage 2": Layout({"stage": 2}),
    "stage 2, data 2, tensor 2": Layout({"stage": 2, "data": 2, "tensor": 2}),
}


def config_of(name: str) -> RunConfig:
    """Returns the settings of a layout: 16 rows of 16 tokens."""
    layout = LAYOUTS[name]
    config = small_run(dataclasses.replace(MODEL, **layout.model), train={"batch_size": 16})
    mesh = MeshConfig(**{"data": 1, **layout.cut, **layout.mesh})
    return dataclasses.replace(config, mesh=mesh)


@functools.cache
def program_of(name: str) -> Program:
    """Returns the compiled training step of a layout."""
    mesh = mesh_of(**LAYOUTS[name].cut)
    quickly = {"xla_backend_optimization_level": 0}  # of machine code alone
    return describe(compile_ahead_of_time(config_of(name), mesh, compiler_options=quickly), mesh)


def communication(program: Program) -> list[str]:
    """Returns what a program exchanges, a line for each kind of it.

    Counted are arrays and not instructions, since XLA puts several in one; scalars are left out.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for each in program.collectives:
        loops = " x ".join(map(str, each.loops))
        if loops:
            place = f"{'backward' if each.is_backward else 'forward'}, in a loop of {loops}"
        else:
            place = "once, in the backward pass" if each.is_backward else "once"
        what = f"{each.kind} over {' and '.join(each.axes)}"
        counts[place, what] += sum(bool(array.dims) for array in each.arrays)
    return [
        f"{place:30} {what:40} {number:>3}"
        for (place, what), number in sorted(counts.items())
        if number
    ]
