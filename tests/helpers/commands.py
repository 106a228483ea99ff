"""Commands of Tessera in a test: called in its process, or started as processes of their own."""

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from launch.cli import main

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""


def environment_of_child(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the environment in which `python -m launch` runs from any folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **(more or {})}


def start(
    folder: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> "subprocess.Popen[str]":
    """Starts `python -m launch ...` in a folder, with further variables in its environment."""
    return subprocess.Popen(
        [sys.executable, "-m", "launch", *arguments],
        cwd=folder,
        env=environment_of_child(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: "subprocess.Popen[str]", within_sec: float = 300) -> tuple[int, str]:
    """Returns the exit code of a process and all that it printed, once it has ended."""
    output, _ = process.communicate(timeout=within_sec)
    return process.returncode, output


def call(*arguments: str) -> tuple[int, str]:
    """Runs a command in this process and returns its exit code and all that it printed."""
    logger = logging.getLogger("tessera")
    kept, logger.handlers, propagate = logger.handlers, [], logger.propagate
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = main(arguments)
    except SystemExit as ending:  # tyro's
        code = int(ending.code or 0)
    finally:
        for handler in logger.handlers:
            handler.close()
        logger.handlers, logger.propagate = kept, propagate
        for number, act in signals.items():
            signal.signal(number, act)
    return code, printed.getvalue()


def wait_until(
    holds: Callable[[], Any],
    process: "subprocess.Popen[str] | None" = None,
    *,
    within_sec: float = 120,
) -> None:
    """Returns as soon as something holds; fails after a while, or if a process ends before."""
    deadline = time.monotonic() + within_sec
    while not holds():
        ended = process is not None and process.poll() is not None
        assert not ended, f"ended too early:\n{process and process.communicate()[0]}"
        assert time.monotonic() < deadline, f"waited for {within_sec} seconds"
        time.sleep(0.0005)
