"""What every part of checkpointing shares: where a run's checkpoints are, and how it reports."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import TesseraError
from configs.run import CheckpointConfig
from sharding.distributed.processes import ALONE, EndedElsewhere, Processes
from train.checkpoints.durable_storage import DurableTier

Emit = Callable[..., None]
"""Records an event: its kind in events.jsonl, and its details by name."""


Errors = tuple[type[Exception], ...]
EXPECTED: Errors = (OSError, TesseraError)
"""Errors of a disk or of storage."""


def emit_nothing(event: str, **details: Any) -> None:
    """Drops an event."""


@dataclass(frozen=True)
class CheckpointContext:
    """Where the checkpoints of a run are, and which processes work on them."""

    folder: Path
    """Absolute."""
    config: CheckpointConfig
    processes: Processes = ALONE
    durable: DurableTier | None = None
    """Where checkpoints are mirrored; in process 0 only."""
    emit: Emit = emit_nothing
    """Receives events, in process 0 only."""
    span: Callable[[str], AbstractContextManager] = lambda name: contextlib.nullcontext()
    """Names the span of time in which work is done (`train.record.spans`)."""

    def everywhere(
        self, what: str, work: Callable[[], Any], expected: Errors = EXPECTED
    ) -> tuple[str | None, list[Any]]:
        """Does work in every process; returns why it failed in one, and the results in process 0.

        Results are what JSON can hold; other errors than the expected ones are raised.
        """
        outcome = _outcome(work, expected)
        outcomes = self.processes.gather(what, outcome)
        cause = next((cause for cause, _ in outcomes if cause), None)
        return self.processes.from_first(f"{what}, all", cause), [x for _, x in outcomes]

    def in_first(
        self, what: str, work: Callable[[], Any], expected: Errors = EXPECTED
    ) -> tuple[str | None, Any]:
        """Does work in process 0; returns why it failed, and its result, in every process."""
        outcome = _outcome(work, expected) if self.processes.is_first else None
        cause, result = self.processes.from_first(what, outcome)
        return cause, result


def _outcome(work: Callable[[], Any], expected: Errors) -> tuple[str | None, Any]:
    try:
        return None, work()
    except EndedElsewhere:
        raise
    except expected as error:
        return error_line(error), None


def error_line(error: BaseException) -> str:
    line = " ".join(str(error).split())
    return line if isinstance(error, TesseraError | OSError) else f"{type(error).__name__}: {line}"
