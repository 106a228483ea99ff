"""The watchdog: a span that hangs is found, and none that is slow for a reason."""

import time

import pytest

from configs.run import GuardConfig
from train.health.watchdog import Hang, Watchdog
from train.record.spans import SPANS, Spans

CONFIG = GuardConfig(hang_limit_sec=100.0)
MEASURED = [name for name, span in SPANS.items() if span.limit == "measured"]
PROGRESS = [name for name, span in SPANS.items() if span.limit == "progress"]


def timed(name: str, *seconds: float) -> Spans:
    """Returns spans of which one was entered before, for so long each time."""
    spans = Spans()
    spans.durations[name].extend(seconds)
    return spans


def limit_sec(spans: Spans, name: str, config: GuardConfig = CONFIG) -> float | None:
    return Watchdog(spans, config).limit_sec(name)


@pytest.mark.parametrize(
    ("seconds", "limit"),
    [
        ((), 100.0),
        ((0.5, 0.5), 100.0),  # too few for a median
        ((20.0, 20.0, 90.0), 600.0),  # longer than before it was timed: it is that slow
        ((0.01,) * 5, 60.0),  # a minute in any case
    ],
)
def test_what_was_timed_may_take_a_multiple_of_its_own_median(seconds, limit):
    for name in MEASURED:
        assert limit_sec(timed(name, *seconds), name) == limit


def test_a_limit_below_a_minute_is_meant():
    config = GuardConfig(hang_limit_sec=5.0)
    assert limit_sec(timed("step", *[0.01] * 5), "step", config) == 5.0


def test_no_span_is_measured_by_the_times_of_another():
    """A save that stalls training for a moment says nothing of how long a whole one takes."""
    for other in SPANS:
        spans = timed(other, *[0.001] * 5)
        for name in SPANS:
            limit = limit_sec(spans, name)
            assert name == other or SPANS[name].limit in (None, "outer") or limit == 100.0


@pytest.mark.parametrize("name", ["compilation", *PROGRESS])
def test_compilation_and_what_moves_bytes_is_never_scaled(name: str):
    assert limit_sec(timed(name, *[0.01] * 5), name) == 100.0


def test_the_limit_can_be_switched_off():
    for name in SPANS:
        assert limit_sec(Spans(), name, GuardConfig(hang_limit_sec=None)) is None


class Clock:
    """A watchdog that looks every half second of a clock that only the test moves."""

    def __init__(self, spans: Spans, config: GuardConfig, progress=lambda: 0):
        self.now = time.monotonic()
        self._watchdog = Watchdog(spans, config, progress)

    def passes(self, seconds: float) -> Hang | None:
        """Returns the hang after so long, if there is one."""
        for _ in range(round(seconds / 0.5)):
            self.now += 0.5
            if (hang := self._watchdog.poll(self.now)) is not None:
                return hang
        return None


@pytest.mark.parametrize("name", [name for name, s in SPANS.items() if s.limit != "outer"])
def test_each_span_that_has_a_limit_is_held_to_it(name: str):
    spans, config = Spans(), GuardConfig(hang_limit_sec=100.0)
    clock = Clock(spans, config)
    with spans("loop"), spans(name):
        assert clock.passes(99) is None
        hang = clock.passes(2)
    if SPANS[name].limit is None:
        assert hang is None
        return
    assert hang is not None
    assert (hang.span, hang.limit_sec) == (name, 100.0)
    assert "guard.hang_limit_sec=100" in hang.cause


def test_a_process_that_does_not_get_beyond_its_set_up_is_ended():
    assert Clock(Spans(), CONFIG).passes(101) is not None


def test_waiting_for_data_is_held_to_the_limit_of_its_step():
    spans = Spans()
    clock = Clock(spans, CONFIG)
    with spans("loop"), spans("step"):
        assert clock.passes(60) is None
        with spans("data wait"):
            hang = clock.passes(41)
    assert hang is not None
    assert hang.span == "step"


@pytest.mark.parametrize("name", PROGRESS)
def test_what_moves_bytes_may_take_for_ever_and_what_moves_none_may_not(name: str):
    moved, spans = 0, Spans()
    clock = Clock(spans, CONFIG, lambda: moved)
    with spans("loop"), spans(name):
        for _ in range(20):
            assert clock.passes(90) is None
            moved += 1
        hang = clock.passes(102)
    assert hang is not None
    assert f"{name} has moved no byte" in hang.cause


def test_bytes_that_move_elsewhere_do_not_hide_a_step_that_hangs():
    spans = Spans()
    clock = Clock(spans, CONFIG, time.monotonic_ns)
    with spans("loop"), spans("step"):
        assert clock.passes(101) is not None


def test_many_short_steps_are_no_long_one():
    spans = Spans()
    clock = Clock(spans, CONFIG)
    with spans("loop"):
        for _ in range(40):
            with spans("step"):
                assert clock.passes(20) is None


def test_a_process_that_was_stopped_did_not_hang():
    """As with SIGSTOP: the clock goes on, and nobody looks."""
    spans = Spans()
    clock = Clock(spans, CONFIG)
    with spans("loop"), spans("step"):
        clock.now += 3600
        assert clock.passes(90) is None


def test_the_watchdog_is_a_thread_that_reports_a_hang_once():
    spans, found = Spans(), []
    Watchdog(spans, GuardConfig(hang_limit_sec=0.1)).start(found.append)
    with spans("loop"), spans("step"):
        deadline = time.monotonic() + 60
        while not found and time.monotonic() < deadline:
            time.sleep(0.01)
    spans.close()
    assert [hang.span for hang in found] == ["step"]


def test_what_is_scaled_says_by_which_setting_and_median():
    spans = timed("evaluation", *[4.0] * 3)
    cause = Watchdog(spans, GuardConfig()).describe("evaluation", 130.0, 120.0).cause
    for part in (
        "evaluation",
        "130 s",
        "30 times its median of 4 s",
        "guard.hang_limit_sec",
        "120 s",
    ):
        assert part in cause
