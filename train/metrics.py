"""What a run says of itself at each logged step: metrics.jsonl and the same for TensorBoard."""

import json
import math
import os
from pathlib import Path
from typing import Any, Self

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto

from train.run_folder import Record, RunFolder, close_torn_line


def shortest(value: Any) -> float | None:
    """Returns the float whose decimal is the shortest that gives back the same float32.

    None stands for what is not finite, which JSON has no word for.
    """
    return float(str(np.float32(value))) if math.isfinite(value) else None


def open_metrics(folder: RunFolder, *, first_step: int) -> "MetricsWriter":
    """Returns what writes the metrics of a run from the step after first_step on."""
    if not folder.is_writer:
        return SilentWriter()
    return MetricsWriter(folder.metrics, folder.tensorboard, first_step=first_step)


class MetricsWriter:
    """Appends records to metrics.jsonl and to TensorBoard's event file."""

    def __init__(self, path: Path, tensorboard: Path, *, first_step: int):
        close_torn_line(path)
        self._file = path.open("a")
        self._events = EventFileWriter(str(tensorboard), flush_secs=10)
        # Tells TensorBoard that a restarted run begins here: what it had beyond is superseded.
        start = SessionLog(status=SessionLog.START)
        self._events.add_event(Event(step=first_step + 1, session_log=start))

    def write(self, record: Record, time: float) -> None:
        """Appends one record; `time` is the wall clock of its step, in seconds."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        values = [
            Summary.Value(tag=_tag(name), simple_value=value)
            for name, value in record.items()
            if value is not None and name != "step"
        ]
        self._add(Summary(value=values), record["step"], time)

    def write_text(self, name: str, text: str, step: int, time: float) -> None:
        """Shows a text in TensorBoard, as it is and not as markup."""
        indented = "\n".join("    " + line for line in text.splitlines())
        value = Summary.Value(
            tag=name,
            metadata=create_summary_metadata(display_name=name, description=""),
            tensor=make_tensor_proto(indented),
        )
        self._add(Summary(value=[value]), step, time)

    def _add(self, summary: Summary, step: int, time: float) -> None:
        self._events.add_event(Event(step=step, wall_time=time, summary=summary))

    def flush(self) -> None:
        """Returns when everything that was written is on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._events.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Flushes and closes both files."""
        self.flush()
        self._file.close()
        self._events.close()


class SilentWriter(MetricsWriter):
    """Writes nothing: in the processes of a run that are not its first."""

    def __init__(self) -> None:
        pass

    def write(self, record: Record, time: float) -> None:
        """Does nothing."""

    def write_text(self, name: str, text: str, step: int, time: float) -> None:
        """Does nothing."""

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def _tag(name: str) -> str:
    return name if "/" in name else f"train/{name}"
