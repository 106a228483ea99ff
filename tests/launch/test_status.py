"""`./tessera status`: what it shows of runs in every state, from their files alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import call
from small_report import begin_run, event, ledger_of, record, save, write_lines

from train.record.run_folder import RunFolder

STARTED = event(0, "started", command="./tessera train quickstart --optim.peak-lr 1")


def run_of(path: Path, *events: dict[str, Any], num: int = 30, every: int | None = 10) -> RunFolder:
    """Returns a run of 60 steps that has taken some, with evaluations each so many steps."""
    folder = begin_run(path)
    lines = [record(step, **ledger_of(step / 60)) for step in range(1, num + 1)]
    for line in lines:
        if every is not None and line["step"] % every == 0:
            line["eval/loss"] = 2.5
    write_lines(folder.metrics, lines)
    write_lines(folder.events, [STARTED, *events])
    save(folder, num)
    return folder


def status(run: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns what a tool and what a person is shown."""
    code, output = call("status", str(run), "--json")
    assert code == 0, output
    code, shown = call("status", str(run))
    assert code == 0, shown
    lines = [line.split("  ", 1) for line in shown.splitlines()]
    return json.loads(output), {name: value.strip() for name, value in lines}


def test_numbers_are_rounded_for_a_person_and_whole_for_a_tool(tmp_path: Path):
    told, shown = status(run_of(tmp_path / "run").path)
    assert told["loss"] == record(30)["loss"]
    assert shown["loss"] == f"{record(30)['loss']:.4f}"
    assert shown["validation loss"] == "2.5000"
    assert shown["tokens/s"] == f"{record(30)['tokens_per_second']:,.0f}"
    assert shown["goodput"] == "70.0%"
    assert shown["step"] == "30 of 60 (50%)"


def test_the_time_left_has_steps_evaluations_and_saves_in_it(tmp_path: Path):
    """Of 15 s an evaluation and 5/6 s a save: 30 steps, an evaluation and 6 saves are to come."""
    told, shown = status(run_of(tmp_path / "run", every=30).path)
    assert told["eta_sec"] == pytest.approx(30 * 0.01 + 15 + 5, rel=0.01)
    assert shown["time left"].endswith(" s")


@pytest.mark.parametrize(
    ("events", "state", "next_step"),
    [
        ((), "not running", STARTED["command"]),
        (
            (event(1, "stopped", step=30, cause="SIGTERM"),),
            "stopped by SIGTERM",
            STARTED["command"],
        ),
        ((event(1, "failed", exit_code=71),), "failed (exit code 71)", STARTED["command"]),
        (
            (event(1, "failed", exit_code=76),),
            "diverged",
            "./tessera train quickstart --optim.peak-lr 1 --run-dir run-2 --optim.peak-lr 0.002",
        ),
        ((event(1, "failed", exit_code=76), STARTED), "not running", STARTED["command"]),
    ],
)
def test_the_state_says_how_a_run_ended_and_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events, state: str, next_step: str
):
    monkeypatch.chdir(tmp_path)
    told, shown = status(run_of(Path("run"), *events).path)
    assert (told["state"], told["next_step"]) == (state, next_step)
    assert (shown["state"], shown["next step"]) == (state, next_step)


def test_a_run_that_is_alive_or_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    folder = run_of(Path("run"), num=60)
    told, shown = status(folder.path)
    assert (told["state"], told["eta_sec"]) == ("finished", 0.0)
    assert told["next_step"].startswith("./tessera generate run")
    with folder.held():
        assert status(folder.path)[0]["state"].startswith("alive")
    assert shown["time left"] == "none"


def test_a_run_that_was_never_evaluated_or_has_no_step_yet(tmp_path: Path):
    told, shown = status(run_of(tmp_path / "run", every=None).path)
    assert (told["eval_loss"], shown["validation loss"]) == (None, "none")
    folder = begin_run(tmp_path / "new")
    told, shown = status(folder.path)
    assert (told["step"], told["eta_sec"], told["loss"]) == (0, None, None)
    assert shown["time left"] == "unknown"
