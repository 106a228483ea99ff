"""`./tessera chaos`: what it says of real faults, and that it sees a promise that is not kept."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_runs import ROOT, call

from launch.chaos import faults

FEW = (
    *("frozen", "data never comes", "byte flipped", "disk full", "clock set back"),
    *("NaN in a gradient", "spike", "bit flipped in a device"),
)
"""One of each kind; the others run in the proof."""


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


def test_a_fault_of_each_kind_ends_as_promised(tmp_path):
    said = chaos(tmp_path, "--times", "1", "--only", *FEW)
    assert said["ok"]
    rows = {row["fault"]: row for row in said["rows"]}
    assert len(rows) == len(FEW)
    for row in rows.values():
        assert row["missing"] or (row["tried"], row["kept"], row["broken"]) == (1, 1, [])
    assert rows["frozen, one of two"]["exact"] == 1
    assert rows["spike"]["exact"] is None
    assert rows["byte flipped"]["steps_lost"]
    assert not list((tmp_path / "runs").glob("chaos-*"))


@pytest.mark.slow
def test_a_hundred_kills_and_twenty_of_each_other_fault_end_as_promised(tmp_path):
    said = chaos(tmp_path, "--times", "100")
    rows = {row["fault"]: row for row in said["rows"]}
    assert said["ok"]
    assert rows["SIGKILL as it starts"]["exact"] >= 10
    assert rows["SIGKILL in a save"]["exact"] >= 20
    kills = [row["exact"] for name, row in rows.items() if name.startswith("SIGKILL ")]
    assert sum(kills) == 100
    for name in ("SIGTERM, one of two", "SIGKILL, one of two", "frozen, one of two"):
        assert rows[name]["exact"] == 20


def test_a_promise_that_is_not_kept_is_told_and_ends_with_1(tmp_path):
    """A run that may not go back ends where the table promises that it goes on."""
    budget = ("--", "--guard.max_rollbacks", "0")
    said = chaos(tmp_path, "--times", "1", "--only", "spike", *budget, code=1)
    assert not said["ok"]
    (row,) = said["rows"]
    assert (row["tried"], row["kept"]) == (1, 0)
    assert "exit code 76" in row["broken"][0]
    (kept,) = (tmp_path / "runs").glob("chaos-*")
    assert (kept / "spike-0" / "events.jsonl").exists()


def test_every_fault_says_what_it_promises():
    for fault in faults(refused_sec=1):
        assert fault.promise.endswith("."), fault.name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("quickstar", ("quickstar", "did you mean quickstart?")),
        ("quickstart --times 0", ("--times=0", "at least 1")),
        ("quickstart --only flood", ("--only=flood", "disk full")),
        ("quickstart --work_dir full", ("--work_dir=full", "empty")),
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
