"""Checkpoints: what is restored is what was saved, and what is not whole never counts."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import small_model, small_run

from configs.errors import IntegrityError
from configs.run import CheckpointConfig, MeshConfig
from sharding.mesh import make_mesh
from train.checkpoint import Checkpoints, params_digest
from train.checkpoint_files import Progress, checkpoint_steps, kept_steps, read_progress
from train.state import TrainState, abstract_state

RUN = small_run(small_model(embed_dim=32))
CONFIG = CheckpointConfig(every_steps=1, num_last=10)


@pytest.fixture
def checkpoints(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, CONFIG)
    yield checkpoints
    checkpoints.close()


def progress(step: int, eval_loss: float | None = None) -> Progress:
    return Progress(step=step, tokens=128 * step, data_sha256="d" * 64, eval_loss=eval_loss)


def shapes(mesh: jax.sharding.Mesh) -> TrainState:
    return abstract_state(RUN, mesh)


def random_state(mesh: jax.sharding.Mesh, rng: np.random.Generator) -> TrainState:
    """Returns a state with other numbers in each leaf, moments included, in its layout."""

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = rng.standard_normal(leaf.shape) * 1000
        return jax.device_put(values.astype(leaf.dtype), leaf.sharding)

    return jax.tree.map(fill, shapes(mesh))


def small_state(value: float = 1.0) -> TrainState:
    params = {"a": jnp.full(3, value), "b": {"c": jnp.arange(5.0)}}
    return TrainState(jnp.int32(0), params, ())


def assert_identical(found: TrainState, expected: TrainState, layout: TrainState) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    leaves = (jax.tree.leaves(tree) for tree in (found, expected, layout))
    for a, b, where in zip(*leaves, strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
        assert a.sharding == where.sharding


def test_a_restored_state_is_bit_identical_and_in_its_layout(checkpoints, mesh, rng):
    state = random_state(mesh, rng)
    checkpoints.save(state, progress(7))
    checkpoints.wait()
    assert_identical(checkpoints.restore(7, shapes(mesh)), state, state)


@pytest.mark.parametrize(
    "sizes", [MeshConfig(fsdp=8), MeshConfig(tensor=2), MeshConfig(data=2, fsdp=4)], ids=str
)
def test_a_state_is_restored_onto_another_mesh(checkpoints, mesh, rng, sizes):
    state = random_state(mesh, rng)
    checkpoints.save(state, progress(7))
    checkpoints.wait()
    other = make_mesh(sizes)
    assert_identical(checkpoints.restore(7, shapes(other)), state, shapes(other))


def test_a_save_holds_its_step_though_the_next_steps_reuse_the_memory(checkpoints):
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    like = TrainState(jnp.int32(0), {"w": jnp.arange(1 << 22, dtype=jnp.float32)}, ())
    state = step(jax.tree.map(jnp.copy, like))
    saved = jax.tree.map(np.array, state)
    checkpoints.save(state, progress(1))
    for _ in range(20):
        state = step(state)
    jax.block_until_ready(state)
    checkpoints.wait()
    assert_identical(checkpoints.restore(1, like), saved, like)
    assert int(state.step) == 21


def test_a_checkpoint_says_where_the_run_stood(checkpoints, tmp_path: Path):
    said = dataclasses.replace(progress(3, eval_loss=1.25), passed_over=(4, 9))
    checkpoints.save(small_state(), said)
    checkpoints.wait()
    assert read_progress(tmp_path, 3) == said


@pytest.mark.parametrize(
    ("losses", "num_last", "num_best", "keep_every_steps", "kept"),
    [
        ({}, 2, 1, None, set()),
        ({10: None}, 2, 0, None, {10}),
        ({10: None, 40: None, 30: None, 20: None}, 2, 1, None, {30, 40}),
        ({10: 3.0, 20: 1.0, 30: 2.0, 40: 4.0}, 1, 1, None, {20, 40}),
        ({10: 3.0, 20: 1.0, 30: 2.0, 40: 4.0}, 1, 2, None, {20, 30, 40}),
        ({10: 3.0, 20: 1.0, 30: 2.0, 40: 4.0}, 1, 0, None, {40}),
        ({10: 1.0, 20: None, 30: None}, 1, 1, None, {10, 30}),
        ({10: None, 20: None, 30: None, 40: None, 50: None}, 1, 1, 20, {20, 40, 50}),
        ({40: 2.0, 10: 1.0, 30: 4.0, 20: 3.0}, 2, 1, 20, {10, 20, 30, 40}),
    ],
)
def test_last_best_and_every_nth_are_kept(losses, num_last, num_best, keep_every_steps, kept):
    config = CheckpointConfig(
        every_steps=10, num_last=num_last, num_best=num_best, keep_every_steps=keep_every_steps
    )
    assert kept_steps(losses, config) == kept


def test_a_save_removes_what_is_not_kept(tmp_path: Path):
    config = CheckpointConfig(every_steps=1, num_last=1, num_best=1)
    checkpoints = Checkpoints(tmp_path, config)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None)):
        checkpoints.save(small_state(), progress(step, loss))
    checkpoints.close()
    assert checkpoint_steps(tmp_path) == [2, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4"]


def test_a_checkpoint_without_a_manifest_is_ignored_then_removed(checkpoints, tmp_path: Path):
    for step in (1, 2):
        checkpoints.save(small_state(), progress(step))
    checkpoints.wait()
    (tmp_path / "2" / "manifest.json").unlink()
    assert checkpoint_steps(tmp_path) == [1]
    Checkpoints(tmp_path, CONFIG, read_only=True).close()
    assert (tmp_path / "2").exists()
    Checkpoints(tmp_path, CONFIG).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1"]


def test_a_step_that_is_saved_again_replaces_what_was_there(checkpoints):
    for value in (1.0, 2.0):
        checkpoints.save(small_state(value), progress(1))
    checkpoints.wait()
    assert_identical(checkpoints.restore(1, small_state()), small_state(2.0), small_state())


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_a_damaged_file_is_named_and_never_restored(
    checkpoints, tmp_path: Path, damage: Callable[[Path], None]
):
    checkpoints.save(small_state(), progress(1))
    checkpoints.wait()
    files = [p for p in (tmp_path / "1" / "state").rglob("*") if p.is_file() and p.stat().st_size]
    assert files
    for path in files:
        whole = path.read_bytes()
        damage(path)
        with pytest.raises(IntegrityError) as refusal:
            checkpoints.restore(1, small_state())
        assert str(path) in str(refusal.value)
        path.write_bytes(whole)
    assert_identical(checkpoints.restore(1, small_state()), small_state(), small_state())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format_version": 99}'])
def test_a_damaged_manifest_is_named(checkpoints, tmp_path: Path, content: str):
    checkpoints.save(small_state(), progress(1))
    checkpoints.wait()
    manifest = tmp_path / "1" / "manifest.json"
    manifest.write_text(content)
    with pytest.raises(IntegrityError, match=str(manifest)):
        checkpoints.restore(1, small_state())


def test_the_digest_of_parameters_is_an_interface():
    # printf 'a\0(2,)\0float32\0\0\0\200\77\0\0\0\300' > x   (1.0 and -2.0, little-endian)
    # printf 'b/c\0(1, 3)\0int32\0\1\0\0\0\2\0\0\0\3\0\0\0' >> x; sha256sum x
    params = {"b": {"c": np.array([[1, 2, 3]], np.int32)}, "a": np.array([1, -2], np.float32)}
    golden = "b5d72d8a793447c128baedf70fe086786b03524cea6a2315df1afb03da6c65b6"
    assert params_digest(params) == golden
    assert params_digest(jax.tree.map(jnp.asarray, params)) == golden


def test_the_digest_does_not_depend_on_the_layout(mesh, rng):
    params = random_state(mesh, rng).params
    on_host = jax.tree.map(np.asarray, params)
    assert params_digest(params) == params_digest(on_host)


def test_the_digest_changes_with_path_shape_dtype_and_every_byte():
    array = np.arange(6, dtype=np.float32)
    others: list[dict] = [
        {"a": array},
        {"b": array},
        {"a": {"b": array}},
        {"a": array, "b": array},
        {"a": array.reshape(2, 3)},
        {"a": array.reshape(3, 2)},
        {"a": array.view(np.int32)},
    ]
    for byte in range(array.nbytes):
        content = bytearray(array.tobytes())
        content[byte] ^= 1
        others.append({"a": np.frombuffer(bytes(content), np.float32)})
    digests = [params_digest(params) for params in others]
    assert len(set(digests)) == len(digests)
