"""Checkpoints: what is restored is what was saved, and one that is incomplete never counts."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_checkpoints import CONFIG, RUN, flip_byte, progress, rewrite, small_state
from small_data import data_config, steps_of
from small_model import small_model, small_run

from configs.errors import IntegrityError, SettingsError
from configs.flat_settings import flatten
from configs.run import CheckpointConfig, MeshConfig
from sharding.mesh import make_mesh
from train.checkpoints.context import CheckpointContext
from train.checkpoints.folders import checkpoint_steps, kept_steps, pin
from train.checkpoints.manifest import read_manifest, read_progress
from train.checkpoints.parameter_digest import params_digest
from train.checkpoints.recovery import newest_valid
from train.checkpoints.restore import restore_params, restore_state
from train.checkpoints.save import Checkpoints
from train.checkpoints.verify import verify
from train.state import TrainState, abstract_state


@pytest.fixture
def events() -> list[tuple[str, dict]]:
    """The events that `context` has received."""
    return []


@pytest.fixture
def context(tmp_path: Path, events) -> CheckpointContext:
    return CheckpointContext(
        tmp_path, CONFIG, emit=lambda event, **details: events.append((event, details))
    )


@pytest.fixture
def checkpoints(context: CheckpointContext):
    checkpoints = Checkpoints(context, flatten(RUN))
    yield checkpoints
    checkpoints.close()


def shapes(mesh: jax.sharding.Mesh) -> TrainState:
    return abstract_state(RUN, mesh)


def random_state(mesh: jax.sharding.Mesh, rng: np.random.Generator) -> TrainState:
    """Returns a state with other numbers in each leaf, optimizer state included, in its layout."""

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = rng.standard_normal(leaf.shape) * 1000
        return jax.device_put(values.astype(leaf.dtype), leaf.sharding)

    return jax.tree.map(fill, shapes(mesh))


def assert_identical(found: TrainState, expected: TrainState, layout: TrainState) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    leaves = (jax.tree.leaves(tree) for tree in (found, expected, layout))
    for a, b, where in zip(*leaves, strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
        assert a.sharding == where.sharding


def test_a_restored_state_is_bit_identical_and_in_its_layout(checkpoints, tmp_path, mesh, rng):
    state = random_state(mesh, rng)
    checkpoints.save(state, progress(7))
    checkpoints.wait()
    assert_identical(restore_state(tmp_path, 7, shapes(mesh)), state, state)


@pytest.mark.parametrize(
    "sizes", [MeshConfig(fsdp=8), MeshConfig(tensor=2), MeshConfig(data=2, fsdp=4)], ids=str
)
def test_a_state_is_restored_onto_another_mesh(checkpoints, tmp_path, mesh, rng, sizes):
    state = random_state(mesh, rng)
    checkpoints.save(state, progress(7))
    checkpoints.wait()
    other = make_mesh(sizes)
    assert_identical(restore_state(tmp_path, 7, shapes(other)), state, shapes(other))


def test_a_save_holds_its_step_though_the_next_steps_reuse_the_memory(checkpoints, tmp_path):
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    like = TrainState(jnp.int32(0), {"w": jnp.arange(1 << 22, dtype=jnp.float32)}, ())
    state = step(jax.tree.map(jnp.copy, like))
    saved = jax.tree.map(np.array, state)
    checkpoints.save(state, progress(1))
    for _ in range(20):
        state = step(state)
    jax.block_until_ready(state)
    checkpoints.wait()
    assert_identical(restore_state(tmp_path, 1, like), saved, like)
    assert int(state.step) == 21


def test_a_checkpoint_holds_the_progress_of_the_run(checkpoints, tmp_path: Path):
    steps = steps_of(data_config(), batch_size=8, seed=1, passed_over=(4, 9))
    said = dataclasses.replace(progress(3, eval_loss=1.25), step_ranges=(steps,))
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
    checkpoints = Checkpoints(CheckpointContext(tmp_path, config), {})
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None)):
        checkpoints.save(small_state(), progress(step, loss))
    checkpoints.close()
    assert checkpoint_steps(tmp_path) == [2, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4"]


def test_an_older_checkpoint_that_cannot_be_removed_fails_no_save(context, events):
    config = CheckpointConfig(every_steps=1, num_last=1, num_best=0)
    checkpoints = Checkpoints(dataclasses.replace(context, config=config), {})
    (context.folder / "1.removing").write_text("in the way")
    for step in (1, 2, 3):
        checkpoints.save(small_state(), progress(step))
        assert checkpoints.wait() is None
    checkpoints.close()
    assert checkpoint_steps(context.folder) == [1, 3]  # the others go all the same
    said = [(event, details["step"]) for event, details in events]
    assert said == [
        ("saved", 1),
        ("saved", 2),
        ("not_removed", 2),
        ("saved", 3),
        ("not_removed", 3),
    ]


def test_a_pinned_checkpoint_stays_until_it_is_unpinned(tmp_path: Path):
    checkpoints = Checkpoints(
        CheckpointContext(tmp_path, CheckpointConfig(every_steps=1, num_last=1)), {}
    )
    for step in (1, 2):
        checkpoints.save(small_state(), progress(step))
        checkpoints.wait()
        pin(tmp_path, step, pinned=True)
    checkpoints.save(small_state(), progress(3))
    checkpoints.wait()
    assert checkpoint_steps(tmp_path) == [1, 2, 3]
    verify(tmp_path, 1)
    pin(tmp_path, 1, pinned=False)
    checkpoints.save(small_state(), progress(4))
    checkpoints.close()
    assert checkpoint_steps(tmp_path) == [2, 4]


def test_what_a_killed_process_left_half_done_is_removed_and_never_counts(
    checkpoints, context, tmp_path: Path
):
    checkpoints.save(small_state(), progress(1))
    checkpoints.wait()
    for name in ("2.saving", "3.removing"):
        shutil.copytree(tmp_path / "1", tmp_path / name)
    assert checkpoint_steps(tmp_path) == [1]
    Checkpoints(context, {}).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1"]


def test_a_step_that_is_saved_again_replaces_what_was_there(checkpoints, context):
    for value in (1.0, 2.0):
        checkpoints.save(small_state(value), progress(1))
    checkpoints.wait()
    assert_identical(
        restore_state(context.folder, 1, small_state()), small_state(2.0), small_state()
    )


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def add_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def replace_by_link(path: Path) -> None:
    elsewhere = path.parent.parent.parent.parent / "elsewhere"
    shutil.copy(path, elsewhere)
    path.unlink()
    path.symlink_to(elsewhere)


DAMAGES = [flip_byte, truncate, Path.unlink, add_byte, replace_by_link]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named(checkpoints, tmp_path: Path, damage: Callable[[Path], None]):
    checkpoints.save(small_state(), progress(1))
    checkpoints.wait()
    folder = tmp_path / "1"
    names = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size]
    assert folder / "manifest.json" in names
    assert len(names) > 4
    for path in names:
        whole = path.read_bytes()
        damage(path)
        if path.name == "manifest.json" and damage is replace_by_link:
            continue  # it is what it was
        with pytest.raises(IntegrityError) as refusal:
            verify(tmp_path, 1)
        assert str(path) in str(refusal.value)
        path.unlink(missing_ok=True)
        path.write_bytes(whole)
    verify(tmp_path, 1)


def test_sizes_alone_show_a_truncated_file_and_not_a_flipped_byte(checkpoints, tmp_path: Path):
    checkpoints.save(small_state(), progress(1))
    checkpoints.wait()
    (largest, *_) = sorted((tmp_path / "1").rglob("d/*"), key=lambda p: -p.stat().st_size)
    flip_byte(largest)
    verify(tmp_path, 1, "sizes")
    with pytest.raises(IntegrityError):
        verify(tmp_path, 1, "full")
    truncate(largest)
    with pytest.raises(IntegrityError, match="bytes"):
        verify(tmp_path, 1, "sizes")


def test_a_file_that_the_manifest_does_not_list_is_refused(checkpoints, tmp_path: Path):
    checkpoints.save(small_state(), progress(1))
    checkpoints.wait()
    (tmp_path / "1" / "state" / "more").write_text("x")
    with pytest.raises(IntegrityError, match="more"):
        verify(tmp_path, 1)


@pytest.mark.parametrize("damage", [*DAMAGES, "no manifest"])
def test_a_damaged_checkpoint_is_quarantined_and_the_one_before_is_taken(
    checkpoints, context, events, damage
):
    for step in (1, 2, 3):
        checkpoints.save(small_state(step), progress(step))
    checkpoints.wait()
    (largest, *_) = sorted((context.folder / "3").rglob("d/*"), key=lambda p: -p.stat().st_size)
    if damage == "no manifest":
        (context.folder / "3" / "manifest.json").unlink()
    else:
        damage(largest)
    events.clear()
    manifest = newest_valid(context)
    assert manifest is not None
    assert manifest.progress == progress(2)
    ((event, details),) = events
    assert (event, details["step"], details["path"]) == (
        "quarantined",
        3,
        str(context.folder / "3.bad"),
    )
    assert str(context.folder / "3") in details["cause"]
    assert_identical(restore_state(context.folder, 2, small_state()), small_state(2), small_state())


def test_if_no_checkpoint_is_valid_none_is_touched_and_all_are_named(checkpoints, context):
    for step in (1, 2):
        checkpoints.save(small_state(), progress(step))
    checkpoints.wait()
    for step in (1, 2):
        (context.folder / str(step) / "manifest.json").unlink()
    with pytest.raises(IntegrityError) as refusal:
        newest_valid(context)
    assert all(f"step {step}: " in str(refusal.value) for step in (1, 2))
    assert sorted(path.name for path in context.folder.iterdir()) == ["1", "2"]


def test_a_folder_without_checkpoints_has_no_newest(context):
    assert newest_valid(context) is None


def test_no_checkpoint_after_at_most_is_taken(checkpoints, context, events):
    for step in (1, 2, 3):
        checkpoints.save(small_state(), progress(step))
    checkpoints.wait()
    (context.folder / "3" / "manifest.json").unlink()
    events.clear()
    manifest = newest_valid(context, at_most=1)
    assert manifest is not None
    assert manifest.progress.step == 1
    assert not events


@pytest.mark.parametrize("version", [2, 5])
def test_a_checkpoint_of_another_format_is_refused_and_left_alone(checkpoints, context, version):
    for step in (1, 2):
        checkpoints.save(small_state(), progress(step))
    checkpoints.wait()
    rewrite(context.folder / "2" / "manifest.json", format_version=version)
    with pytest.raises(SettingsError, match=f"format_version={version} must be 4"):
        newest_valid(context)
    assert checkpoint_steps(context.folder) == [1, 2]


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "state/../../x", "x", "state/./y"])
def test_a_manifest_lists_no_file_outside_the_state(checkpoints, tmp_path: Path, name: str):
    checkpoints.save(small_state(), progress(1))
    checkpoints.wait()
    manifest = tmp_path / "1" / "manifest.json"
    files = json.loads(manifest.read_text())["files"]
    rewrite(manifest, files={**files, name: {"bytes": 1, "sha256": "0" * 64}})
    with pytest.raises(IntegrityError) as refusal:
        verify(tmp_path, 1)
    assert repr(name) in str(refusal.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format_version": 3}'])
def test_a_damaged_manifest_is_named(checkpoints, tmp_path: Path, content: str):
    checkpoints.save(small_state(), progress(1))
    checkpoints.wait()
    manifest = tmp_path / "1" / "manifest.json"
    manifest.write_text(content)
    with pytest.raises(IntegrityError, match=str(manifest)):
        verify(tmp_path, 1)


def test_a_checkpoint_of_another_model_is_refused_with_the_fields_that_differ(
    checkpoints, tmp_path: Path
):
    checkpoints.save(small_state(), progress(1))
    checkpoints.wait()
    other = small_run(small_model(embed_dim=64))
    with pytest.raises(SettingsError, match=r"model\.embed_dim=32 there, 64 here"):
        read_manifest(tmp_path, 1).check_model(tmp_path / "1", other)
    read_manifest(tmp_path, 1).check_model(tmp_path / "1", RUN)


def test_parameters_are_restored_without_the_optimizer_state(
    checkpoints, mesh, rng, tmp_path: Path
):
    state = random_state(mesh, rng)
    checkpoints.save(state, progress(7))
    checkpoints.wait()
    params = restore_params(tmp_path, 7, abstract_state(RUN, mesh).params)
    assert params_digest(params) == params_digest(state.params)


def test_a_save_that_fails_is_an_event_and_the_next_one_succeeds(checkpoints, context, events):
    checkpoints.save(small_state(), progress(1))
    checkpoints.wait()

    def refuse() -> None:
        raise OSError(28, "No space left on device")

    checkpoints.save(small_state(), progress(2), before=refuse)
    assert "No space left" in (checkpoints.wait() or "")
    (context.folder / "3.saving").write_text("in the way")
    checkpoints.save(small_state(), progress(3))
    assert checkpoints.wait()
    (context.folder / "3.saving").unlink()
    checkpoints.save(small_state(4.0), progress(4))
    assert checkpoints.wait() is None
    said = [(event, details["step"]) for event, details in events]
    assert said == [("saved", 1), ("save_failed", 2), ("save_failed", 3), ("saved", 4)]
    assert sorted(path.name for path in context.folder.iterdir()) == ["1", "4"]
    assert_identical(
        restore_state(context.folder, 4, small_state()), small_state(4.0), small_state()
    )


def test_the_event_of_a_save_has_its_bytes_and_how_long_it_stalled(checkpoints, context, events):
    checkpoints.save(small_state(), progress(1))
    checkpoints.wait()
    ((_, details),) = events
    files = [path for path in (context.folder / "1" / "state").rglob("*") if path.is_file()]
    assert details["bytes"] == sum(path.stat().st_size for path in files)
    assert details["stall_sec"] > 0
    assert details["write_sec"] > 0


def test_a_checkpoint_holds_the_digest_of_the_next_batch(context):
    checkpoints = Checkpoints(context, {}, lambda at: f"of step {at.step + 1}")
    checkpoints.save(small_state(), progress(1))
    checkpoints.close()
    assert read_progress(context.folder, 1).next_batch_sha256 == "of step 2"


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
