"""Rollbacks: nothing is lost by one, no restore takes what it left, no run is ever begun anew."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from commands import call
from parts import slowly
from small_checkpoints import CONFIG, progress, small_state, write_checkpoint
from small_data import data_config, steps_of
from small_runs import RUN, tiny_run, write_text

import train.health.rollback
import train.loop
from configs.errors import Unavailable
from configs.run import CheckpointConfig
from launch.faults.run_with_fault import after_call, with_infinite_moment
from train.checkpoints.context import CheckpointContext
from train.checkpoints.durable_storage import DurableTier
from train.checkpoints.folders import checkpoint_steps, pin
from train.checkpoints.manifest import RunProgress, read_progress
from train.checkpoints.recovery import newest_valid
from train.checkpoints.save import Checkpoints
from train.checkpoints.verify import verify
from train.health.divergence import Divergence, Guard
from train.record.recorder import Recorder
from train.record.run_folder import RunFolder, read_metrics

QUIET = ("--eval.every_steps", "None", "--sample.every_steps", "None")


def amended(step: int) -> RunProgress:
    steps = steps_of(data_config(), batch_size=8, seed=0, passed_over=(5,))
    return dataclasses.replace(progress(step), step_ranges=(steps,), num_rollbacks=1)


@pytest.fixture
def context(tmp_path: Path) -> CheckpointContext:
    """A run folder with checkpoints of steps 1 to 3, all of them copied."""
    durable = DurableTier(str(tmp_path / "durable"))
    folder = tmp_path / "run" / "checkpoints"
    for step in (1, 2, 3):
        durable.copy(write_checkpoint(folder, step))
    return CheckpointContext(folder, CONFIG, durable=durable)


@pytest.fixture
def checkpoints(context: CheckpointContext):
    checkpoints = Checkpoints(context, {})
    yield checkpoints
    checkpoints.close()


def names(folder: Path) -> list[str]:
    """Returns the names of all checkpoints that are whole, set aside or not."""
    return sorted(path.parent.name for path in folder.glob("*/manifest.json"))


def test_what_a_rollback_sets_aside_stays_until_a_later_save(checkpoints, context):
    pin(context.folder, 3, pinned=True)
    checkpoints.rollback(amended(1))
    copies = Path(context.durable.url) / "checkpoints"
    assert names(context.folder) == names(copies) == ["1", "2.aside", "3.aside"]

    def refuse() -> None:
        raise OSError(28, "No space left on device")

    checkpoints.save(small_state(), progress(2), before=refuse)
    assert checkpoints.wait() is not None
    assert names(context.folder) == ["1", "2.aside", "3.aside"]
    checkpoints.save(small_state(), progress(2))
    assert checkpoints.wait() is None
    assert names(context.folder) == ["1", "2", "3.aside"]  # which was pinned
    assert checkpoints.complete_mirror() is None
    assert names(copies) == ["1", "2"]


def test_what_a_rollback_sets_aside_is_never_restored(checkpoints, context):
    checkpoints.rollback(amended(1))
    found = newest_valid(context)
    assert found is not None
    assert found.progress == amended(1)
    shutil.rmtree(context.folder)  # as on a new machine
    found = newest_valid(context)
    assert found is not None
    assert found.progress == amended(1)
    assert verify(context.folder, 1) == found


def test_a_copy_that_is_not_new_does_not_remove_what_a_rollback_set_aside(context):
    """Killed after the rollback: the next process copies the checkpoint that it went back to."""
    first = Checkpoints(context, {})
    first.rollback(amended(1))
    shutil.rmtree(Path(context.durable.url) / "checkpoints" / "1")
    again = Checkpoints(context, {})
    assert again.complete_mirror() is None
    assert names(Path(context.durable.url) / "checkpoints") == ["1", "2.aside", "3.aside"]


def test_if_storage_refuses_nothing_is_rolled_back(checkpoints, context):
    durable = Path(context.durable.url)
    durable.rename(away := durable.with_name("away"))
    durable.touch()  # a file, in which nothing can be written
    with pytest.raises(Unavailable, match="step 1"):
        checkpoints.rollback(amended(1))
    assert checkpoint_steps(context.folder) == [1, 2, 3]
    assert read_progress(context.folder, 1) == progress(1)
    durable.unlink()
    away.rename(durable)


def test_a_save_while_steps_go_wrong_keeps_the_older_ones(tmp_path: Path):
    config = CheckpointConfig(every_steps=1, num_last=1, num_best=0)
    checkpoints = Checkpoints(CheckpointContext(tmp_path, config), {})
    for step, keep_all in ((1, False), (2, True), (3, False)):
        checkpoints.save(small_state(), progress(step), keep_all=keep_all)
        checkpoints.wait()
        assert checkpoint_steps(tmp_path) == ([1, 2] if keep_all else [step])
    checkpoints.close()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    return RunFolder(RUN)


def harm(monkeypatch: pytest.MonkeyPatch, call: int, change: Callable) -> None:
    """Changes the state that the compiled step returns in one call, counted from 1."""
    original = train.loop.compile_train_step
    monkeypatch.setattr(
        train.loop,
        "compile_train_step",
        lambda *args, **more: after_call(original(*args, **more), call, change),
    )


def events(run: RunFolder, name: str) -> list[dict]:
    return [event for event in run.read_events() if event["event"] == name]


@pytest.mark.parametrize("num_last", ["1", *slowly("3")])
def test_a_state_that_is_not_finite_costs_the_steps_since_the_last_save(
    run, monkeypatch, tmp_path, num_last
):
    """Though every loss was: the second moment of one weight is infinite."""
    harm(monkeypatch, 47, with_infinite_moment)
    durable = tmp_path / "durable"
    more = ("--checkpoint.num_last", num_last, "--checkpoint.durable_dir", str(durable))
    code, output = call("train", *tiny_run(*QUIET, *more))
    assert code == 0, output
    (event,) = events(run, "rolled_back")
    assert (event["to_step"], event["batches"]) == (45, [46, 50])
    assert event["skipped_rows"] == [[45 * 8, 50 * 8]]
    assert checkpoint_steps(run.checkpoints)[-1] == 60
    assert read_progress(durable / "checkpoints", 60).num_rollbacks == 1
    assert list(read_metrics(run.metrics)) == list(range(1, 61))


SPIKING = (
    *("--guard.num_window_steps", "16", "--guard.num_spike_steps", "3"),
    *("--checkpoint.num_best", "0"),
)


@pytest.mark.parametrize("num_last", [*slowly("1"), "2"])
def test_a_spike_that_the_newest_checkpoint_holds_goes_to_an_older_one(run, monkeypatch, num_last):
    """The step that did it was saved before its harm was seen."""
    harm(monkeypatch, 40, lambda s: s._replace(params=jax.tree.map(lambda x: x * 30, s.params)))
    code, output = call("train", *tiny_run(*QUIET, *SPIKING, "--checkpoint.num_last", num_last))
    went_back = [event["to_step"] for event in events(run, "rolled_back")]
    assert output.count("starting at step 0") == 1
    if num_last == "2":
        assert (code, went_back) == (0, [35]), output
        return
    assert (code, went_back) == (76, [40, 40, 40]), output  # there is no other
    assert checkpoint_steps(run.checkpoints) == [40]


def test_without_an_older_checkpoint_a_run_ends_and_keeps_everything(run, monkeypatch):
    code, output = call("train", *tiny_run(*QUIET, "--train.num_steps", "20"))
    assert code == 0, output
    for step in checkpoint_steps(run.checkpoints):
        if step != 20:
            shutil.rmtree(run.checkpoints / str(step))
    before = names(run.checkpoints)
    monkeypatch.setattr(train.health.rollback, "newest_valid", lambda context, at_most: None)
    harm(monkeypatch, 3, with_infinite_moment)
    code, output = call("train", *tiny_run(*QUIET, "--allow-changes"))
    assert code == 76, output
    assert "resume with" not in output
    assert "--init-from" in output
    assert names(run.checkpoints) == before
    assert not events(run, "rolled_back")


def test_a_run_that_has_lost_its_checkpoints_is_not_begun_anew(run):
    code, output = call("train", *tiny_run(*QUIET, "--train.num_steps", "10"))
    assert code == 0, output
    before = run.metrics.read_bytes()
    shutil.rmtree(run.checkpoints)
    code, output = call("train", *tiny_run(*QUIET, "--train.num_steps", "10"))
    assert code == 65, output
    for part in (str(run.events), str(run.checkpoints), "--run-dir"):
        assert part in output
    assert run.metrics.read_bytes() == before


def test_a_run_without_any_checkpoint_may_begin_anew(run, monkeypatch):
    harm(monkeypatch, 3, lambda state: state._replace(params=_nan(state.params)))
    more = ("--guard.max_nonfinite_steps", "4", "--checkpoint.every_steps", "50")
    code, output = call("train", *tiny_run(*QUIET, *more))
    assert code == 0, output
    (event,) = events(run, "rolled_back")
    assert event["to_step"] == 0


def _nan(params):
    return jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)


def blaming(monkeypatch, *divergences: Divergence) -> None:
    """Makes a guard find these divergences, each when its last step comes for the first time."""
    original, left = Guard.check, list(divergences)

    def check(self, step, loss, finite, weights=()):
        found = original(self, step, loss, finite, weights)
        return left.pop(0) if left and step == left[0].last_step else found

    monkeypatch.setattr(Guard, "check", check)


@pytest.mark.slow
def test_a_second_rollback_skips_what_the_first_one_did_too(run, monkeypatch):
    """It goes to an older checkpoint, which knows nothing of the first."""
    blaming(monkeypatch, Divergence(41, 43, "first"), Divergence(40, 43, "second"))
    code, output = call("train", *tiny_run(*QUIET, "--train.num_steps", "50"))
    assert code == 0, output
    assert [event["to_step"] for event in events(run, "rolled_back")] == [40, 35]
    # The first skips batches 40 to 42, so that the second finds 39 and then 43 to 45.
    assert read_progress(run.checkpoints, 50).step_ranges[-1].skipped == ((39 * 8, 46 * 8),)


@pytest.mark.slow
def test_a_run_goes_on_after_another_seed_and_a_rollback(run, monkeypatch):
    assert call("train", *tiny_run(*QUIET, "--train.num_steps", "20"))[0] == 0
    seeded = tiny_run(*QUIET, "--train.num_steps", "40", "--train.seed", "1", "--allow-changes")
    with monkeypatch.context() as harmed:
        blaming(harmed, Divergence(22, 23, "first"))
        harmed.setattr("train.loop.Recorder.add", stopped_at(Recorder.add, 22))
        assert call("train", *seeded)[0] == 70
    assert read_progress(run.checkpoints, 20).num_rollbacks == 1
    code, output = call("train", *seeded)
    assert code == 0, output


def stopped_at(add, step_of_second_time: int):
    """Returns a Recorder.add that fails when a step comes for the second time."""
    seen: list[int] = []

    def failing(self, step, *more):
        seen.append(step)
        if seen.count(step_of_second_time) == 2:
            raise RuntimeError("it was killed here")
        add(self, step, *more)

    return failing
