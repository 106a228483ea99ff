"""`./tessera test`: lint, types and tests of this checkout."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from launch.arguments import parse_arguments
from launch.jax_setup import ROOT


@dataclass(frozen=True, kw_only=True)
class TestArguments:
    """Runs lint, types and tests; exit code 1 where one of them fails."""

    all: bool = False
    """Run the slow proofs too."""
    select: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEST")] = ()
    """Files or names of tests, as pytest takes them; none is all of the suite."""


def main(arguments: Sequence[str]) -> int:
    parsed = parse_arguments(TestArguments, arguments, command="./tessera test")
    tests = ["pytest", "-q", "-n", str(min(os.cpu_count() or 1, 8)), "--dist", "loadfile"]
    if not parsed.all:
        tests += ["-m", "not slow"]
    commands = [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["basedpyright"]]
    if parsed.select:
        commands = []
    failed = []
    for command in (*commands, [*tests, *parsed.select]):
        print(f"$ {' '.join(command)}", flush=True)
        if subprocess.run([sys.executable, "-m", *command], cwd=ROOT).returncode:
            failed.append(command[0])
    print(f"failed: {', '.join(failed)}" if failed else "all is well")
    return 1 if failed else 0
