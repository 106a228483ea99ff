"""What every part of checkpointing shares: where a run's checkpoints are, and how it reports."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import TesseraError
from configs.run import CheckpointConfig
from sharding.distributed.processes import ALONE, Processes
from train.checkpoints.durable_storage import DurableTier

Emit = Callable[..., None]
"""Records an event: its kind in events.jsonl, and its details by name."""


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


def error_line(error: BaseException) -> str:
    """Returns an error as one line."""
    line = " ".join(str(error).split())
    return line if isinstance(error, TesseraError | OSError) else f"{type(error).__name__}: {line}"
