"""`./tessera status RUN`: whether a run is alive, where it is, and how to go on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from launch.arguments import RunPath, parse_arguments
from launch.reading.run_status import read_status
from train.record.run_folder import RunFolder


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
