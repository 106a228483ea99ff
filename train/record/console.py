"""The log of a run, and its live progress display on a terminal."""

import logging
import time
from pathlib import Path
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from configs.run import RunConfig
from train.record.eta import duration, eta_sec, eta_text, periods
from train.record.run_folder import Record
from train.record.spans import Spans

logger = logging.getLogger("tessera")

_DOING = {
    "evaluation": "evaluating",
    "sample": "sampling",
    "stall": "saving",
    "save": "saving",
    "wait before another save": "saving",
    "rollback": "rolling back",
}
"""What is shown while the run is in a span that is none of a step."""


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

    def __init__(self, console: Console, config: RunConfig, spans: Spans, *, first_step: int):
        self._config, self._spans = config, spans
        self._num_steps, self._step = config.train.num_steps, first_step
        self._step_ended = time.monotonic()
        self._span, self._span_began = "", 0.0
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[times]}"),
            console=console,
        )
        total = self._num_steps
        self._task = self._progress.add_task("train", total=total, completed=first_step, times="")
        self._numbers = ""
        self._evaluation: Record = {}
        self._live = None
        if console.is_terminal:  # drawn from a thread, so that it moves whatever the run does
            self._live = Live(console=console, get_renderable=self._draw)

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def show_step(self, step: int) -> None:
        self._step, self._step_ended = step, time.monotonic()
        self._progress.update(self._task, completed=step)

    def show_record(self, record: Record) -> None:
        self._evaluation |= {k: v for k, v in record.items() if k.startswith("eval/")}
        # The last evaluation stays shown.
        self._numbers = f"step {record['step']}  {describe({**self._evaluation, **record})}"
        width = len(str(self._num_steps))
        line = f"step {record['step']:>{width}}/{self._num_steps}  {describe(record)}"
        if record["step"] < self._num_steps:
            line += f"  {eta_text(self.eta_sec(time.monotonic()))}"
        # On a terminal the numbers stand below the bar, so the log alone gets the line.
        _to_files(line) if self._live else logger.info(line)

    def eta_sec(self, now: float) -> float | None:
        """Returns the time to the last step at a time of the monotonic clock; None if unknown.

        It is the medians of steps, evaluations, samples and saves so far times those to come, less
        what the present one has taken already.
        """
        others_sec = {name: self._spans.median_sec(name) for name in periods(self._config)}
        step_sec = self._spans.median_sec("step", "replay", at_least=3)
        left = eta_sec(self._config, self._step, step_sec, others_sec)
        if left is None:
            return None
        span = self._spans.current
        if span != self._span:
            self._span, self._span_began = span, now
        if span in others_sec:
            return left + max((others_sec[span] or 0.0) - (now - self._span_began), 0.0)
        return max(left - min(now - self._step_ended, step_sec or 0.0), 0.0)

    def _times(self, elapsed: float) -> str:
        left = self.eta_sec(time.monotonic())
        eta = "" if left == 0 else eta_text(left)  # what is left then was never timed
        doing = _DOING.get(self._spans.current, "")
        return ", ".join(filter(None, (f"{duration(elapsed)} elapsed", eta, doing)))

    def _draw(self) -> Group:
        elapsed = self._progress.tasks[0].elapsed or 0.0
        self._progress.update(self._task, times=self._times(elapsed))
        return Group(self._progress, Text(self._numbers))


def _to_files(line: str) -> None:
    record = logger.makeRecord(logger.name, logging.INFO, "", 0, line, (), None)
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def describe(record: Record) -> str:
    parts = [f"loss {_number(record['loss'], '.4f')}"]
    if "eval/loss" in record:
        parts.append(f"eval {_number(record['eval/loss'], '.4f')}")
    parts += [
        f"lr {record['learning_rate']:.2e}",
        f"{_number(record['tokens_per_second'], ',.0f')} tokens/s",
    ]
    if (record["mfu_causal"], record["mfu_full"]) != (None, None):  # the peak is known
        parts.append(
            f"MFU {_number(record['mfu_causal'], '.1%')} causal,"
            f" {_number(record['mfu_full'], '.1%')} full"
        )
    parts.append(f"data wait {_number(record['data_wait_sec'] * 1e3, '.1f')} ms")
    return "  ".join(parts)


def _number(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)
