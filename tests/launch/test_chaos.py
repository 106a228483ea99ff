"""`./tessera chaos`: its results for real faults, and for a promise that is not kept."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, call, wait_until
from parts import slowly

from launch.commands.chaos import FAULTS

QUICK = "spike"
"""The others run in the proof."""


def chaos(folder: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    """Returns the object that the command ends with."""
    ended = subprocess.run(
        [sys.executable, "-m", "launch", "chaos", "quickstart", "--json", *arguments],
        cwd=folder,
        env=None,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == code, ended.stdout + ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.fixture(autouse=True)
def found_from_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_a_fault_ends_as_promised(tmp_path):
    said = chaos(tmp_path, "--times", "1", "--only", QUICK)
    assert said["ok"]
    (row,) = said["rows"]
    assert (row["tried"], row["kept"], row["broken"]) == (1, 1, [])
    assert row["exact"] is None
    assert not list((tmp_path / "runs").glob("chaos-*"))


@pytest.mark.slow
def test_a_hundred_kills_and_twenty_of_each_other_fault_end_as_promised(tmp_path):
    said = chaos(tmp_path, "--times", "100")
    rows = {row["fault"]: row for row in said["rows"]}
    assert said["ok"]
    assert rows["spike"]["exact"] is None
    assert rows["byte flipped"]["steps_lost"]
    assert rows["SIGKILL at the start"]["exact"] >= 10
    assert rows["SIGKILL in a save"]["exact"] >= 20
    kills = [row["exact"] for name, row in rows.items() if name.startswith("SIGKILL ")]
    assert sum(kills) == 100
    for name in ("SIGTERM, one of two", "SIGKILL, one of two", "frozen, one of two"):
        assert rows[name]["exact"] == 20
    assert not list((tmp_path / "runs").glob("chaos-*"))


def test_a_promise_that_is_not_kept_is_shown_and_ends_with_1(tmp_path):
    """A run that may not roll back diverges although the table promises that it recovers."""
    budget = ("--", "--guard.max_rollbacks", "0")
    said = chaos(tmp_path, "--times", "1", "--only", "spike", *budget, code=1)
    assert not said["ok"]
    (row,) = said["rows"]
    assert (row["tried"], row["kept"]) == (1, 0)
    assert "exit code 76" in row["broken"][0]
    (kept,) = (tmp_path / "runs").glob("chaos-*")
    assert (kept / "spike-0" / "events.jsonl").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, *slowly(signal.SIGTERM)])
def test_a_signal_stops_all_trials_at_once_and_leaves_nothing_running(tmp_path, number: int):
    tries = ("--times", "10", "--only", "SIGKILL at the start", "SIGKILL, supervised", "frozen")
    process = subprocess.Popen(
        [sys.executable, "-m", "launch", "chaos", "quickstart", "--json", "--jobs", "3", *tries],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_until(lambda: len(list(trials_in(tmp_path))) > 3, process)
        os.killpg(process.pid, number)
        printed, said = process.communicate(timeout=60)
        assert process.returncode == 75, printed + said
        assert list(trials_in(tmp_path)) == []
    finally:
        process.kill()
        for pid in trials_in(tmp_path):
            os.kill(pid, signal.SIGKILL)
    assert "stopped by a signal before all 5 tries were done" in said
    assert "not as promised" not in said
    told = json.loads(printed.splitlines()[-1])
    assert told["stopped"]
    assert not told["ok"]
    assert sum(row["tried"] for row in told["rows"]) < 5
    assert not list((tmp_path / "runs").iterdir())


def trials_in(folder: Path) -> Iterator[int]:
    """Yields the processes of all trials below a folder."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_trial = b"\0TESSERA_TRIAL=" in b"\0" + (path / "environ").read_bytes()
            if is_trial and (path / "cwd").resolve().is_relative_to(folder):
                yield int(path.name)


def test_every_fault_says_what_it_promises():
    for fault in FAULTS:
        assert fault.promise.endswith("."), fault.name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("quickstar", ("quickstar", "did you mean quickstart?")),
        ("quickstart --times 0", ("--times=0", "at least 1")),
        ("quickstart --only flood", ("--only=flood", "disk full")),
        ("quickstart --work_dir full", ("--work-dir=full", "empty")),
    ],
)
def test_what_cannot_be_tried_is_refused(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    code, output = call("chaos", *arguments.split())
    assert code == 2
    for part in said:
        assert part in output
