"""What layouts exchange on eight virtual devices, beside a table, and laws about it.

Written anew, to be read before it is kept, by:
PYTHONPATH=.:tests/helpers python tests/sharding/test_communication.py
"""

import math
from pathlib import Path

import jax
import pytest
from small_programs import LAYOUTS, MODEL, VOCAB, communication, config_of, program_of

from configs.counts import count
from launch.jax_setup import prepare_jax

B, T = config_of("data 8").train.batch_size, config_of("data 8").data.sequence_len
L, D, F = MODEL.num_layers, MODEL.embed_dim, MODEL.mlp_dim
HEADS = MODEL.num_heads * MODEL.head_dim
VERSION = ".".join(jax.__version__.split(".")[:2])
TABLE = Path(__file__).parent / "tables" / f"communication-jax-{VERSION}.txt"
HEADER = f"""\
# What a training step exchanges in each layout, as XLA for CPU compiles it with jax {VERSION}:
# arrays (scalars are left out) by where in the step it happens, kind and axes of the mesh. A model
# of {L} layers, model.remat=full; XLA for CPU forms no reduce-scatter of gradients.
# Written by: PYTHONPATH=.:tests/helpers python tests/sharding/test_communication.py
"""
NOT_ROWS = ("tensor", "stage")
"""Axes whose devices have the same rows."""
WHOLE = ("data 8", "fsdp 8, only the optimizer")
"""Layouts of which every device has all parameters."""


def layouts(*names: str):
    return pytest.mark.parametrize("name", names)


def section(name: str) -> str:
    return "\n".join((f"[{name}]", *communication(program_of(name))))


@layouts(*LAYOUTS)
def test_a_layout_exchanges_what_the_table_says(name):
    assert TABLE.exists(), f"no table for jax {VERSION}; the first lines here say how to write it"
    sections = TABLE.read_text().removeprefix(HEADER).strip().split("\n\n")
    expected = {text.partition("]")[0].removeprefix("["): text for text in sections}
    assert section(name).splitlines() == expected[name].splitlines()


@layouts(*(name for name in LAYOUTS if name not in WHOLE))
def test_a_device_has_its_share_of_the_state_and_of_the_batch(name):
    config, cut = config_of(name), LAYOUTS[name].cut
    batch_bytes = 5 * 4 * B * T / math.prod(n for axis, n in cut.items() if axis not in NOT_ROWS)
    parts = math.prod(n for axis, n in cut.items() if axis != "data")
    state_bytes = 3 * 4 * count(config.model, T).total / parts
    # Norms and routers are whole on every device: up to 3 % of a share in this model.
    assert program_of(name).argument_bytes == pytest.approx(state_bytes + batch_bytes, rel=0.05)


@layouts(*(name for name in LAYOUTS if name not in WHOLE))
def test_no_device_gathers_all_layers_at_once(name):
    smallest = L * D * HEADS  # elements of the smallest stack of matrices
    assert not [array for array in gathered(name) if array.size >= smallest]


def gathered(name: str):
    collectives = program_of(name).collectives
    return [x for each in collectives if each.kind == "all-gather" for x in each.arrays]


@layouts("tensor 2", "tensor 4", "tensor 8", "data 2, fsdp 2, tensor 2", "stage 2")
def test_no_device_has_the_whole_vocabulary(name):
    arrays = program_of(name).arrays
    assert not [array for array in arrays if len(array.dims) > 1 and VOCAB in array.dims]


def test_replicas_exchange_nothing_before_the_backward_pass():
    collectives = program_of("data 8").collectives
    assert any(each.is_backward for each in collectives)
    early = [each for each in collectives if not each.is_backward]
    assert not [array for each in early for array in each.arrays if array.dims]


@layouts("context 4, ring", "context 4, all-gather")
def test_only_without_the_ring_are_keys_and_values_gathered(name):
    keys = B * T * MODEL.num_kv_heads * MODEL.head_dim
    num_gathered = sum(array.size >= keys for array in gathered(name))
    assert (num_gathered > 0) == (name == "context 4, all-gather")


@layouts("expert 4, dropless", "expert 4, capacity")
def test_no_device_gathers_the_experts_of_another(name):
    assert not [array for array in gathered(name) if array.size >= D * F and F in array.dims]


@layouts("data 8", "fsdp 8", "tensor 8", "data 2, fsdp 2, tensor 2")
def test_the_matmuls_of_all_devices_are_those_of_the_model(name):
    block = 4 * D * HEADS + 3 * D * F
    scores = 2 * T * HEADS
    # Twice for multiply and add; once forward, once more recomputed, twice backward. What leaves
    # the MLP is not recomputed, since no gradient needs it.
    a_token = L * (2 * 4 * (block + scores) - 2 * D * F) + 2 * 3 * D * VOCAB
    assert program_of(name).matmul_flops * 8 == B * T * a_token


if __name__ == "__main__":
    prepare_jax(virtual_devices=8)
    TABLE.write_text(HEADER + "\n" + "\n\n".join(map(section, LAYOUTS)) + "\n")
