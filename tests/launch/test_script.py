"""The script `tessera`: which Python it takes, what it installs and when, and its exit code.

The checkout is a copy, pip and Python are stubs: nothing is installed.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import ROOT, wait_until
from parts import slowly

TOOLS = ("cat", "dirname", "mkdir", "mv", "rm", "rmdir", "sleep", "uname")
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
    names = ("requirements.txt", "requirements-test.txt", "constraints.txt", "pyproject.toml")
    for name in ("tessera", *names):
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


def test_the_version_is_printed_where_nothing_is_installed(checkout, bare):
    shutil.rmtree(checkout / ".venv")
    done = tessera(checkout, bare, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    name, version = done.stdout.split()
    assert (name, f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()) == (
        "tessera",
        True,
    )
    assert not (checkout / ".venv").exists()


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


SHORT_SLEEP = "#!/bin/sh\nexec {} 0.02\n"
OTHER_MACHINE = "#!/bin/sh\necho elsewhere\n"
ENDLESS_PIP = """#!/bin/sh
case "$*" in *pip*)
    trap 'echo ended >"$0.pip"; exit 1' TERM
    while :; do sleep 0.05; done
esac
"""
"""An installation that goes on until it is asked to stop, and notes that it was."""


def write_lock(checkout: Path, holder: str) -> Path:
    """Writes a lock as its holder does: "MACHINE PID"."""
    lock = checkout / ".venv.lock"
    lock.mkdir(exist_ok=True)
    (lock / "holder").write_text(f"{holder}\n")
    return lock


def machine() -> str:
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    return f"{os.uname().nodename}/{boot_id.read_text().strip() if boot_id.exists() else ''}"


@pytest.fixture
def start(checkout: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts the script in a process group of its own, of which nothing is left after the test."""
    started = []

    def start(environment: dict[str, str], *arguments: str) -> "subprocess.Popen[str]":
        started.append(
            subprocess.Popen(
                ["/bin/sh", str(checkout / "tessera"), *arguments],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def quick(with_python: dict[str, str]) -> dict[str, str]:
    """The same with a clock that runs fifty times as fast, as far as the script sees."""
    sleep = Path(with_python["PATH"]) / "sleep"
    real = sleep.resolve()
    sleep.unlink()
    write_program(sleep, SHORT_SLEEP.format(real))
    return with_python


def test_the_lock_of_a_dead_process_is_taken_over(checkout, with_python):
    dead = subprocess.Popen(["true"])
    dead.wait()
    write_lock(checkout, f"{machine()} {dead.pid}")
    assert tessera(checkout, with_python, "train").returncode == 7
    assert len(installs(checkout)) == 1
    assert not (checkout / ".venv.lock").exists()


def test_the_lock_of_a_living_process_is_waited_for(checkout, start, quick):
    lock = write_lock(checkout, f"{machine()} {os.getpid()}")
    waiting = start(quick, "train")
    time.sleep(3)  # more than a minute of its own
    assert waiting.poll() is None
    assert not installs(checkout)
    shutil.rmtree(lock)
    _, said = waiting.communicate(timeout=30)
    assert f"waiting for the set-up of process {os.getpid()} on {os.uname().nodename}" in said
    assert waiting.returncode == 7
    assert len(installs(checkout)) == 1


def test_a_lock_of_another_machine_is_waited_for_as_long_as_it_is_renewed(checkout, start, quick):
    """Its process is none of this machine."""
    lock = write_lock(checkout, "elsewhere/ 99999999")
    waiting = start(quick, "train")
    for count in range(60):
        (lock / "count").write_text(f"{count}\n")
        time.sleep(0.05)
    assert waiting.poll() is None
    assert not installs(checkout)
    _, said = waiting.communicate(timeout=30)  # it is renewed no more
    assert "process 99999999 on elsewhere" in said
    assert waiting.returncode == 7
    assert len(installs(checkout)) == 1
    assert not lock.exists()


def test_a_lock_that_another_machine_has_left_is_taken_over_though_a_process_here_has_its_number(
    checkout, quick
):
    write_lock(checkout, f"elsewhere/ {os.getpid()}")
    assert tessera(checkout, quick, "train").returncode == 7
    assert len(installs(checkout)) == 1


@pytest.mark.slow
def test_of_many_that_find_a_lock_abandoned_one_alone_installs(checkout, start, with_python):
    dead = subprocess.Popen(["true"])
    dead.wait()
    write_lock(checkout, f"{machine()} {dead.pid}")
    for process in [start(with_python, "train") for _ in range(8)]:
        process.communicate(timeout=60)
        assert process.returncode == 7
    assert len(installs(checkout)) == 1
    assert not (checkout / ".venv.lock").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, *slowly(signal.SIGTERM, signal.SIGINT)])
def test_a_set_up_on_another_machine_lives_as_long_as_its_script(
    checkout, start, quick, number: int
):
    """Two scripts, of which each takes the other for one of another machine."""
    python = write_program(checkout / ".venv" / "bin" / "python", ENDLESS_PIP)
    lock, other = checkout / ".venv.lock", checkout.with_name("other bin")
    shutil.copytree(quick["PATH"], other, symlinks=True)
    (other / "uname").unlink()
    write_program(other / "uname", OTHER_MACHINE)
    first = start({"PATH": str(other)}, "train")
    wait_until(lambda: (lock / "count").exists())
    second = start(quick, "train")
    time.sleep(3)
    assert second.poll() is None
    write_program(python.with_name("next"), STUB).replace(python)
    first.send_signal(number)
    first.wait(timeout=30)
    _, said = second.communicate(timeout=30)
    assert f"process {first.pid} on elsewhere" in said
    assert second.returncode == 7
    assert len(installs(checkout)) == 1
    if number != signal.SIGKILL:
        assert first.returncode == 75
        assert (checkout / ".venv" / "bin" / "python.pip").read_text() == "ended\n"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_it_shows_that_packages_are_being_installed(checkout, quick, is_terminal: bool):
    """Dots on a terminal, and a line each half minute of its own clock elsewhere."""
    python = write_program(checkout / ".venv" / "bin" / "python", ENDLESS_PIP)
    reading, writing = os.openpty() if is_terminal else os.pipe()
    process = subprocess.Popen(
        ["/bin/sh", str(checkout / "tessera"), "train"], env=quick, stderr=writing
    )
    os.close(writing)
    said = b""
    while (b"....." if is_terminal else b"still installing packages (60 s)") not in said:
        said += os.read(reading, 1000)
    write_program(python.with_name("next"), STUB).replace(python)
    process.terminate()
    assert process.wait(timeout=30) == 75
    assert (b"still" in said, b"..." in said) == (not is_terminal, is_terminal)
    os.close(reading)


def test_messages_offer_the_command_as_it_was_called(checkout, with_python):
    stub = STUB.replace("exit 7", 'echo "called as $TESSERA_COMMAND"; exit 7')
    write_program(checkout / ".venv" / "bin" / "python", stub)
    assert f"called as {checkout}/tessera\n" in tessera(checkout, with_python, "train").stdout


def test_nothing_of_the_script_is_left_when_it_was_killed(checkout, start, quick):
    write_program(checkout / ".venv" / "bin" / "python", ENDLESS_PIP)
    first = start(quick, "train")
    wait_until(lambda: (checkout / ".venv.lock" / "count").exists())
    first.kill()
    first.wait()
    script = str(checkout / "tessera")
    wait_until(lambda: not any(script in line for line in command_lines(first.pid)))


def command_lines(group: int) -> list[str]:
    """Returns the command lines of the processes of a group."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getpgid(int(path.name)) == group:
                found.append((path / "cmdline").read_text().replace("\0", " "))
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_it_waits_for_another_set_up_ends_it_with_75(
    checkout, start, quick, number: int
):
    lock = write_lock(checkout, f"{machine()} {os.getpid()}")
    waiting = start(quick, "train")
    assert waiting.stderr is not None
    assert "waiting for the set-up" in waiting.stderr.readline()
    waiting.send_signal(number)
    waiting.communicate(timeout=30)
    assert waiting.returncode == 75
    assert lock.exists()


def test_a_signal_in_the_first_moment_ends_it_with_75(checkout, start, with_python):
    dirname = Path(with_python["PATH"]) / "dirname"
    real = dirname.resolve()
    dirname.unlink()
    signals = 'read -r pid name state parent group rest </proc/$$/stat; kill -TERM "$group"'
    write_program(dirname, f'#!/bin/sh\n{signals}\nexec {real} "$@"\n')
    starting = start(with_python, "train")
    starting.communicate(timeout=30)
    assert starting.returncode == 75
    assert not asked(checkout)
