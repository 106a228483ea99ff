"""What a running run can be asked from outside: to save, to stop at once, to stop within a notice.

Real processes, real signals, and a real process that holds another one up.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import ROOT, finish, start, wait_until
from parts import slowly
from small_processes import finish_all, free_port, small_run
from small_runs import RUN, content_of, has_reached, tiny_run, write_text

from launch.faults.disks import needs_unshare
from train.checkpoints.folders import checkpoint_steps
from train.record.run_folder import RunFolder, read_metrics

QUIET = ("--eval.every_steps", "None", "--sample.every_steps", "None")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Where a run will be that is started in tmp_path."""
    write_text(tmp_path)
    return RunFolder(tmp_path / RUN)


def start_with(folder: Path, fault: str, *arguments: str) -> "subprocess.Popen[str]":
    """Starts `train` in a folder with something wrong in it."""
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "launch.faults.run_with_fault",
            *fault.split(),
            "--",
            "train",
            *arguments,
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def events(run: RunFolder, name: str) -> list[dict]:
    return [event for event in run.read_events() if event["event"] == name]


def test_a_run_that_is_asked_to_save_saves_and_goes_on(tmp_path, run):
    process = start(tmp_path, "train", *tiny_run(*QUIET, "--checkpoint.every_steps", "50"))
    wait_until(lambda: has_reached(run.path, 7), process)
    process.send_signal(signal.SIGUSR1)
    code, output = finish(process)
    assert code == 0, output
    asked, *others = [event["step"] for event in events(run, "saved")]
    assert 7 <= asked < 50
    assert others == [50, 60]


@pytest.mark.slow
def test_a_wish_to_save_that_comes_too_early_ends_nothing(tmp_path, run):
    process = start(tmp_path, "train", *tiny_run(*QUIET, "--train.num_steps", "3"))
    wait_until(lambda: b"launch" in Path(f"/proc/{process.pid}/cmdline").read_bytes(), process)
    wait_until(lambda: (run.path / ".lock").exists(), process)
    process.send_signal(signal.SIGUSR1)
    code, output = finish(process)
    assert code == 0, output


def test_a_second_interrupt_ends_a_run_at_once(tmp_path, run):
    """The first one is waiting for a batch that does not come."""
    process = start_with(tmp_path, "stalled_data 12 12", *tiny_run(*QUIET))
    wait_until(lambda: checkpoint_steps(run.checkpoints) == [5, 10], process)
    time.sleep(1)  # for the two batches that are left
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)  # a second one within a second is the first, sent twice
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 128 + signal.SIGINT
    assert checkpoint_steps(run.checkpoints) == [5, 10]
    output = process.communicate()[0]
    assert "SIGINT: saving the state after this step" in output
    assert "ended by a second Ctrl-C, without a save" in output


@pytest.mark.slow
def test_one_interrupt_that_comes_twice_is_one(tmp_path, run):
    """A terminal and a launcher may both send it."""
    process = start(tmp_path, "train", *tiny_run(*QUIET, "--checkpoint.every_steps", "50"))
    wait_until(lambda: has_reached(run.path, 7), process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    code, output = finish(process)
    assert code == 75, output
    assert "SIGINT: saving the state after this step" in output
    assert checkpoint_steps(run.checkpoints) == [events(run, "stopped")[0]["step"]]


@pytest.mark.parametrize("number", [signal.SIGTERM, *slowly(signal.SIGINT)])
def test_a_run_that_is_stopped_before_it_has_begun_says_so(tmp_path, run, number: signal.Signals):
    """While its modules are imported, which takes seconds."""
    process = start(tmp_path, "train", *tiny_run(*QUIET))
    wait_until(lambda: b"jax" in Path(f"/proc/{process.pid}/maps").read_bytes(), process)
    process.send_signal(number)
    code, output = finish(process)
    assert code == 75, output
    assert f"stopped by {number.name} before there was anything to save" in output
    assert not checkpoint_steps(run.checkpoints)


def test_a_notice_that_is_too_short_to_save_leaves_the_newest_whole_checkpoint(tmp_path, run):
    command = tiny_run(*QUIET, "--checkpoint.notice_sec", "0.001")
    process = start(tmp_path, "train", *command)
    wait_until(lambda: has_reached(run.path, 12), process)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 75, output
    (stopped,) = events(run, "stopped")
    assert stopped["saved"] is False
    newest = checkpoint_steps(run.checkpoints)[-1]
    assert stopped["step"] == newest
    assert "checkpoint.notice_sec=0.001" in output
    assert f"step {newest}" in output
    code, output = finish(start(tmp_path, "train", *command))
    assert code == 0, output
    assert events(run, "resumed")[0]["step"] == newest
    assert not list(run.checkpoints.glob("*.saving"))


@pytest.mark.slow
def test_a_notice_that_is_long_enough_saves(tmp_path, run):
    process = start(tmp_path, "train", *tiny_run(*QUIET, "--checkpoint.notice_sec", "60"))
    wait_until(lambda: has_reached(run.path, 12), process)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 75, output
    (stopped,) = events(run, "stopped")
    assert "saved" not in stopped
    assert checkpoint_steps(run.checkpoints)[-1] == stopped["step"]


@pytest.mark.slow
def test_the_process_that_holds_the_others_up_is_named(tmp_path):
    write_text(tmp_path)
    job = f"--coordinator localhost:{free_port()} --num-processes 2 --virtual-devices 1".split()
    first, second = (small_run(*job, "--process-id", str(i)) for i in range(2))
    ended = finish_all(
        {
            0: start(tmp_path, "train", *first),
            1: start_with(tmp_path, "slow_data 0 99", *second),
        }
    )
    assert {code for code, _ in ended.values()} == {0}, ended
    named = events(RunFolder(tmp_path / "run"), "slow_process")
    # A machine that is busy elsewhere may hold up the other one too, for a moment.
    assert 1 in {event["process"] for event in named if "for its data" in event["cause"]}
    assert "process 1 slows down the others" in ended[0][1]


@pytest.mark.slow
def test_every_second_of_a_run_that_was_killed_twice_is_accounted_for(tmp_path, run):
    command = tiny_run("--checkpoint.every_steps", "20")
    for step in (12, 30):
        process = start_with(tmp_path, "slow_data 0 99", *command)
        wait_until(lambda step=step: has_reached(run.path, step), process)
        written_at = run.ledger.stat().st_mtime_ns  # what a kill leaves is what was written last
        wait_until(lambda at=written_at: run.ledger.stat().st_mtime_ns > at, process)
        process.kill()
        process.communicate()
    code, output = finish(start(tmp_path, "train", *command))
    assert code == 0, output
    said = json.loads(run.ledger.read_text())
    life_sec = said["beat"] - said["first_start"]
    assert sum(said["seconds"].values()) == pytest.approx(life_sec, abs=0.5)
    for kind in ("set_up", "compile", "step", "save_stall", "evaluation", "lost_work", "down_time"):
        assert said["seconds"][kind] > 0, (kind, said["seconds"], run.read_events())
    times = [event["time"] for event in run.read_events()]
    assert len(times) > 3
    last = read_metrics(run.metrics)[60]
    assert 0 < last["goodput/fraction"] < 1
    total = sum(v for k, v in last.items() if k.startswith("goodput/") and k.endswith("_sec"))
    assert life_sec / 2 < total < life_sec + 0.5  # what comes after the last step is not in it


UNWRITABLE = """
import os, subprocess, sys
os.mkdir("run")
subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", "run"], check=True)
sys.exit(subprocess.run([sys.executable, "-m", "launch", *sys.argv[1:]]).returncode)
"""


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    if missing := needs_unshare():
        pytest.skip(missing)
    write_text(tmp_path)
    ended = subprocess.run(
        ["unshare", "-Urm", sys.executable, "-c", UNWRITABLE, "train", *tiny_run("--run-dir=run")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2, ended.stderr
    said = ended.stdout + ended.stderr
    for part in ("--run-dir run", "Read-only file system", "another --run-dir"):
        assert part in said
    assert content_of(tmp_path / "run") == {}
