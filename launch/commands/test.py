"""`./tessera test`: lint, types and tests of this checkout."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from configs.require import require
from launch.arguments import parse_arguments
from launch.jax_setup import ROOT

_LINT = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["basedpyright"])
_QUICK = (
    *("tests/configs", "tests/laws/test_imports.py", "tests/laws/test_refusals.py"),
    *("tests/sharding/test_fit.py", "tests/sharding/test_mesh.py", "tests/data/test_batches.py"),
    *("tests/data/test_rows.py", "tests/data/test_packing.py", "tests/data/test_objectives.py"),
    *("tests/train/test_schedule.py", "tests/train/checkpoints/test_checkpoint.py"),
    *("tests/train/record/test_run_folder.py", "tests/train/health/test_divergence.py"),
)
"""What finds most in little time."""
_TIME = {
    "quick": "a minute and a half",
    "default": "9 minutes (15 while nothing is compiled yet)",
    "all": "three hours",
}
"""How long each takes on two CPU cores."""


@dataclass(frozen=True, kw_only=True)
class TestArguments:
    """Runs lint, types and tests; exit code 1 if one of them fails."""

    quick: bool = False
    """Only lint, types and the tests that find most: what one runs before a commit."""
    all: bool = False
    """Run the slow proofs too: 100 kills, SLURM, programs for TPU pods, whole tables."""
    part: str | None = None
    """K/N: only the K-th of N parts of the tests, to spread them over machines or sittings."""
    select: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEST")] = ()
    """Files or names of tests, as pytest takes them; none is all of the suite."""


def main(arguments: Sequence[str]) -> int:
    parsed = parse_arguments(TestArguments, arguments, command="./tessera test")
    require(not (parsed.quick and parsed.all), "--quick: not together with --all, which is more")
    if parsed.part is not None:
        found = re.fullmatch(r"(\d+)/(\d+)", parsed.part)
        require(
            found is not None and 1 <= int(found[1]) <= int(found[2]),
            f"--part={parsed.part} must be K/N, such as 1/4: part K of N parts",
        )
    tests = ["pytest", "-q", "--durations=10", "-n", str(min((os.cpu_count() or 1) + 1, 8))]
    tests += ["--dist", "loadfile", "--no-loadscope-reorder"]  # the longest files come first
    if not parsed.all:
        tests += ["-m", "not slow"]
    if parsed.part is not None:
        tests += ["--part", parsed.part]
    if not parsed.select:
        name = "quick" if parsed.quick else "all" if parsed.all else "default"
        part = "" if parsed.part is None else f", of which this is part {parsed.part}"
        print(f"lint, types and tests: about {_TIME[name]} on 2 cores{part}", flush=True)
    selected = parsed.select or (_QUICK if parsed.quick else ())
    failed = []
    for command in (*(() if parsed.select else _LINT), [*tests, *selected]):
        print(f"$ {' '.join(command)}", flush=True)
        if subprocess.run([sys.executable, "-m", *command], cwd=ROOT).returncode:
            failed.append(command[0])
    print(f"failed: {', '.join(failed)}" if failed else "all is well")
    return 1 if failed else 0
