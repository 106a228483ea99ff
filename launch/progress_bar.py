"""How far a long preparation is: a bar on a terminal, a line now and then elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_SECONDS_BETWEEN_LINES = 15.0
_SECONDS_BEFORE_THE_FIRST = 5.0  # what is quicker needs no telling


def duration(seconds: float) -> str:
    """Returns a time as a person says it."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


class Progress:
    """Is told (stage, bytes done, bytes in all), and shows the speed and the time that is left."""

    def __init__(self, console: Console):
        self._console = console
        self._stage: str | None = None
        self._bar: Bar | None = None
        self._began, self._told, self._first = 0.0, 0.0, 0

    def close(self) -> None:
        """Gives the terminal back; a stage may have ended with an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Shows where a stage is; one that is done is shown no more."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began, self._first = stage, now, done
            self._told = now - _SECONDS_BETWEEN_LINES + _SECONDS_BEFORE_THE_FIRST
        if self._console.is_terminal:
            self._draw(stage, done, total)
        elif now - self._told >= _SECONDS_BETWEEN_LINES and done < total:
            self._told = now
            self._console.print(self._words(stage, done, total, now - self._began))

    def _words(self, stage: str, done: int, total: int, seconds: float) -> str:
        speed = (done - self._first) / seconds
        left = f"{duration((total - done) / speed)} left" if speed else "no end in sight yet"
        return (
            f"{stage}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB, {speed / 1e6:.1f} MB/s, {left}"
        )

    def _draw(self, stage: str, done: int, total: int) -> None:
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
            self._bar = Bar(*columns, TimeRemainingColumn(), console=self._console, transient=True)
            self._bar.start()
            self._bar.add_task(stage, total=total)
        self._bar.update(self._bar.task_ids[0], description=stage, completed=done, total=total)
        if done >= total:
            self._bar.stop()
            self._bar = None
