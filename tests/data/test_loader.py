"""Batches on the devices: each holds its rows, and each process reads only those of its own."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from small_model import SEQUENCE_LEN, mesh_of, small_batch
from small_processes import free_port

from sharding.rules import num_shards, sharding
from train.loader import local_rows, to_global

B, T = 8, SEQUENCE_LEN


@pytest.mark.parametrize(
    "cut",
    [
        {"data": 2, "fsdp": 2, "tensor": 2},
        {"data": 8},
        {"fsdp": 4, "context": 2},
        {"tensor": 8},
        {"expert": 4, "stage": 2},
    ],
    ids=str,
)
def test_every_device_gets_its_rows_of_the_batch(rng, cut):
    batch, mesh = small_batch(rng, B), mesh_of(**cut)
    layout = sharding(mesh, "act_batch", "act_len")
    assert local_rows(layout, B, T) == list(range(B))
    with jax.set_mesh(mesh):
        shape = (B // num_shards("act_batch"), T // num_shards("act_len"))
    placed_batch = to_global(batch, list(range(B)), layout, B)
    for placed, field in zip(*map(jax.tree.leaves, (placed_batch, batch)), strict=True):
        assert isinstance(placed, jax.Array)
        for shard in placed.addressable_shards:
            assert shard.data.shape == shape
            np.testing.assert_array_equal(shard.data, field[shard.index])


# Two processes of two devices each. Every process is given only the rows that it asks for.
TWO_PROCESSES = """
import sys
import jax
import jax.numpy as jnp
import numpy as np
port, number = sys.argv[1:]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(number))
from configs.run import MeshConfig
from data.batch import Batch
from sharding.mesh import make_mesh
from sharding.rules import sharding
from train.loader import local_rows, to_global
for sizes, num_rows in (((4, 1, 1), 4), ((1, 2, 2), 4), ((1, 1, 4), 8), ((2, 2, 1), 4)):
    mesh = make_mesh(MeshConfig(**dict(zip(("data", "fsdp", "tensor"), sizes))))
    layout = sharding(mesh, "act_batch", "act_len")
    whole = np.arange(8 * 3, dtype=np.int32).reshape(8, 3)
    rows = local_rows(layout, 8, 3)
    assert rows == sorted(rows) and len(rows) == num_rows, rows
    for placed in jax.tree.leaves(to_global(Batch(*[whole[rows]] * 5), rows, layout, 8)):
        assert placed.shape == (8, 3) and len(placed.addressable_shards) == 2
        for shard in placed.addressable_shards:
            np.testing.assert_array_equal(shard.data, whole[shard.index])
"""


def test_two_processes_place_one_batch_from_the_rows_that_each_has_read(environment):
    command = (sys.executable, "-c", TWO_PROCESSES, str(free_port()))
    processes = [
        subprocess.Popen((*command, number), env=environment, stderr=subprocess.PIPE, text=True)
        for number in "01"
    ]
    try:
        errors = [process.communicate(timeout=60)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
