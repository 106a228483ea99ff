"""Runs over several real processes on this machine, each with its own virtual devices."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from commands import start
from small_runs import tiny_run

from launch.faults.trial import free_port
from train.record.run_folder import RunFolder, read_metrics

RUN = "run"
"""Where the run is, below the folder that it was started in."""
NUM_STEPS = 16
FASTER_COMPILATION = {
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
}
"""Compiles twice as fast, to programs that are slower than they could be."""


def small_run(*more: str) -> list[str]:
    """Returns the arguments of `train` for 16 steps on text.txt."""
    settings = f"--run-dir {RUN} --train.num_steps {NUM_STEPS} --checkpoint.every_steps 8"
    periods = "--eval.every_steps None --sample.every_steps None"
    return tiny_run(*settings.split(), *periods.split(), *more)


def start_all(
    folder: Path,
    arguments: Sequence[str],
    *,
    num_processes: int,
    num_devices: int,
    others: Mapping[int, Sequence[str]] | None = None,
    absent: Sequence[int] = (),
) -> "dict[int, subprocess.Popen[str]]":
    """Starts the processes of a run, with num_devices in each.

    Args:
        others: {process: what it is given besides}.
        absent: processes that are not started.
    """
    job = f"--coordinator localhost:{free_port()} --num-processes {num_processes}".split()
    devices = ("--virtual-devices", str(num_devices))
    return {
        i: start_process(
            folder, *arguments, *devices, *job, "--process-id", str(i), *(others or {}).get(i, ())
        )
        for i in range(num_processes)
        if i not in absent
    }


def start_process(
    folder: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> "subprocess.Popen[str]":
    """Starts `./tessera train` in a folder, with further variables in its environment."""
    return start(
        folder, "train", *arguments, environment={**FASTER_COMPILATION, **(environment or {})}
    )


def finish_all(
    processes: "Mapping[int, subprocess.Popen[str]]", within_sec: float = 240
) -> dict[int, tuple[int, str]]:
    """Returns {process: (exit code, what it printed)}; fails if one has not ended by then."""
    deadline = time.monotonic() + within_sec
    ended = {}
    try:
        for i, process in processes.items():
            output, _ = process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
            ended[i] = (process.returncode, output)
    finally:
        for process in processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
    return ended


def run_all(
    folder: Path, arguments: Sequence[str], *, num_processes: int, num_devices: int
) -> RunFolder:
    """Runs a job to its end, which must be good, and returns its folder."""
    processes = start_all(folder, arguments, num_processes=num_processes, num_devices=num_devices)
    ended = finish_all(processes)
    assert {code for code, _ in ended.values()} == {0}, ended
    return RunFolder(folder / RUN)


def losses(run: RunFolder) -> list[float]:
    """Returns the loss of every step of a run."""
    return [record["loss"] for record in read_metrics(run.metrics).values()]
