"""The script `tessera`: which Python it takes, what it installs and when, and its exit code.

The checkout is a copy, pip and Python are stubs: nothing is installed.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("cat", "dirname", "mkdir", "mv", "rm", "sleep")
STUB = """#!/bin/sh
# Stands for the Python of .venv: it writes down what it was asked, and `launch` exits with 7.
echo "$PWD: $*" >>"$(dirname "$0")/asked"
case "$*" in *"-m launch"*) exit 7 ;; esac
"""
NEW_PYTHON = '#!/bin/sh\nif [ "$1" = --version ]; then echo "Python 3.12.0"; fi\n'
OLD_PYTHON = "#!/bin/sh\nexit 1\n"


def write_program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the script, its requirements, and a .venv that nothing was installed into."""
    checkout = tmp_path / "check out"
    checkout.mkdir()
    for name in ("tessera", "requirements.txt", "requirements-test.txt", "constraints.txt"):
        shutil.copy(ROOT / name, checkout / name)
    write_program(checkout / ".venv" / "bin" / "python", STUB)
    return checkout


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment whose PATH has the few tools that the script needs, and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        path = shutil.which(tool)
        assert path
        (folder / tool).symlink_to(path)
    return {"PATH": str(folder)}


@pytest.fixture
def with_python(bare: dict[str, str]) -> dict[str, str]:
    """The same with a Python that is new enough."""
    write_program(Path(bare["PATH"]) / "python3", NEW_PYTHON)
    return bare


def tessera(
    checkout: Path, environment: dict[str, str], *arguments: str, cwd: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["/bin/sh", str(checkout / "tessera"), *arguments],
        env=environment,
        cwd=cwd or checkout,
        capture_output=True,
        text=True,
        timeout=60,
    )


def asked(checkout: Path) -> list[str]:
    """Returns what the Python of .venv was asked so far, a line each."""
    path = checkout / ".venv" / "bin" / "asked"
    return path.read_text().splitlines() if path.exists() else []


def installs(checkout: Path) -> list[str]:
    return [line for line in asked(checkout) if "-m pip install" in line]


def test_the_script_is_posix_shell_and_executable():
    assert subprocess.run(["sh", "-n", str(ROOT / "tessera")]).returncode == 0
    assert os.access(ROOT / "tessera", os.X_OK)


def test_the_script_runs_the_commands_of_the_checkout(environment, tmp_path: Path):
    done = tessera(ROOT, environment, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage: ./tessera COMMAND" in done.stdout


def test_a_given_python_is_used_and_nothing_is_installed(checkout, bare, tmp_path: Path):
    shutil.rmtree(checkout / ".venv")
    python = write_program(tmp_path / "my python", STUB)
    done = tessera(checkout, {**bare, "TESSERA_PYTHON": str(python)}, "status", "a run")
    assert done.returncode == 7, done.stderr
    assert (tmp_path / "asked").read_text() == f"{checkout}: -P -m launch status a run\n"
    assert not (checkout / ".venv").exists()
    assert not (checkout / ".venv.lock").exists()


def test_called_from_another_folder_it_stays_in_that_folder(checkout, with_python, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = tessera(checkout, with_python, "status", "run", cwd=elsewhere)
    assert done.returncode == 7, done.stderr
    assert asked(checkout)[-1] == f"{elsewhere}: -P -m launch status run"
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("old", [False, True])
def test_without_a_new_enough_python_it_says_what_to_do(checkout, bare, old: bool):
    if old:
        write_program(Path(bare["PATH"]) / "python3", OLD_PYTHON)
    shutil.rmtree(checkout / ".venv")
    done = tessera(checkout, bare, "train", "quickstart")
    assert done.returncode == 2
    assert "3.11" in done.stderr
    assert "TESSERA_PYTHON" in done.stderr
    assert len(done.stderr.splitlines()) < 12
    assert not (checkout / ".venv").exists()
    assert not (checkout / ".venv.lock").exists()


def test_it_installs_once_and_passes_the_exit_code_on(checkout, with_python):
    for _ in range(2):
        assert tessera(checkout, with_python, "train", "quickstart").returncode == 7
    (line,) = installs(checkout)
    assert str(checkout / "requirements.txt") in line
    assert str(checkout / "constraints.txt") in line
    assert "requirements-test.txt" not in line
    assert [line for line in asked(checkout) if "launch" in line] == [
        f"{checkout}: -P -m launch train quickstart"
    ] * 2


def test_the_tests_install_their_extras_which_serve_every_command(checkout, with_python):
    for command in ("test", "train", "test"):
        assert tessera(checkout, with_python, command).returncode == 7
    (line,) = installs(checkout)
    assert str(checkout / "requirements-test.txt") in line


@pytest.mark.parametrize("name", ["requirements.txt", "constraints.txt"])
def test_other_requirements_are_installed_anew(checkout, with_python, name: str):
    tessera(checkout, with_python, "train")
    with (checkout / name).open("a") as file:
        file.write("# another\n")
    for _ in range(2):
        assert tessera(checkout, with_python, "train").returncode == 7
    assert len(installs(checkout)) == 2


def test_an_installation_that_failed_is_tried_again(checkout, with_python):
    python = checkout / ".venv" / "bin" / "python"
    write_program(python, STUB.replace("case", 'case "$*" in *pip*) exit 1 ;; esac\ncase'))
    done = tessera(checkout, with_python, "train")
    assert done.returncode == 2
    assert not (checkout / ".venv.lock").exists()
    write_program(python, STUB)
    assert tessera(checkout, with_python, "train").returncode == 7
    assert len(installs(checkout)) == 2


def test_the_lock_of_a_dead_process_is_taken_over(checkout, with_python):
    dead = subprocess.Popen(["true"])
    dead.wait()
    (checkout / ".venv.lock").mkdir()
    (checkout / ".venv.lock" / "pid").write_text(f"{dead.pid}\n")
    assert tessera(checkout, with_python, "train").returncode == 7
    assert len(installs(checkout)) == 1
    assert not (checkout / ".venv.lock").exists()


def test_the_lock_of_a_living_process_is_waited_for(checkout, with_python):
    lock = checkout / ".venv.lock"
    lock.mkdir()
    (lock / "pid").write_text(f"{os.getpid()}\n")
    waiting = subprocess.Popen(
        ["/bin/sh", str(checkout / "tessera"), "train"], env=with_python, stderr=subprocess.PIPE
    )
    time.sleep(0.5)
    assert waiting.poll() is None
    assert not installs(checkout)
    shutil.rmtree(lock)
    waiting.communicate(timeout=30)
    assert waiting.returncode == 7
    assert len(installs(checkout)) == 1
