"""Writes the metrics of each logged step to metrics.jsonl and to TensorBoard."""

import contextlib
import math
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto

from train.record.run_folder import Lines, Record, RunFolder


def shortest(value: Any) -> float | None:
    """Returns the float with the shortest decimal that gives back the same float32.

    Nonfinite values, which JSON lacks, become None.
    """
    return float(str(np.float32(value))) if math.isfinite(value) else None


def open_metrics(folder: RunFolder) -> "MetricsWriter":
    """Returns the metrics writer of a run, which writes in its first process only."""
    return MetricsWriter(folder.metrics, folder.tensorboard, is_writer=folder.is_writer)


class MetricsWriter:
    """Appends records to metrics.jsonl and to TensorBoard's event file.

    On a full disk, records are kept and written later, but TensorBoard lacks them.
    """

    def __init__(self, path: Path, tensorboard: Path, *, is_writer: bool = True):
        self._lines = Lines(path, is_writer=is_writer)
        self._tensorboard, self._is_writer = tensorboard, is_writer
        self._events: EventFileWriter | None = None

    def begin(self, first_step: int) -> None:
        """Marks a resume in TensorBoard's file: later steps that it already had are superseded."""
        start = SessionLog(status=SessionLog.START)
        self._add(Event(step=first_step + 1, session_log=start))

    def write(self, record: Record, time: float) -> None:
        """Appends one record; `time` is the wall clock of its step, in seconds."""
        self._lines.add(record)
        values = [
            Summary.Value(tag=_tag(name), simple_value=value)
            for name, value in record.items()
            if value is not None and name != "step"
        ]
        self._add(Event(step=record["step"], wall_time=time, summary=Summary(value=values)))

    def write_text(self, name: str, text: str, step: int, time: float) -> None:
        """Adds a text to TensorBoard, verbatim and not as markup."""
        indented = "\n".join("    " + line for line in text.splitlines())
        value = Summary.Value(
            tag=name,
            metadata=create_summary_metadata(display_name=name, description=""),
            tensor=make_tensor_proto(indented),
        )
        self._add(Event(step=step, wall_time=time, summary=Summary(value=[value])))

    def _add(self, event: Event) -> None:
        if not self._is_writer:
            return
        try:
            if self._events is None:
                self._events = EventFileWriter(str(self._tensorboard), flush_secs=10)
            self._events.add_event(event)
        except OSError:  # its thread has ended: start another file when there is room
            self._events = None

    def flush(self) -> None:
        """Returns when all records are on disk; raises OSError if they cannot be written."""
        self._lines.flush()
        with contextlib.suppress(OSError):
            if self._events is not None:
                self._events.flush()

    def close(self) -> None:
        """Writes what is left, as far as the disk accepts it, and closes both files."""
        with contextlib.suppress(OSError):
            self.flush()
        with contextlib.suppress(OSError):
            if self._events is not None:
                self._events.close()


def _tag(name: str) -> str:
    return name if "/" in name else f"train/{name}"
