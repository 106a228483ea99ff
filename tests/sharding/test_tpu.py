"""Programs of large models, as XLA compiles them for TPU pods that are not there.

Needs the compiler (`pip install libtpu`, of the version that jax[tpu] asks for) and no TPU. Each
program is compiled in a process of its own, in one to four minutes on two cores.
Written anew, to be read before it is kept, by:
PYTHONPATH=.:tests/helpers python tests/sharding/test_tpu.py
"""

import dataclasses
import functools
import math
import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT

from configs.counts import count
from configs.presets.table import PRESETS
from configs.run import MeshConfig, RunConfig
from sharding.compiled.program import Collective, Program

pytestmark = pytest.mark.slow

TABLE = Path(__file__).parent / "tables" / "tpu.txt"
CHIP_BYTES = 95e9
"""Memory of a TPU v5p chip, from Google Cloud's page on it."""
HEADER = """\
# Training steps of large models as XLA compiles them for pods of TPU v5p: {versions}.
# Rows of 8192 tokens, one for each part of the batch; model.remat=full; attention without a kernel.
# Memory and FLOPs are those of a chip; FLOPs of kernels (the grouped matmuls of experts) are not
# counted, 6ND and "with attention" (12 L d T a token) are. Then what a chip exchanges: how many
# arrays, their bytes in one go (MB) and in a step (GB); less than 1 MB in a step is left out.
# Written by: PYTHONPATH=.:tests/helpers python tests/sharding/test_tpu.py
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """A preset on a pod whose three dims are rings."""

    preset: str
    pod: tuple[int, int, int]
    mesh: Mapping[str, Any]

    @property
    def config(self) -> RunConfig:
        """The settings, with a row for each part of the batch."""
        config = PRESETS[self.preset]()
        parts = math.prod(self.mesh.get(axis, 1) for axis in ("data", "fsdp", "expert"))
        return dataclasses.replace(
            config,
            mesh=MeshConfig(**{"data": 1, **self.mesh}),
            train=dataclasses.replace(config.train, batch_size=parts),
        )

    @property
    def name(self) -> str:
        """As the table has it."""
        mesh = ", ".join(f"{axis} {size}" for axis, size in self.mesh.items())
        return f"{self.preset}, v5p {'x'.join(map(str, self.pod))}, {mesh}"


LLAMA_8B = Case("llama3_8b", (4, 4, 4), {"fsdp": 64})
LLAMA_8B_REPLICAS = Case("llama3_8b", (4, 4, 4), {"data": 4, "fsdp": 16})
LLAMA_70B = Case("llama3_70b", (8, 8, 8), {"fsdp": 128, "tensor": 4})
MIXTRAL = Case("mixtral_8x7b", (4, 4, 4), {"fsdp": 8, "expert": 8})
CASES = (LLAMA_8B, LLAMA_8B_REPLICAS, LLAMA_70B, MIXTRAL)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def versions() -> str:
    """Returns the versions that decide about a program, "" without the compiler."""
    try:
        return f"jax {version('jax')}, libtpu {version('libtpu')}"
    except PackageNotFoundError:
        return ""


@functools.cache
def program_of(case_number: int) -> Program:
    """Returns the training step of a case."""
    if not versions():
        pytest.skip("the compiler for TPU is not installed (pip install libtpu)")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/helpers'}",
    }
    child = subprocess.run(
        (sys.executable, __file__, str(case_number)),
        env=environment,
        capture_output=True,
    )
    assert child.returncode == 0, child.stderr.decode()[-4000:]
    return pickle.loads(child.stdout)


def compile_here(case: Case) -> Program:
    """Returns the training step of a case; in a process that has seen no TPU and never will."""
    from ahead_of_time import compile_ahead_of_time
    from jax.experimental import topologies

    from sharding.compiled.program import describe
    from sharding.mesh import make_mesh

    name = "x".join(map(str, case.pod))
    pod = topologies.get_topology_desc(
        platform="tpu", topology_name=f"v5p:{name}", wrap=(True, True, True)
    )
    mesh = make_mesh(case.config.mesh, pod.devices)
    return describe(compile_ahead_of_time(case.config, mesh), mesh)


def program(case: Case) -> Program:
    return program_of(CASES.index(case))


def section(case: Case) -> str:
    """Returns the lines of the table about a case."""
    found, counts = program(case), count(case.config.model, case.config.data.sequence_len)
    tokens = case.config.tokens_per_step / math.prod(case.pod)
    return "\n".join(
        (
            f"[{case.name}]",
            f"memory   {found.argument_bytes / 1e9:.1f} GB arguments, "
            f"{found.temp_bytes / 1e9:.1f} GB temporaries, {found.peak_bytes / 1e9:.1f} GB in all",
            f"matmuls  {found.matmul_flops / 1e12:.0f} TFLOP; "
            f"{6 * counts.matmul * tokens / 1e12:.0f} by 6ND, "
            f"{counts.flops_full * tokens / 1e12:.0f} with attention",
            *exchanged(found),
        )
    )


def exchanged(found: Program) -> list[str]:
    arrays: Counter[tuple[str, str]] = Counter()
    once: Counter[tuple[str, str]] = Counter()
    a_step: Counter[tuple[str, str]] = Counter()
    for each in found.collectives:
        key = (place(each), f"{each.kind} over {' and '.join(each.axes)}")
        arrays[key] += sum(bool(array.dims) for array in each.arrays)
        once[key] += each.num_bytes
        a_step[key] += each.num_bytes * each.num_times
    return [
        f"{key[0]:27} {key[1]:36} {arrays[key]:>3} {once[key] / 1e6:8.1f} MB {total / 1e9:8.1f} GB"
        for key, total in sorted(a_step.items())
        if total > 1e6
    ]


def place(each: Collective) -> str:
    if not each.loops:
        return "once, in the backward pass" if each.is_backward else "once"
    way = "backward" if each.is_backward else "forward"
    return f"{way}, in a loop of {' x '.join(map(str, each.loops))}"


@every_case
def test_a_large_model_compiles_and_fits(case):
    assert program(case).peak_bytes < CHIP_BYTES


@every_case
def test_a_chip_has_its_share_of_the_state(case):
    model, length = case.config.model, case.config.data.sequence_len
    parts = math.prod(size for axis, size in case.mesh.items() if axis != "data")
    share = 3 * 4 * count(model, length).total / parts
    # Norms and routers are whole on every chip, and the batch is no state: together below 1 %.
    assert program(case).argument_bytes == pytest.approx(share, rel=0.05)


@every_case
def test_no_chip_gathers_all_layers_at_once(case):
    model = case.config.model
    tensor = case.mesh.get("tensor", 1)
    smallest = model.num_layers * model.embed_dim * model.num_kv_heads * model.head_dim // tensor
    stacks = [
        array
        for each in program(case).collectives
        for array in each.arrays
        if array.size >= smallest and model.num_layers in array.dims
    ]
    assert not stacks


@pytest.mark.parametrize("case", [LLAMA_8B_REPLICAS, LLAMA_70B], ids=lambda case: case.name)
def test_gradients_of_layers_are_scattered_as_they_are_summed(case):
    # Not where fsdp is the whole torus of a pod: XLA for TPU sums over its three dims at once
    # everywhere, and takes a part of that. Replicas over one of the dims avoid it.
    model, collectives = case.config.model, program(case).collectives
    sums = Counter(
        each.kind
        for each in collectives
        if each.is_backward and each.loops and each.axes == ("fsdp",)
        for array in each.arrays
        if array.size >= model.embed_dim * model.mlp_dim / case.mesh.get("tensor", 1)
        and each.kind in ("all-reduce", "reduce-scatter")
    )
    assert sums == {"reduce-scatter": 3}  # gate, up, down


@every_case
def test_the_matmuls_are_those_of_the_model_and_of_its_recomputation(case):
    config = case.config
    if config.model.num_experts:
        pytest.skip("grouped matmuls are kernels, whose FLOPs depend on where tokens go")
    tokens = config.tokens_per_step / math.prod(case.pod)
    flops = count(config.model, config.data.sequence_len).flops_full * tokens
    # A third more where everything is recomputed; the head is not, nor is what leaves an MLP.
    assert 1.2 * flops < program(case).matmul_flops < 4 / 3 * flops


def test_tokens_travel_to_experts_and_no_chip_gathers_the_experts_of_another():
    model, collectives = MIXTRAL.config.model, program(MIXTRAL).collectives
    assert any(each.kind == "ragged-all-to-all" for each in collectives)
    weights = [
        math.prod(array.dims) // (model.embed_dim * model.mlp_dim)
        for each in collectives
        for array in each.arrays
        if {model.embed_dim, model.mlp_dim} <= set(array.dims)
    ]
    assert set(weights) == {1}  # an expert a chip


@every_case
def test_a_program_is_as_the_table_says(case):
    found = program(case)
    text = TABLE.read_text()
    if versions() not in text.partition("\n")[0]:
        pytest.skip(f"the table is of other versions than {versions()}")
    assert found is not None
    sections = text.split("\n\n")[1:]
    expected = {part.partition("]")[0].removeprefix("["): part.strip() for part in sections}
    assert section(case).splitlines() == expected[case.name].splitlines()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.stdout.buffer.write(pickle.dumps(compile_here(CASES[int(sys.argv[1])])))
    else:
        header = HEADER.format(versions=versions())
        TABLE.write_text(header + "\n" + "\n\n".join(map(section, CASES)) + "\n")
