"""The time ledger: every second of a run is counted once, over all its starts."""

import json
import time
from pathlib import Path

import pytest

from train.record.spans import Spans
from train.record.time_ledger import CATEGORIES, TimeLedger, process_age_sec


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.json"


class Clock:
    """A clock that only the test moves, so that a busy machine changes nothing."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("time_ledger", "spans"):
        monkeypatch.setattr(f"train.record.{module}.time", clock)
        monkeypatch.setattr(f"train.record.{module}.process_age_sec", lambda: 0.0)
    return clock


def test_every_second_belongs_to_what_was_done_then(clock):
    spans = Spans()
    with spans("loop"):
        with spans("step"):
            clock.passes(3)
            with spans("data wait"):
                clock.passes(5)
            clock.passes(2)
        with spans("stall"):
            clock.passes(4)
        clock.passes(1)
    clock.passes(6)
    spans.settle()
    expected = {"step": 6.0, "data_wait": 5.0, "save_stall": 4.0, "set_up": 6.0}
    assert spans.ledger.snapshot() == {kind: expected.get(kind, 0.0) for kind in CATEGORIES}


def test_a_process_begins_with_the_time_it_took_to_start():
    age = process_age_sec()
    assert 0 < age < time.clock_gettime(time.CLOCK_BOOTTIME)
    assert age - 0.01 <= Spans().ledger.snapshot()["set_up"] < age + 60


def written(path: Path) -> dict:
    return json.loads(path.read_text())


def life_sec(path: Path) -> float:
    """Returns how long the run has lived by the clock on the wall."""
    return written(path)["beat"] - written(path)["first_start"]


def test_the_seconds_of_all_starts_and_between_them_add_up_to_the_wall_clock(path, clock):
    for _ in range(3):
        spans = Spans()
        spans.ledger.resume(path)
        with spans("loop"), spans("step"):
            clock.passes(5)
        spans.settle()
        spans.ledger.write()
        clock.passes(10)
    said = written(path)
    assert (said["seconds"]["down_time"], said["seconds"]["step"]) == (20.0, 15.0)
    assert sum(said["seconds"].values()) == life_sec(path) == 35.0


def test_a_killed_run_is_missed_from_its_last_sign_of_life_on(path, clock):
    spans = Spans()
    spans.ledger.resume(path)
    with spans("loop"), spans("step"):
        clock.passes(10)
        spans.settle()
        spans.ledger.write()  # all that a kill leaves
        clock.passes(7)
    again = TimeLedger()
    again.resume(path)
    again.write()
    said = written(path)["seconds"]
    assert (said["step"], said["down_time"]) == (10.0, 7.0)
    assert sum(said.values()) == life_sec(path) == 17.0


def test_a_run_writes_its_ledger_by_itself_and_a_last_time_at_its_end(path, monkeypatch):
    monkeypatch.setattr("train.record.spans._WRITE_SEC", 0.01)
    spans = Spans()
    spans.ledger.resume(path)
    spans.start_writing()
    while not path.exists():
        time.sleep(0.01)
    spans.ledger.add("evaluation", 100.0)
    spans.close()
    assert written(path)["seconds"]["evaluation"] == 100.0


def test_what_an_older_checkpoint_does_not_hold_was_lost(path):
    ledger = TimeLedger()
    ledger.add("step", 10.0)
    ledger.add("compile", 3.0)
    snapshot = ledger.snapshot()
    ledger.add("step", 4.0)
    ledger.add("evaluation", 2.0)
    ledger.add("compile", 5.0)
    ledger.lose_work_since(snapshot)
    found = ledger.snapshot()
    assert (found["step"], found["evaluation"], found["compile"]) == (10.0, 0.0, 8.0)
    assert found["lost_work"] == 6.0
    assert ledger.record()["goodput/fraction"] == pytest.approx(10 / 24, abs=1e-4)


def test_time_after_the_end_of_a_run_is_not_its_life(path, clock):
    first = TimeLedger()
    first.resume(path)
    first.add("step", 1.0)
    first.is_finished = True
    first.write()
    said = written(path)
    long_ago = {"beat": said["beat"] - 3600, "first_start": said["beat"] - 3601}
    path.write_text(json.dumps({**said, **long_ago}))
    again = TimeLedger()
    again.resume(path)
    again.write()
    assert written(path)["seconds"]["down_time"] == 0
    assert life_sec(path) == pytest.approx(1.0, abs=0.1)


def test_a_clock_that_was_set_back_is_told_and_takes_no_time_away(path, clock):
    first = TimeLedger()
    first.resume(path)
    first.add("step", 5.0)
    first.write()
    said = written(path)
    ahead = {"beat": said["beat"] + 3600, "first_start": said["beat"] + 3595}
    path.write_text(json.dumps({**said, **ahead}))
    again = TimeLedger()
    assert again.resume(path) == pytest.approx(3600, abs=1)
    again.write()
    found = written(path)["seconds"]
    assert found["step"] == 5.0
    assert min(found.values()) >= 0
    assert life_sec(path) == pytest.approx(5.0, abs=0.1)


def test_a_torn_ledger_begins_anew(path):
    path.write_text('{"beat": 17')
    assert TimeLedger().resume(path) == 0
