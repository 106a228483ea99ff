"""Checkpoints of earlier versions: arrays are restored under their names of today, bit for bit."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from small_checkpoints import CONFIG, progress
from small_families import KINDS
from small_model import small_run

from sharding.tree_paths import by_path
from train.checkpoints.context import CheckpointContext
from train.checkpoints.parameter_digest import params_digest
from train.checkpoints.renamed_arrays import (
    RENAMED_ARRAYS,
    inverse,
    renamed,
    with_first_names,
)
from train.checkpoints.restore import restore_params, restore_state
from train.checkpoints.save import Checkpoints
from train.checkpoints.verify import verify
from train.optimizer import make_optimizer
from train.state import TrainState, shape_of


def parts(tree) -> set[str]:
    return {part for path in by_path(tree) for part in path.split("/")}


@pytest.fixture(params=["adamw", "sgd"])
def state(mesh, rng, request) -> TrainState:
    """A state with every renamed array, other numbers in each leaf, optimizer state included."""
    layer = {"attention": {"query": jnp.zeros((2, 8, 3))}}
    decoder = {name: layer for name in RENAMED_ARRAYS.values() if name.startswith("cross")}
    params = {"layers": layer | decoder, "leading_layers": layer, "mtp": {"block": layer}}
    optim = small_run(optim={"optimizer": request.param}).optim
    axes = jax.tree.map(lambda _: ("layers", "embed", "heads"), params)
    state = TrainState(jnp.int32(7), params, make_optimizer(optim, axes).init(params))
    where = NamedSharding(mesh, PartitionSpec())

    def fill(leaf: jax.Array) -> jax.Array:
        values = 1000 * rng.standard_normal(leaf.shape)
        return jax.device_put(values.astype(leaf.dtype), where)

    return jax.tree.map(fill, state)


@pytest.fixture
def earlier(state: TrainState, tmp_path: Path) -> TrainState:
    """The state as an earlier version named it, saved in tmp_path."""
    earlier = renamed(state, inverse(RENAMED_ARRAYS))
    checkpoints = Checkpoints(CheckpointContext(tmp_path, CONFIG), {})
    checkpoints.save(earlier, progress(7))
    checkpoints.close()
    verify(tmp_path, 7)
    for part in (earlier.params, earlier.opt_state):
        assert set(RENAMED_ARRAYS) <= parts(part)
        assert not set(RENAMED_ARRAYS.values()) & parts(part)
    return earlier


def assert_identical(found, expected) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.sharding) == (b.dtype, b.sharding)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_a_state_of_an_earlier_version_is_restored_bit_for_bit(state, earlier, tmp_path):
    assert_identical(restore_state(tmp_path, 7, state), state)
    assert_identical(restore_state(tmp_path, 7, earlier), earlier)


@pytest.mark.parametrize("frugal", [False, True])
def test_parameters_of_an_earlier_version_are_restored_alone(state, earlier, tmp_path, frugal):
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    found = restore_params(tmp_path, 7, like.params, frugal=frugal)
    assert_identical(found, state.params)
    assert params_digest(with_first_names(found)) == params_digest(earlier.params)


def test_the_first_version_of_the_digest_has_the_earlier_paths():
    # printf 'cross_norm/scale\0(1,)\0float32\0\0\0\200\77' > x   (1.0, little-endian)
    # printf 'first_layers/w\0(1,)\0float32\0\0\0\0\300' >> x; sha256sum x   (-2.0)
    params = {
        "leading_layers": {"w": np.array([-2], np.float32)},
        "cross_attention_norm": {"scale": np.array([1], np.float32)},
    }
    golden = "e3e475a45b13bd7323f43447b43a094401d8720eafc296a54dd886f0ed1fb699"
    assert params_digest(with_first_names(params)) == golden
    assert params_digest(params) != golden
    same = {"layers": params["leading_layers"]}  # no array of it was renamed
    assert params_digest(with_first_names(same)) == params_digest(same)


def test_models_have_each_name_of_today_and_no_earlier_one():
    found = {part for kind in KINDS.values() for part in parts(shape_of(kind.model).params)}
    assert set(RENAMED_ARRAYS.values()) <= found
    assert not set(RENAMED_ARRAYS) & found
