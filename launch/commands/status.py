"""`./tessera status RUN`: whether a run is alive, where it is, and how to go on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launch.arguments import RunPath, parse_arguments
from train.checkpoints.manifest import checkpoint_steps
from train.record.run_folder import RunFolder, read_metrics


@dataclass(frozen=True, kw_only=True)
class StatusArguments:
    """Shows whether a run is alive, which step it has reached, and how to resume it."""

    run: RunPath
    """The run folder."""
    json: bool = False
    """Print the result as one JSON object, on the last line."""


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    parsed = parse_arguments(StatusArguments, arguments, command="./tessera status")
    status = read_status(RunFolder(parsed.run))
    if parsed.json:
        print(json.dumps(status))
    else:
        width = max(map(len, status))
        for name, value in status.items():
            print(f"{name.replace('_', ' '):<{width}}  {'none' if value is None else value}")
    return 0


def read_status(folder: RunFolder) -> dict[str, Any]:
    """Returns what there is to know of a run without touching it.

    Raises:
        SettingsError: the folder is not a run folder.
    """
    config = folder.read_config()
    events = folder.read_events()
    records = read_metrics(folder.metrics)
    steps = checkpoint_steps(folder.checkpoints)
    process = folder.holder()
    last = events[-1] if events else {}
    is_finished = bool(steps) and steps[-1] >= config.train.num_steps
    commands = [event.get("command") for event in events if event.get("event") == "started"]
    if process is not None:
        state, way_on = f"alive (process {process})", "wait, or stop it with Ctrl-C or SIGTERM"
    elif is_finished:
        state, way_on = "finished", f"./tessera generate {folder.path} --prompt 'The '"
    else:
        state, way_on = "not running", commands[-1] if commands else None
    record = records[max(records)] if records else {}
    return {
        "run": str(folder.path),
        "state": state,
        "step": max(record.get("step", 0), *steps[-1:], 0),
        "num_steps": config.train.num_steps,
        "loss": record.get("loss"),
        "goodput": record.get("goodput/fraction"),
        "last_checkpoint": steps[-1] if steps else None,
        "last_event": f"{last.get('event')} at {last.get('time')}" if last else None,
        "to_go_on": way_on,
    }
