"""Half an hour of a run that saves, evaluates, samples and is killed: nothing of it grows."""

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from commands import ROOT, finish, start
from small_runs import tiny_run, write_text

from train.checkpoints.folders import checkpoint_folders
from train.record.run_folder import RunFolder, read_metrics
from train.record.time_ledger import stat_fields

NUM_STEPS, MINUTE = 20_000, 60.0
KILLED_AT = (2 * MINUTE, 5 * MINUTE, 9 * MINUTE)
"""Seconds after the first start, so that the last process lives for twenty minutes and more."""
LAST_SEC = 10 * MINUTE
ALLOWED = 0.05
SETTINGS = f"""
    --train.num_steps {NUM_STEPS} --train.log_every_steps 10 --optim.peak_lr 1e-3
    --checkpoint.every_steps 250 --checkpoint.num_last 3 --checkpoint.num_best 1
    --eval.every_steps 500 --sample.every_steps 1000 --sample.num_tokens 8
    --data.num_read_threads 2 --data.num_prefetch_batches 2
""".split()
SLOW = ("-m", "launch.faults.run_with_fault", "slow_data", "0", str(NUM_STEPS), "--")
"""A batch takes a fifth of a second, and two are read at a time: 20,000 steps are half an hour."""


class Use(NamedTuple):
    """What a process holds."""

    at: float
    resident_bytes: int
    files: int
    threads: int


def use_of(process: int) -> Use:
    fields = stat_fields(process)
    resident = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    files = len(list(Path(f"/proc/{process}/fd").iterdir()))
    return Use(time.monotonic(), resident, files, int(fields[17]))


def soak(folder: Path, command: list[str]) -> Iterator[list[Use]]:
    """Yields what each process of the run has used, until one has finished."""
    kills, began = list(KILLED_AT), time.monotonic()
    while True:
        with (folder / "soak.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, *SLOW, *command],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
            )
        used = []
        while process.poll() is None:
            used.append(use_of(process.pid))
            if kills and time.monotonic() - began > kills[0]:
                kills.pop(0)
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(2)
        yield used
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 0, (folder / "soak.log").read_text()[-2000:]
            return


def grown(values: list[float]) -> float:
    """Returns by which part the last fifth of some values is above or below the first one."""
    fifth = max(len(values) // 5, 1)
    first, last = statistics.median(values[:fifth]), statistics.median(values[-fifth:])
    return last / first - 1


@pytest.mark.slow
def test_weeks_in_half_an_hour(tmp_path: Path):
    write_text(tmp_path)
    command = ["train", *tiny_run(*SETTINGS, "--run-dir", "soak")]
    run = RunFolder(tmp_path / "soak")
    processes = list(soak(tmp_path, command))
    assert len(processes) == len(KILLED_AT) + 1

    last = [use for use in processes[-1] if use.at > processes[-1][-1].at - LAST_SEC]
    report = {
        name: round(grown([getattr(use, name) for use in last]), 4)
        for name in ("resident_bytes", "files", "threads")
    }
    records = [r for step, r in read_metrics(run.metrics).items() if step > NUM_STEPS / 2]
    own = [record["step_sec"] - record["data_wait_sec"] for record in records]
    report["cost of a step"] = round(grown(own), 4)
    print(report, last[-1], f"{statistics.median(own) * 1e3:.2f} ms a step")  # to be read with -s

    code, output = finish(start(tmp_path, *command, "--run-dir", "undisturbed"))
    assert code == 0, output
    expected = read_metrics(tmp_path / "undisturbed" / "metrics.jsonl")
    found = read_metrics(run.metrics)
    assert list(found) == list(expected)
    for step, record in expected.items():
        for name in ("loss", "grad_norm", "eval/loss"):
            assert found[step].get(name) == record.get(name), (step, name)
    assert len(checkpoint_folders(run.checkpoints)) <= 3 + 1
    held = {name: part for name, part in report.items() if name != "cost of a step"}
    assert all(abs(part) <= ALLOWED for part in held.values()), held
