"""The state: every leaf is initialized in the sharding that the table of rules gives it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from small_model import GPT2_LIKE, flat, mesh_of, small_batch, small_model, small_run

from configs.run import MeshConfig, RunConfig
from sharding.rules import sharding
from train.state import TrainState, abstract_state, init_state
from train.step import compile_train_step


def initialized(config: RunConfig, mesh: jax.sharding.Mesh) -> TrainState[jax.Array]:
    return init_state(config, jax.random.key(config.train.seed), mesh)


EMBED, VOCAB = ("fsdp", "expert", "context"), ("tensor", "stage")
SPECS = {
    "embedding": P(VOCAB, EMBED),
    "positions": P(None, EMBED),
    "head": P(EMBED, VOCAB),
    "norm/scale": P(None),
    "norm/bias": P(None),
    "layers/attention_norm/scale": P("stage", None),
    "layers/attention_norm/bias": P("stage", None),
    "layers/attention/query": P("stage", EMBED, "tensor", None),
    "layers/attention/key": P("stage", EMBED, "tensor", None),
    "layers/attention/value": P("stage", EMBED, "tensor", None),
    "layers/attention/out": P("stage", "tensor", None, EMBED),
    "layers/attention/query_bias": P("stage", "tensor", None),
    "layers/attention/key_bias": P("stage", "tensor", None),
    "layers/attention/value_bias": P("stage", "tensor", None),
    "layers/attention/out_bias": P("stage", None),
    "layers/attention/query_norm/scale": P("stage", None),
    "layers/attention/key_norm/scale": P("stage", None),
    "layers/mlp_norm/scale": P("stage", None),
    "layers/mlp_norm/bias": P("stage", None),
    "layers/mlp/up": P("stage", EMBED, "tensor"),
    "layers/mlp/up_bias": P("stage", "tensor"),
    "layers/mlp/down": P("stage", "tensor", EMBED),
    "layers/mlp/down_bias": P("stage", None),
}
EVERYTHING = small_run(small_model(**GPT2_LIKE, tied_embeddings=False, qk_norm=True))


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
def initialized_on_eight() -> tuple[TrainState[jax.Array], jax.sharding.Mesh]:
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    return initialized(EVERYTHING, mesh), mesh


def test_every_leaf_is_initialized_sharded():
    assert_layout(*initialized_on_eight())


def test_a_run_begins_with_the_same_numbers_on_every_mesh():
    state, _ = initialized_on_eight()
    # On one device and in another order of computation: float32 rounding of weights of size one.
    for path, leaf in flat(initialized(EVERYTHING, mesh_of()).params).items():
        np.testing.assert_allclose(flat(state.params)[path], leaf, rtol=1e-6, err_msg=path)


def test_the_state_that_a_restore_asks_for_has_the_layout_and_shapes_of_a_new_one():
    state, mesh = initialized_on_eight()
    asked = abstract_state(EVERYTHING, mesh)
    assert jax.tree.structure(asked) == jax.tree.structure(state)
    for shape, leaf in zip(jax.tree.leaves(asked), jax.tree.leaves(state), strict=True):
        assert (shape.shape, shape.dtype) == (leaf.shape, leaf.dtype)
        assert leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim)


def test_a_compiled_step_keeps_the_layout_and_takes_the_memory_of_its_state(rng):
    state, mesh = initialized_on_eight()
    state = jax.tree.map(jnp.copy, state)
    batch = jax.device_put(small_batch(rng, 8), sharding(mesh, "act_batch", "act_len"))
    with jax.set_mesh(mesh):
        after, _ = compile_train_step(EVERYTHING, state, batch)(state, batch)
    assert_layout(after, mesh)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize(
    ("path", "spec"),
    [
        ("layers/mlp/router", P("stage", None, None)),
        ("layers/mlp/gate", P("stage", "expert", ("fsdp", "context"), "tensor")),
        ("layers/mlp/up", P("stage", "expert", ("fsdp", "context"), "tensor")),
        ("layers/mlp/down", P("stage", "expert", "tensor", ("fsdp", "context"))),
        ("layers/attention/query", P("stage", EMBED, "tensor", None)),
    ],
)
def test_experts_are_cut_over_their_own_axis_and_the_rest_over_it_with_fsdp(path, spec):
    config = small_run(small_model(num_experts=4, num_active_experts=2))
    mesh = mesh_of(fsdp=2, expert=2, tensor=2)
    leaf = flat(abstract_state(config, mesh).params)[path]
    assert leaf.sharding.is_equivalent_to(jax.sharding.NamedSharding(mesh, spec), leaf.ndim)


def test_with_only_the_optimizer_sharded_parameters_are_whole_and_moments_are_cut():
    config = dataclasses.replace(EVERYTHING, mesh=MeshConfig(sharded_state="optimizer"))
    mesh = mesh_of(fsdp=4, tensor=2)
    state = abstract_state(config, mesh)
    whole = jax.sharding.NamedSharding(mesh, P("stage", None, "tensor", None))
    query = flat(state.params)["layers/attention/query"]
    assert query.sharding.is_equivalent_to(whole, query.ndim)
    for moments in (adam_of(state).mu, adam_of(state).nu):
        leaves = flat(moments)
        assert all(is_as_specified(path, leaf, mesh) for path, leaf in leaves.items())


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
    state, _ = initialized_on_eight()
    for params in (state.params, adam_of(state).mu, adam_of(state).nu):
        assert [shard.data.shape for shard in flat(params)[path].addressable_shards] == [shape] * 8
