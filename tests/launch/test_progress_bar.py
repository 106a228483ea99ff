"""How far a long work is: a bar that moves on a terminal, lines elsewhere, none for quick work."""

import contextlib
import io
import time

import pytest
from rich.console import Console

from launch import progress_bar
from launch.progress_bar import Progress, Tracker


def console(*, is_terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=200, highlight=False)


def shown(screen: Console) -> str:
    return screen.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def wait_for(text: str, screen: Console) -> None:
    deadline = time.monotonic() + 30
    while text not in shown(screen):
        assert time.monotonic() < deadline, shown(screen)
        time.sleep(0.01)


def test_on_a_terminal_it_moves_while_nothing_is_reported():
    screen = console(is_terminal=True)
    with contextlib.closing(Progress(screen)) as progress:
        progress("scan", 0, 2_000_000)
        wait_for("scan (2 MB), ETA unknown", screen)
        wait_for("0:00:01", screen)
        progress("scan", 1_000_000, 2_000_000)
        wait_for("scan: 1 of 2 MB, ", screen)


def test_elsewhere_a_line_comes_now_and_then_though_nothing_is_reported(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(progress_bar, "_SECONDS_BEFORE_THE_FIRST", 0.01)
    monkeypatch.setattr(progress_bar, "_SECONDS_BETWEEN_LINES", 0.01)
    screen = console()
    with contextlib.closing(Progress(screen)) as progress:
        progress("scan", 0, 2_000_000)
        wait_for("scan (2 MB), ETA unknown, 0 s elapsed\n" * 2, screen)
        progress("scan", 2_000_000, 2_000_000)


def test_what_is_quick_prints_nothing():
    screen = console()
    with contextlib.closing(Progress(screen)) as progress:
        progress("scan", 0, 10)
        progress("scan", 10, 10)
    assert shown(screen) == ""


def test_tasks_are_counted_and_those_that_run_are_named():
    screen = console(is_terminal=True)
    with contextlib.closing(Progress(screen, "tries")) as progress:
        tracker = Tracker(progress, 3)
        assert tracker.track("first", lambda value: value, 7) == 7
        tracker.track("second", wait_for, "; running: second", screen)
    assert "1 of 3 tries, ETA " in shown(screen)
