import functools
import socket
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from small_model import (
    GPT2_LIKE,
    SEQUENCE_LEN,
    flat,
    mesh_of,
    quick_jit,
    random_params,
    small_batch,
    small_model,
    small_run,
)

from configs.run import RunConfig
from data.batch import Batch
from sharding.rules import sharding
from train.feed import place, rows_here
from train.optimizer import make_optimizer
from train.state import TrainState, abstract_state, init_state, state_layout
from train.step import compile_train_step, make_train_step

B, T = 8, SEQUENCE_LEN
MODEL = small_model(
    embed_dim=32,
    num_heads=8,
    num_kv_heads=8,
    head_dim=4,
    dropout=0.1,
    attention_dropout=0.1,
)
CUTS_OF_EIGHT = (
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"data": 8},
    {"fsdp": 8},
    {"tensor": 8},
    {"data": 4, "fsdp": 2},
)
by_cut = pytest.mark.parametrize("cut", CUTS_OF_EIGHT, ids=str)


def place_batch(batch: Batch, mesh: jax.sharding.Mesh) -> Batch:
    layout = sharding(mesh, "act_batch", "act_len")
    rows = rows_here(layout, B, T)
    return place(jax.tree.map(lambda field: field[np.array(rows)], batch), rows, layout, B)


def born(config: RunConfig, mesh: jax.sharding.Mesh) -> TrainState[jax.Array]:
    tx = make_optimizer(config.optim)
    return init_state(config.model, tx, jax.random.key(config.train.seed), mesh)


def ten_steps(config: RunConfig, mesh: jax.sharding.Mesh):
    """Returns the losses and gradient norms of the first ten steps, each on another batch."""
    rng = np.random.default_rng(0)
    tx, params = make_optimizer(config.optim), random_params(config.model, std=0.2)
    layout = state_layout(config.model, tx, mesh)
    state = jax.device_put(TrainState(jnp.zeros((), jnp.int32), params, tx.init(params)), layout)
    with jax.set_mesh(mesh):
        step = quick_jit(make_train_step(config), out_shardings=(layout, None))
        losses, norms = [], []
        for _ in range(10):
            state, metrics = step(state, place_batch(small_batch(rng, B), mesh))
            losses.append(float(metrics.loss))
            norms.append(float(metrics.grad_norm))
    return losses, norms


@functools.cache
def on_one_device(config: RunConfig):
    losses, norms = ten_steps(config, mesh_of())
    assert losses[-1] < losses[0] - 0.1  # it learns, or else there is little to compare
    return losses, norms


def assert_layout_changes_nothing(config: RunConfig, cut: dict[str, int]) -> None:
    losses, norms = ten_steps(config, mesh_of(**cut))
    expected_losses, expected_norms = on_one_device(config)
    # The same terms added up in another order, in float32, over ten steps of AdamW.
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    np.testing.assert_allclose(norms, expected_norms, rtol=1e-5)


@by_cut
def test_the_layout_does_not_change_the_losses(cut):
    assert_layout_changes_nothing(small_run(MODEL), cut)


def test_the_layout_does_not_change_the_losses_of_microbatches_and_grouped_heads():
    model = small_model(dropout=0.1)
    config = small_run(model, train={"num_microbatches": 2})
    assert_layout_changes_nothing(config, {"data": 2, "fsdp": 2, "tensor": 2})


SPECS = {
    "embedding": P("tensor", "fsdp"),
    "positions": P(None, "fsdp"),
    "head": P("fsdp", "tensor"),
    "norm/scale": P(None),
    "norm/bias": P(None),
    "layers/attention_norm/scale": P(None, None),
    "layers/attention_norm/bias": P(None, None),
    "layers/attention/query": P(None, "fsdp", "tensor", None),
    "layers/attention/key": P(None, "fsdp", "tensor", None),
    "layers/attention/value": P(None, "fsdp", "tensor", None),
    "layers/attention/out": P(None, "tensor", None, "fsdp"),
    "layers/attention/query_bias": P(None, "tensor", None),
    "layers/attention/key_bias": P(None, "tensor", None),
    "layers/attention/value_bias": P(None, "tensor", None),
    "layers/attention/out_bias": P(None, None),
    "layers/attention/query_norm/scale": P(None, None),
    "layers/attention/key_norm/scale": P(None, None),
    "layers/mlp_norm/scale": P(None, None),
    "layers/mlp_norm/bias": P(None, None),
    "layers/mlp/up": P(None, "fsdp", "tensor"),
    "layers/mlp/up_bias": P(None, "tensor"),
    "layers/mlp/down": P(None, "tensor", "fsdp"),
    "layers/mlp/down_bias": P(None, None),
}
EVERYTHING = small_run(small_model(**GPT2_LIKE, tied_head=False, qk_norm=True))


def is_as_specified(path: str, leaf: jax.Array, mesh: jax.sharding.Mesh) -> bool:
    layout = jax.sharding.NamedSharding(mesh, SPECS[path])
    return leaf.sharding.is_equivalent_to(layout, leaf.ndim)


def adam_of(state: Any) -> Any:
    """Returns the moments, out of the chain of clipping, Adam and weight decay."""
    return state.opt_state[1]


def assert_layout(state: TrainState[jax.Array], mesh: jax.sharding.Mesh) -> None:
    """Asserts that parameters lie as in SPECS, moments as their parameters, the rest everywhere."""
    adam = adam_of(state)
    for params in (state.params, adam.mu, adam.nu):
        leaves = flat(params)
        assert leaves.keys() == SPECS.keys()
        wrong = [path for path, leaf in leaves.items() if not is_as_specified(path, leaf, mesh)]
        assert not wrong
    assert state.step.sharding.is_fully_replicated
    assert adam.count.sharding.is_fully_replicated
    assert len(jax.tree.leaves(state)) == 2 + 3 * len(SPECS)


@functools.cache
def born_on_eight() -> tuple[TrainState[jax.Array], jax.sharding.Mesh]:
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    return born(EVERYTHING, mesh), mesh


def test_every_leaf_is_born_in_its_layout():
    assert_layout(*born_on_eight())


def test_a_run_begins_with_the_same_numbers_on_every_mesh():
    state, _ = born_on_eight()
    # On one device and in another order of computation: float32 rounding of weights of size one.
    for path, leaf in flat(born(EVERYTHING, mesh_of()).params).items():
        np.testing.assert_allclose(flat(state.params)[path], leaf, rtol=1e-6, err_msg=path)


def test_the_state_that_a_restore_asks_for_has_the_layout_and_shapes_of_a_new_one():
    state, mesh = born_on_eight()
    asked = abstract_state(EVERYTHING.model, make_optimizer(EVERYTHING.optim), mesh)
    assert jax.tree.structure(asked) == jax.tree.structure(state)
    for shape, leaf in zip(jax.tree.leaves(asked), jax.tree.leaves(state), strict=True):
        assert (shape.shape, shape.dtype) == (leaf.shape, leaf.dtype)
        assert leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim)


def test_a_compiled_step_keeps_the_layout_and_takes_the_memory_of_its_state(rng):
    state, mesh = born_on_eight()
    state = jax.tree.map(jnp.copy, state)
    batch = place_batch(small_batch(rng, B), mesh)
    with jax.set_mesh(mesh):
        after, _ = compile_train_step(EVERYTHING, state, batch)(state, batch)
    assert_layout(after, mesh)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("embedding", (64, 8)),  # of 128 tokens x 16
        ("layers/attention/query", (2, 8, 2, 8)),  # of 2 layers x 16 x 4 heads x 8
        ("layers/mlp/down", (2, 16, 8)),  # of 2 layers x 32 x 16
        ("norm/scale", (16,)),
    ],
)
def test_a_device_holds_its_part_of_each_parameter_and_of_its_moments(path, shape):
    state, _ = born_on_eight()
    for params in (state.params, adam_of(state).mu, adam_of(state).nu):
        assert [shard.data.shape for shard in flat(params)[path].addressable_shards] == [shape] * 8


@by_cut
def test_every_device_gets_its_rows_of_the_batch(rng, cut):
    batch, mesh = small_batch(rng, B), mesh_of(**cut)
    num_parts = mesh.shape["data"] * mesh.shape["fsdp"]
    assert rows_here(sharding(mesh, "act_batch", "act_len"), B, T) == list(range(B))
    for placed, field in zip(place_batch(batch, mesh), batch, strict=True):
        assert isinstance(placed, jax.Array)
        for shard in placed.addressable_shards:
            assert shard.data.shape == (B // num_parts, T)
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
from train.feed import place, rows_here
for sizes, num_rows in (((4, 1, 1), 4), ((1, 2, 2), 4), ((1, 1, 4), 8), ((2, 2, 1), 4)):
    mesh = make_mesh(MeshConfig(**dict(zip(("data", "fsdp", "tensor"), sizes))))
    layout = sharding(mesh, "act_batch", "act_len")
    whole = np.arange(8 * 3, dtype=np.int32).reshape(8, 3)
    rows = rows_here(layout, 8, 3)
    assert rows == sorted(rows) and len(rows) == num_rows, rows
    for placed in place(Batch(*[whole[rows]] * 5), rows, layout, 8):
        assert placed.shape == (8, 3) and len(placed.addressable_shards) == 2
        for shard in placed.addressable_shards:
            np.testing.assert_array_equal(shard.data, whole[shard.index])
"""


def test_two_processes_place_one_batch_from_the_rows_that_each_has_read(environment):
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    command = (sys.executable, "-c", TWO_PROCESSES, str(port))
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
