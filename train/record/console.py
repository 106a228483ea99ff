"""The log of a run, and its live progress display on a terminal."""

import logging
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from train.record.run_folder import Record

logger = logging.getLogger("tessera")


def log_to_file(path: Path) -> None:
    """Appends every line of the log to a file, with its time.

    The logs of libraries (Orbax, Grain) go there too, instead of flooding the screen.
    """

    class File(logging.FileHandler):
        def handleError(self, record: logging.LogRecord) -> None:
            """Drops a line that cannot be written, instead of printing a traceback."""

    handler = File(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    of_libraries = logging.getLogger("absl")
    of_libraries.propagate = False
    of_libraries.handlers = [handler]


def log_to_console(console: Console, *, process: int = 0) -> None:
    """Prints every line of the log, above the live display if there is one.

    Of other processes than the first, only warnings are printed, with the number of the process.
    """
    prefix = f"process {process}: " if process else ""

    class Printer(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            style = "bold yellow" if record.levelno >= logging.WARNING else ""
            console.print(Text(prefix + record.getMessage(), style=style), soft_wrap=True)

    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers.clear()
    logger.addHandler(Printer(logging.WARNING if process else logging.NOTSET))


class Display:
    """Shows the progress of a run: a live bar on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, *, first_step: int, num_steps: int):
        self._num_steps = num_steps
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("passed,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
        )
        self._task = self._progress.add_task("train", total=num_steps, completed=first_step)
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        self._numbers = ""
        self._evaluation: Record = {}

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def show_step(self, step: int) -> None:
        """Moves the bar."""
        self._progress.update(self._task, completed=step)
        if self._live:
            self._live.update(Group(self._progress, Text(self._numbers)))

    def show_record(self, record: Record) -> None:
        """Shows the numbers of a logged step."""
        self._evaluation |= {k: v for k, v in record.items() if k.startswith("eval/")}
        self._numbers = describe({**self._evaluation, **record})  # the last evaluation stays shown
        width = len(str(self._num_steps))
        line = f"step {record['step']:>{width}}/{self._num_steps}  {describe(record)}"
        # On a terminal the numbers stand below the bar, so the log alone gets the line.
        _to_files(line) if self._live else logger.info(line)


def _to_files(line: str) -> None:
    record = logger.makeRecord(logger.name, logging.INFO, "", 0, line, (), None)
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def describe(record: Record) -> str:
    """Returns the numbers of a record as a person reads them."""
    parts = [f"loss {_number(record['loss'], '.4f')}"]
    if "eval/loss" in record:
        parts.append(f"eval {_number(record['eval/loss'], '.4f')}")
    parts += [
        f"lr {record['learning_rate']:.2e}",
        f"{_number(record['tokens_per_second'], ',.0f')} tokens/s",
        f"MFU {_number(record['mfu_causal'], '.1%')} causal,"
        f" {_number(record['mfu_full'], '.1%')} full",
        f"data wait {_number(record['data_wait_sec'] * 1e3, '.1f')} ms",
    ]
    return "  ".join(parts)


def _number(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)
