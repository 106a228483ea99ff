"""The recorder: how the metrics of each step are recorded and guarded."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console
from small_data import steps_of
from small_loop import metrics, open_run, progress

from train.record.console import Display
from train.record.metrics_writer import open_metrics
from train.record.recorder import Recorder, largest_gradient_norms
from train.record.run_folder import read_metrics
from train.run_context import RunContext


def recorder_of(run: RunContext, step: int = 0, passed_over: Sequence[int] = ()) -> Recorder:
    recorder = Recorder(
        run,
        open_metrics(run.folder),
        Display(Console(quiet=True), run.config, run.spans, first_step=0),
    )
    train = run.config.train
    steps = steps_of(
        run.config.data, batch_size=train.batch_size, seed=train.seed, passed_over=passed_over
    )
    recorder.begin(progress(step, step_ranges=(steps,)))
    return recorder


@pytest.fixture
def run(tmp_path: Path) -> RunContext:
    return open_run(tmp_path, "--train.log_every_steps", "2", "--guard.num_window_steps", "8")


def test_a_step_is_recorded_once_the_next_one_was_started(run):
    recorder = recorder_of(run, 10)
    for step in (11, 12, 13):
        assert 12 not in read_metrics(run.folder.metrics)
        recorder.add(step, metrics(step), 0.001)
    (record,) = read_metrics(run.folder.metrics).values()
    assert (record["step"], record["loss"], record["tokens"]) == (12, 12.0, 12 * 128)
    assert record["grad_norm"] == 1.5
    recorder.finish({"eval/loss": 2.5})
    assert read_metrics(run.folder.metrics)[13]["eval/loss"] == 2.5  # though it is no logged step


def test_tokens_are_counted_without_bound(run):
    recorder = recorder_of(run)
    recorder.tokens = 2**40
    recorder.add(1, metrics(), 0.0)
    recorder.finish()
    assert recorder.tokens == 2**40 + 128


def test_a_step_that_is_not_finite_is_an_event_that_names_its_rows_and_arrays(run):
    recorder = recorder_of(run, skipped := 3, passed_over=(1, 3))
    recorder.add(skipped + 1, metrics(finite=False), 0.0)
    recorder.finish()
    (event,) = [event for event in run.folder.read_events() if event["event"] == "nonfinite_step"]
    assert (event["step"], event["rows"], event["loss"]) == (4, [[40, 48]], "nan")
    assert set(event["layers"]) == {"norm/scale", "layers/mlp/up[0]", "layers/mlp/up[1]"}
    assert recorder.is_suspect


def test_what_a_pause_takes_is_not_in_the_speed_of_steps(run, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("train.record.recorder.time.perf_counter", lambda: now)
    recorder = recorder_of(run)
    recorder.add(1, metrics(), 0.0)
    now += 3
    with recorder.paused():
        now += 500  # an evaluation
    recorder.add(2, metrics(), 0.0)
    now += 1
    recorder.add(3, metrics(), 0.0)
    assert read_metrics(run.folder.metrics)[2]["step_sec"] <= 2.0


MIXED = (
    *("--data.mixture", "a=text.txt", "b=other.txt", "--data.weights", "1", "1"),
    *("--data.phases", "21:1,9", "--guard.num_window_steps", "8", "--guard.num_spike_steps", "2"),
)


@pytest.mark.parametrize(("passed_over", "change"), [((), 21), ((3, 4, 5), 18), ((30,), 21)])
def test_the_guard_begins_anew_with_the_first_batch_of_other_weights(
    tmp_path, monkeypatch, passed_over, change
):
    """The phase begins with batch 20 of the sequence, whichever step takes it."""
    monkeypatch.chdir(tmp_path)
    Path("other.txt").write_text("another text, of 30 cows\n" * 300)
    recorder = recorder_of(open_run(tmp_path, *MIXED), passed_over=passed_over)
    for step in range(1, 40):
        recorder.add(step, metrics(3.0 if step < change else 9.0), 0.0)
    recorder.finish()
    assert recorder.divergence is None
    assert min(recorder.guard.memory()["window"]) == 9.0

    early = recorder_of(recorder._run, passed_over=passed_over)
    for step in range(1, 40):
        early.add(step, metrics(3.0 if step < change - 1 else 9.0), 0.0)
    early.finish()
    assert max(early.guard.memory()["window"]) == 9.0
    assert early.guard.memory()["high"] == []  # one high loss, and then other weights


def test_arrays_that_are_not_finite_stand_out_before_those_that_are_large():
    assert largest_gradient_norms({"a": 1.0, "b": float("inf"), "c": 9.0}) == {"b": "inf"}
    assert list(largest_gradient_norms({"a": 1.0, "b": 5.0, "c": 9.0}, num=2)) == ["c", "b"]
