"""What is done between two steps: when each thing is due, and what is never saved."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from commands import call
from parts import slowly
from rich.console import Console
from small_loop import metrics, open_run, progress
from small_runs import tiny_run, write_text

from configs.errors import Stopped
from configs.flat_settings import flatten
from launch.faults.run_with_fault import with_infinite_moment
from train.callbacks import Callbacks
from train.checkpoints.context import CheckpointContext
from train.checkpoints.folders import checkpoint_steps
from train.checkpoints.save import Checkpoints
from train.health.signals import StopRequest
from train.health.watchdog import Watchdog
from train.record.console import Display
from train.record.metrics_writer import open_metrics
from train.record.recorder import Recorder
from train.run_context import RunContext
from train.state import TrainState, init_state

SETTINGS = (
    *("--checkpoint.every_steps", "5", "--checkpoint.num_last", "9"),
    *("--eval.every_steps", "None", "--sample.every_steps", "None"),
)
CONTINUE = StopRequest()


class Loop:
    """A loop that takes no steps: what it would do between them is real."""

    def __init__(self, run: RunContext):
        self.run = run
        context = CheckpointContext(
            run.folder.checkpoints.absolute(), run.config.checkpoint, emit=run.emit
        )
        self.checkpoints = Checkpoints(context, flatten(run.config))
        writer = open_metrics(run.folder)
        display = Display(Console(quiet=True), run.config, run.spans, first_step=0)
        self.recorder = Recorder(run, writer, display)
        self.callbacks = Callbacks(run, self.checkpoints, self.recorder, writer)
        self.begin(0)

    def begin(self, step: int) -> None:
        self.recorder.begin(progress(step))
        self.callbacks.begin(progress(step))

    def step(self, step: int, state: TrainState, *, finite: bool = True, request=CONTINUE):
        self.recorder.add(step, metrics(finite=finite), 0.0)
        self.callbacks(state, step, request)

    def saved(self) -> list[int]:
        self.checkpoints.wait()
        return checkpoint_steps(self.run.folder.checkpoints)


@pytest.fixture
def loop(tmp_path: Path):
    run = open_run(tmp_path, *SETTINGS)
    with jax.set_mesh(run.mesh):
        loop = Loop(run)
        yield loop
        loop.checkpoints.close()


@pytest.fixture
def state(loop: Loop) -> TrainState:
    return init_state(loop.run.config, jax.random.key(0), loop.run.mesh)


def test_a_save_is_no_evaluation_and_a_stall_is_no_whole_save(loop, state):
    """Spans that nothing was done in would make limits of nothing."""
    for step in range(1, 26):
        loop.step(step, state)
    durations = {name: list(times) for name, times in loop.run.spans.durations.items() if times}
    assert loop.saved() == [5, 10, 15, 20, 25]
    assert len(durations["stall"]) == len(durations["record"]) == 5
    assert not {"evaluation", "sample", "save"} & set(durations)
    with pytest.raises(AssertionError):
        assert Watchdog(loop.run.spans, loop.run.config.guard).limit_sec("evaluation") != 1800.0


def test_what_is_due_at_the_last_step_is_done(loop, state):
    loop.step(60, state)
    durations = {name: list(times) for name, times in loop.run.spans.durations.items() if times}
    assert {"evaluation", "sample", "stall", "save"} <= set(durations)
    assert loop.saved() == [60]
    assert loop.run.folder.sample_of(60).exists()


def test_a_save_waits_while_steps_go_wrong(loop, state):
    loop.step(4, state)
    loop.step(5, state, finite=False)
    loop.step(6, state, finite=False)
    assert loop.saved() == []
    loop.step(7, state)
    assert loop.saved() == [7]
    loop.step(8, state)
    assert loop.saved() == [7]


def test_a_save_that_was_due_before_a_rollback_is_not_due_after_it(loop, state):
    loop.step(5, state, finite=False)
    loop.begin(3)
    loop.step(4, state)
    assert loop.saved() == []


def test_a_run_that_stops_is_saved_though_steps_go_wrong_and_keeps_older_ones(loop, state):
    loop.step(5, state)
    loop.step(6, state, finite=False, request=StopRequest(stop={"cause": "SIGTERM"}))
    assert loop.saved() == [5, 6]


def test_a_state_that_is_not_finite_is_not_saved_and_blames_the_steps_since_the_last_save(
    loop, state
):
    loop.step(5, state)
    loop.step(10, state)
    loop.step(15, with_infinite_moment(state))
    assert loop.saved() == [5, 10]
    divergence = loop.recorder.divergence
    assert divergence is not None
    assert (divergence.first_step, divergence.last_step) == (11, 15)


def test_a_restored_state_is_known_to_be_finite(loop, state):
    loop.begin(20)
    broken = state._replace(params=jax.tree.map(lambda x: x * jnp.nan, state.params))
    loop.step(25, broken)
    divergence = loop.recorder.divergence
    assert divergence is not None
    assert divergence.first_step == 21


def test_a_save_request_saves_and_a_last_save_that_fails_is_tried_again(loop, state, monkeypatch):
    monkeypatch.setattr("train.callbacks._RETRIES_SEC", (0.0, 0.0))
    loop.step(2, state, request=StopRequest(save=True))
    assert loop.saved() == [2]
    folder = loop.run.folder.checkpoints
    (folder / "3.saving").write_text("in the way")
    with pytest.raises(Stopped, match=r"step 3 could not be saved.*that of step 2"):
        loop.step(3, state, request=StopRequest(stop={"cause": "SIGTERM"}))
    failed = [e for e in loop.run.folder.read_events() if e["event"] == "save_failed"]
    assert len(failed) == 3


@pytest.mark.parametrize(
    ("every_steps", "is_costly"), [("1", True), *slowly(("2", True)), ("10", False)]
)
def test_an_evaluation_that_costs_more_than_the_training_between_is_warned_of(
    tmp_path, monkeypatch, every_steps, is_costly
):
    """About 1000 tokens each 128, 256 or 1280 that are trained on: a token of it costs a third."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    more = ("--train.num_steps", "1", "--eval.every_steps", every_steps)
    code, output = call("train", *tiny_run(*more))
    assert code == 0, output
    for said in (
        f"eval.every_steps={every_steps}",
        "--eval.max-tokens",
        "costs more than training",
    ):
        assert (said in output) == is_costly, output
