"""Terminals that are not of UTF-8: every command shows what it can, and an escape for the rest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT
from small_runs import tiny_run

TEXT = "ein Schaf überquert die Brücke → 漢字 🙂\n"
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
LATIN = {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}


def run_on(terminal: dict[str, str], folder: Path, *arguments: str) -> bytes:
    """Returns what a command prints on a terminal, where it must end well."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONIOENCODING"}
    done = subprocess.run(
        [sys.executable, "-m", "launch", *arguments],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), **terminal},
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in a folder with a name of its own, trained where there is nothing but ASCII."""
    folder = tmp_path_factory.mktemp("terminal")
    (folder / "text.txt").write_text(TEXT * 200, encoding="utf-8")
    more = ("--train.num_steps", "2", "--sample.num_tokens", "40", "--sample.temperature", "9")
    run_on(ASCII, folder, "train", *tiny_run(*more))
    (sample,) = (folder / "runs/quickstart-text/samples").iterdir()
    assert not sample.read_text(encoding="utf-8").isascii()
    assert "\ufffd" in (folder / "runs/quickstart-text/logs/process-0.log").read_text("utf-8")
    return (folder / "runs/quickstart-text").rename(folder / "läuft→")


@pytest.mark.parametrize(
    "command",
    [
        "inspect RUN --step 1",
        "status RUN",
        "report RUN",
        "generate RUN --prompt ü→漢 --num_tokens 2",
    ],
)
def test_a_command_prints_on_a_latin_1_terminal(run: Path, command: str):
    words = [run.name if word == "RUN" else word for word in command.split()]
    said = run_on(LATIN, run.parent, *words).decode("latin-1")
    assert "\\u2192" in said  # of →, in the text or in the name of the run
    assert "ü" in said or "ä" in said
