"""The ledger of a run's time, and the watchdog that ends what takes too long."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from configs.run import GuardConfig
from train.phases import CLASSES, Ledger, Limit, Phases, process_age_sec


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.json"


def wait(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.001)


def test_every_second_belongs_to_what_was_done_then(path):
    phases = Phases()
    phases.ledger.go_on(path)
    before = phases.ledger.snapshot()
    began = time.monotonic()
    with phases.phase("step", "step"):
        wait(0.03)
        with phases.phase("data_wait"):
            wait(0.05)
        wait(0.02)
        with phases.phase("save_stall", "save"):
            wait(0.04)
    wait(0.06)
    phases.settle()
    passed = time.monotonic() - began
    spent = {k: v - before[k] for k, v in phases.ledger.snapshot().items()}
    expected = {"step": 0.05, "data_wait": 0.05, "save_stall": 0.04, "set_up": 0.06}
    for kind in CLASSES:
        least = expected.get(kind, 0.0)
        assert least - 0.002 <= spent[kind] < least + 0.02, (kind, spent)
    assert sum(spent.values()) == pytest.approx(passed, abs=0.005)


def test_a_process_begins_with_the_time_it_took_to_start():
    age = process_age_sec()
    assert 0 < age < time.clock_gettime(time.CLOCK_BOOTTIME)
    assert Phases().ledger.snapshot()["set_up"] == pytest.approx(age, abs=0.1)


def written(path: Path) -> dict:
    return json.loads(path.read_text())


def life_sec(path: Path) -> float:
    """Returns how long the run has lived by the clock on the wall."""
    return written(path)["beat"] - written(path)["first_start"]


def begun(path: Path) -> Phases:
    """Returns the phases of a start of the run, which is younger than this process."""
    phases = Phases()
    phases.ledger = Ledger()
    phases.ledger.go_on(path)
    phases.beat()
    return phases


def test_the_seconds_of_all_starts_and_between_them_add_up_to_the_wall_clock(path):
    for _ in range(3):
        phases = begun(path)
        with phases.phase("step", "step"):
            wait(0.05)
        phases.close()
        wait(0.1)
    said = written(path)
    assert said["seconds"]["down_time"] == pytest.approx(0.2, abs=0.03)
    assert said["seconds"]["step"] == pytest.approx(0.15, abs=0.02)
    assert sum(said["seconds"].values()) == pytest.approx(life_sec(path), abs=0.02)


def test_a_killed_run_is_missed_from_its_last_sign_of_life_on(path, monkeypatch):
    monkeypatch.setattr("train.phases._BEAT_SEC", 0.01)
    phases = begun(path)
    with phases.phase("step", "step"):
        wait(0.1)
        left = path.read_text()  # all that a kill would leave
    phases.close()
    path.write_text(left)
    wait(0.05)
    again = Ledger()
    again.go_on(path)
    again.write()
    said = written(path)["seconds"]
    assert said["step"] == pytest.approx(0.1, abs=0.03)
    assert said["down_time"] == pytest.approx(0.05, abs=0.03)
    assert sum(said.values()) == pytest.approx(life_sec(path), abs=0.02)


def test_what_an_older_checkpoint_does_not_hold_was_lost(path):
    ledger = Ledger()
    ledger.add("step", 10.0)
    ledger.add("compile", 3.0)
    snapshot = ledger.snapshot()
    ledger.add("step", 4.0)
    ledger.add("evaluation", 2.0)
    ledger.add("compile", 5.0)
    ledger.lose_since(snapshot)
    found = ledger.snapshot()
    assert (found["step"], found["evaluation"], found["compile"]) == (10.0, 0.0, 8.0)
    assert found["lost_work"] == 6.0
    assert ledger.record()["goodput/fraction"] == pytest.approx(10 / 24, abs=1e-4)


def test_time_after_the_end_of_a_run_is_not_its_life(path):
    first = Ledger()
    first.go_on(path)
    first.add("step", 1.0)
    first.is_finished = True
    first.write()
    said = written(path)
    long_ago = {"beat": said["beat"] - 3600, "first_start": said["beat"] - 3601}
    path.write_text(json.dumps({**said, **long_ago}))
    again = Ledger()
    again.go_on(path)
    again.write()
    assert written(path)["seconds"]["down_time"] == 0
    assert life_sec(path) == pytest.approx(1.0, abs=0.1)


def test_a_clock_that_was_set_back_is_told_and_takes_no_time_away(path):
    first = Ledger()
    first.go_on(path)
    first.add("step", 5.0)
    first.write()
    said = written(path)
    ahead = {"beat": said["beat"] + 3600, "first_start": said["beat"] + 3595}
    path.write_text(json.dumps({**said, **ahead}))
    again = Ledger()
    assert again.go_on(path) == pytest.approx(3600, abs=1)
    again.write()
    found = written(path)["seconds"]
    assert found["step"] == 5.0
    assert min(found.values()) >= 0
    assert life_sec(path) == pytest.approx(5.0, abs=0.1)


def test_a_torn_ledger_begins_anew(path):
    path.write_text('{"beat": 17')
    assert Ledger().go_on(path) == 0


CONFIG = GuardConfig(step_limit_sec=100.0, save_limit_sec=None, hang_factor=10.0, min_limit_sec=2.0)


def measured(*seconds: float) -> Phases:
    phases = Phases()
    phases._durations["step"].extend(seconds)
    return phases


@pytest.mark.parametrize(
    ("seconds", "limit"),
    [
        ((), 100.0),
        ((0.5, 0.5), 100.0),  # too few for a median
        ((0.5, 0.5, 90.0), 5.0),
        ((0.01,) * 5, 2.0),
        ((50.0,) * 5, 100.0),
    ],
)
def test_a_limit_falls_to_a_multiple_of_the_median(seconds, limit):
    assert measured(*seconds).limit_sec("step", CONFIG) == limit


def test_a_limit_can_be_switched_off():
    assert Phases().limit_sec("save", CONFIG) is None


def watched(config: GuardConfig) -> tuple[Phases, list[tuple]]:
    phases, said = Phases(), []
    phases.watch(config, lambda *what: said.append(what))
    return phases, said


@pytest.mark.parametrize("limit", ["start", "compile", "step", "save", "eval"])
def test_each_kind_has_a_limit_of_its_own(limit: Limit, monkeypatch):
    monkeypatch.setattr("train.phases._LOOK_SEC", 0.01)
    limits: dict[str, Any] = {
        f"{name}_limit_sec": 60.0 for name in ("start", "compile", "step", "save", "eval")
    }
    limits = {**limits, f"{limit}_limit_sec": 0.05}
    config = GuardConfig(**limits)
    phases, said = watched(config)
    if limit == "start":
        wait(0.2)
    else:
        with phases.phase("step", limit):
            wait(0.2)
    phases.close()
    (what,) = said
    assert what[0] == limit
    assert what[2] == 0.05


def test_many_short_steps_are_no_long_one(monkeypatch):
    monkeypatch.setattr("train.phases._LOOK_SEC", 0.01)
    phases, said = watched(GuardConfig(step_limit_sec=0.1, start_limit_sec=60.0))
    with phases.phase("step", "unlimited"):
        for _ in range(30):
            with phases.phase("step", "step"):
                wait(0.02)
    phases.close()
    assert said == []


def test_a_process_that_was_stopped_did_not_hang(monkeypatch):
    """As with SIGSTOP: the clock goes on, and nobody looks."""
    monkeypatch.setattr("train.phases._LOOK_SEC", 0.05)
    now = time.monotonic
    offset = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now() + offset)
    phases, said = watched(GuardConfig(step_limit_sec=1.0))
    with phases.phase("step", "step"):
        time.sleep(0.12)
        offset = 3600.0
        time.sleep(0.3)
    phases.close()
    assert said == []
