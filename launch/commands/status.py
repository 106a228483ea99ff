"""`./tessera status RUN`: whether a run is alive, where it is, and how to go on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from launch.arguments import parse_arguments
from launch.reading.run_status import read_status
from train.record.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class StatusArguments:
    """Says whether a run is alive, where it is, and how to go on."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    json: bool = False
    """End with one JSON object on one line."""


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
