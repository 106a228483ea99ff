"""System calls that fail as a sick disk or a foreign file system lets them: a library put before
libc, in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest
from commands import environment_of_child
from small_processes import FASTER_COMPILATION

from launch.faults.unanswered import build_shim, needs_compiler


def run_faulty(
    folder: Path, code: str, *arguments: object, **faults: object
) -> "subprocess.CompletedProcess[str]":
    """Runs some code in a process whose system calls fail, as `launch.cli.guarded` does.

    Args:
        faults: flock=errno, or eio_read=part of a path and eio_times=how many reads of it fail.
    """
    if missing := needs_compiler():
        pytest.skip(missing)
    named = {f"TESSERA_{name.upper()}": str(value) for name, value in faults.items()}
    given = "import sys; from launch.cli import guarded\nfrom pathlib import Path\n"
    return subprocess.run(
        [sys.executable, "-c", given + code, *map(str, arguments)],
        env=environment_of_child(
            {**FASTER_COMPILATION, **named, "LD_PRELOAD": str(build_shim(folder))}
        ),
        check=False,
        capture_output=True,
        text=True,
    )
