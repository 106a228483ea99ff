"""How far a long work is: a bar on a terminal, a line now and then elsewhere."""

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from train.record.eta import duration, eta_text

Result = TypeVar("Result")

_SECONDS_BETWEEN_LINES = 15.0
_SECONDS_BEFORE_THE_FIRST = 5.0  # what is quicker needs no line


class Progress:
    """Shows a stage, how much of it is done, and the time that is left, until it is closed.

    Args:
        unit: of what is counted; None is bytes, shown in MB with their speed.
    """

    def __init__(self, console: Console, unit: str | None = None):
        self._console, self._unit = console, unit
        self._stage: tuple[str, int, int] | None = None
        self._name = ""
        self._began, self._first = 0.0, 0
        self._bar: Bar | None = None
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def close(self) -> None:
        """Gives the terminal back; a stage may have ended with an error."""
        self._closed.set()
        self._stop_bar()

    def __call__(self, name: str, done: int, total: int, shown: str | None = None) -> None:
        """Shows how much of a stage is done; one that is done is shown no more.

        Args:
            shown: what is shown in place of the name of the stage.
        """
        if name != self._name:
            self._name, self._began, self._first = name, time.monotonic(), done
        self._stage = (shown or name, done, total)
        if self._console.is_terminal:
            self._draw(*self._stage)
        elif self._thread is None:
            self._thread = threading.Thread(target=self._print, daemon=True)
            self._thread.start()

    def _print(self) -> None:
        wait_sec = _SECONDS_BEFORE_THE_FIRST
        while not self._closed.wait(wait_sec):
            wait_sec = _SECONDS_BETWEEN_LINES
            if self._stage is not None and self._stage[1] < self._stage[2]:
                seconds = duration(time.monotonic() - self._began)
                line = f"{self._line(*self._stage)}, {seconds} elapsed"
                self._console.print(line, markup=False, soft_wrap=True)

    def _line(self, shown: str, done: int, total: int) -> str:
        speed = (done - self._first) / max(time.monotonic() - self._began, 1e-6)
        eta = eta_text((total - done) / speed if speed else None)
        if self._unit:
            return f"{done:,} of {total:,} {self._unit}, {eta}; {shown}"
        if not speed:
            return f"{shown} ({total / 1e6:,.0f} MB), {eta}"
        return f"{shown}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB, {speed / 1e6:.1f} MB/s, {eta}"

    def _draw(self, shown: str, done: int, total: int) -> None:
        if self._bar is None and done < total:
            text = TextColumn("{task.description}", markup=False)
            columns = (SpinnerColumn(), BarColumn(bar_width=20), TimeElapsedColumn(), text)
            self._bar = Bar(*columns, console=self._console, transient=True)
            self._bar.start()
            self._bar.add_task("", total=total)
        if self._bar is not None:
            line = self._line(shown, done, total)
            self._bar.update(self._bar.task_ids[0], description=line, completed=done, total=total)
        if done >= total:
            self._stop_bar()

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Tracker:
    """Shows how many of several tasks are done, and which of them are running."""

    def __init__(self, progress: Progress, num_tasks: int):
        self._progress, self._num_tasks = progress, num_tasks
        self._running: list[str] = []
        self._num_done = 0
        self._lock = threading.Lock()
        self._show()

    def track(self, name: str, task: Callable[..., Result], *arguments: Any) -> Result:
        """Returns what a task returns, and shows its name until then; any thread may call it."""
        with self._lock:
            self._running.append(name)
            self._show()
        try:
            return task(*arguments)
        finally:
            with self._lock:
                self._running.remove(name)
                self._num_done += 1
                self._show()

    def _show(self) -> None:
        running = f"running: {', '.join(dict.fromkeys(self._running))}"
        self._progress("tasks", self._num_done, self._num_tasks, running)
