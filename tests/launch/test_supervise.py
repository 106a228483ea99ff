"""The supervisor: it restarts what can resume, gives up on the rest, and leaves no process behind.

Its commands are small scripts, which play a part at each of their starts.
"""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, wait_until
from parts import slowly

from launch.supervise import RestartPolicy, supervise
from train.record.run_folder import RunFolder
from train.record.time_ledger import stat_fields

CHILD = """
import os, signal, subprocess, sys, time
from pathlib import Path

from launch.supervisor_pipe import start_heartbeat

number = len(list(Path().glob("started-*")))
Path(f"started-{number}").write_text(str(os.getpid()))

def write_checkpoint(step):
    folder = Path(f"run/checkpoints/{step}")
    folder.mkdir(parents=True)
    (folder / "manifest.json").touch()

def end(code):
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)

def note_signals():
    def note(number, frame):
        with open("signals", "a") as file:
            file.write(signal.Signals(number).name + "\\n")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, note)

def wait_for(name):
    while name not in (Path("signals").read_text() if Path("signals").exists() else ""):
        time.sleep(0.01)

def be_ready():
    Path("ready").touch()

"""
WORKER = "[sys.executable, '-S', '-c', 'import time; time.sleep(100)']"
SUPERVISOR = """
import sys
from pathlib import Path

from launch.supervise import RestartPolicy, supervise
from train.record.run_folder import RunFolder

policy = RestartPolicy(wait_sec=float(sys.argv[2]))
sys.exit(supervise([sys.executable, "-c", sys.argv[1]], RunFolder(Path("run")), policy))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which has a run folder where a run has begun."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    return tmp_path


def play(part: str, **policy: Any) -> int:
    """Returns the exit code of the supervisor of a script, which starts again without delay."""
    command = [sys.executable, "-c", CHILD + part]
    return supervise(command, RunFolder(Path("run")), RestartPolicy(**{"wait_sec": 0, **policy}))


def play_codes(*codes: int, **policy: Any) -> int:
    """Returns the exit code of the supervisor of a script that ends with one code after another.

    A new checkpoint is written before a code above 1000, of which it is taken away.
    """
    part = f"""
code = {codes}[number]
if code > 1000:
    write_checkpoint(number)
    code -= 1000
end(code)
"""
    return play(part, **policy)


def restarts(key: str = "exit_code") -> list[Any]:
    """Returns what the events say of each restart."""
    return [event[key] for event in RunFolder(Path("run")).read_events()]


def num_starts() -> int:
    return len(list(Path().glob("started-*")))


@contextlib.contextmanager
def supervisor(part: str, wait_sec: float = 0) -> "Iterator[subprocess.Popen[str]]":
    """A supervisor of a script, as a process of its own and the leader of its group."""
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, CHILD + part, str(wait_sec)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_pid(name: str) -> int:
    return int(Path(name).read_text())


def is_alive(pid: int) -> bool:
    """Says whether a process is there and has not ended."""
    try:
        return stat_fields(pid)[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("code", [75, 124, 70, 134, 137, -signal.SIGKILL, -signal.SIGSEGV])
def test_what_ended_from_outside_is_started_again(code: int):
    assert play_codes(code, 0) == 0
    assert num_starts() == 2
    assert restarts() == [code if code > 0 else 128 - code]


@pytest.mark.parametrize("code", [0, 1, 2, 65, 71, 76, 141])
def test_what_a_restart_would_not_mend_is_final(code: int):
    assert play_codes(code, 0) == code
    assert num_starts() == 1
    assert restarts() == []


def test_an_error_of_ours_is_tried_once_more_and_again_after_a_new_checkpoint():
    assert play_codes(70, 75, 1070, 70, 0) == 70
    assert restarts() == [70, 75, 70]


def test_restarts_without_a_new_checkpoint_are_within_the_budget(capfd: pytest.CaptureFixture):
    assert play_codes(75, 134, -signal.SIGKILL, 0, max_restarts=2) == 137
    assert restarts() == [75, 134]
    said = capfd.readouterr().err.splitlines()
    assert said[0] == "tessera: the run ended with exit code 75; restart 1 of 2 in 0 s"
    assert "exit code 134; restart 2 of 2" in said[1]
    assert "exit code 137" in said[2]
    assert "2 restarts without a new checkpoint" in said[2]


@pytest.mark.parametrize("left", ["a line\n", "half a line", "", "x", "x" * 40, "x" * 39])
def test_on_a_terminal_it_begins_a_line_of_its_own_where_it_must(left: str):
    """The bar of a killed run ends without a line's end."""
    part = f"sys.stdout.write({left!r}); sys.stdout.flush(); end(-9 if number == 0 else 0)"
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 40))
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, CHILD + part, "0"], stdout=slave, stderr=slave
    )
    os.close(slave)
    printed = b""
    with contextlib.suppress(OSError):  # how a terminal says that all have closed it
        while piece := os.read(master, 4096):
            printed += piece
    os.close(master)
    assert process.wait(timeout=20) == 0
    assert b"\x1b[?25h" in printed
    said = "tessera: the run ended with exit code 137; restart 1 of 10 in 0 s"
    rows = [row.rstrip() for row in screen(printed.decode(), columns=40)]
    own = [left.strip()] if left else []
    assert rows[: len(own) + 2] == [*own, said[:40].rstrip(), said[40:]]


def screen(text: str, columns: int) -> list[str]:
    """Returns the rows that a terminal shows: a full one wraps only before its next character."""
    rows, column = [""], 0
    for char in re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", text):
        if char == "\r":
            column = 0
        elif char == "\n":
            rows.append("")
        else:
            if column == columns:
                rows.append("")
                column = 0
            row = rows[-1].ljust(column)
            rows[-1], column = row[:column] + char + row[column + 1 :], column + 1
    return rows


def test_a_new_checkpoint_gives_the_budget_back():
    assert play_codes(75, 1075, 1075, 75, 0, max_restarts=1) == 75
    assert restarts("restarts") == [1, 1, 1]


def test_a_checkpoint_older_than_one_there_was_gives_nothing_back():
    part = """
import shutil
shutil.rmtree("run/checkpoints", ignore_errors=True)
write_checkpoint((10, 5, 8)[number])  # as after a rollback
end(75)
"""
    assert play(part, max_restarts=2) == 75
    assert restarts("restarts") == [1, 2]


def test_the_wait_doubles_up_to_a_limit_until_there_is_a_new_checkpoint():
    codes = (75, 75, 75, 75, 1075, 75, 0)
    assert play_codes(*codes, wait_sec=0.01, max_wait_sec=0.05) == 0
    assert restarts("wait_sec") == [0.01, 0.02, 0.04, 0.05, 0.01, 0.02]


def test_no_restart_is_noted_before_there_is_a_run():
    Path("run/config.json").unlink()
    assert play_codes(75, 0) == 0
    assert list(Path("run").iterdir()) == []


def test_a_frozen_run_is_killed_with_its_workers_and_counts_as_hung(
    capfd: pytest.CaptureFixture,
):
    part = f"""
if number == 1:
    end(0)
time.sleep(2.2)  # longer than the limit that holds once there was a sign of life
Path("worker").write_text(str(subprocess.Popen({WORKER}).pid))
start_heartbeat()
time.sleep(0.5)
os.kill(os.getpid(), signal.SIGSTOP)
"""
    assert play(part, frozen_limit_sec=2) == 0
    assert restarts() == [124]
    assert "sent no heartbeat for 2 s" in capfd.readouterr().err
    assert not is_alive(read_pid("started-0"))
    wait_until(lambda: not is_alive(read_pid("worker")), within_sec=5)


def test_a_run_frozen_before_its_first_sign_of_life_is_killed():
    part = "os.kill(os.getpid(), signal.SIGSTOP) if number == 0 else end(0)"
    assert play(part, start_limit_sec=1) == 0
    assert restarts() == [124]


def test_a_run_that_gives_signs_of_life_may_take_as_long_as_it_likes():
    assert play("start_heartbeat(); time.sleep(2.5); end(0)", frozen_limit_sec=2) == 0
    assert num_starts() == 1


def test_no_worker_of_a_run_is_left_when_it_has_ended():
    assert play(f"Path('worker').write_text(str(subprocess.Popen({WORKER}).pid)); end(0)") == 0
    wait_until(lambda: not is_alive(read_pid("worker")), within_sec=5)


def test_the_processes_of_a_run_do_not_inherit_its_heartbeat():
    part = """
descriptor = os.environ["TESSERA_HEARTBEAT_FD"]
os.fstat(int(descriptor))
start_heartbeat()
code = f"import os; assert 'TESSERA_HEARTBEAT_FD' not in os.environ; os.fstat({descriptor})"
made = subprocess.run([sys.executable, "-c", code], close_fds=False, stderr=subprocess.PIPE)
end(0 if b"Bad file descriptor" in made.stderr else 1)
"""
    assert play(part) == 0


NOTES_ALL = """
note_signals()
start_heartbeat()
be_ready()
wait_for("{}")
time.sleep(0.2)  # for a second one that should not come
end({})
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("whole_group", [True, False])
def test_a_signal_comes_to_the_run_once_and_ends_both(number: signal.Signals, whole_group: bool):
    with supervisor(NOTES_ALL.format(number.name, 75)) as process:
        wait_until(Path("ready").exists)
        (os.killpg if whole_group else os.kill)(process.pid, number)
        assert process.wait(timeout=20) == 75
    assert Path("signals").read_text().split() == [number.name]
    assert num_starts() == 1
    assert not is_alive(read_pid("started-0"))


def test_after_a_signal_whatever_the_run_ends_with_is_final():
    with supervisor(NOTES_ALL.format("SIGTERM", 134)) as process:
        wait_until(Path("ready").exists)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 134
    assert num_starts() == 1


def test_a_second_interrupt_reaches_the_run_too_and_a_wish_to_save_ends_nothing():
    with supervisor(NOTES_ALL.format("SIGINT\\nSIGINT", 75)) as process:
        wait_until(Path("ready").exists)
        process.send_signal(signal.SIGUSR1)
        wait_until(Path("signals").exists)
        process.send_signal(signal.SIGINT)
        wait_until(lambda: "SIGINT" in Path("signals").read_text())
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 75
    assert Path("signals").read_text().split() == ["SIGUSR1", "SIGINT", "SIGINT"]


def test_a_run_that_does_not_handle_signals_yet_is_stopped_by_one():
    with supervisor("signal.signal(2, signal.SIG_DFL); be_ready(); time.sleep(60)") as process:
        wait_until(Path("ready").exists)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 75
    assert num_starts() == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_for_a_restart_at_once(number: signal.Signals):
    with supervisor("end(134)", wait_sec=60) as process:
        assert process.stdout is not None
        assert "restart 1 of 10 in 60 s" in process.stdout.readline()
        process.send_signal(number)
        assert process.wait(timeout=20) == 75
    assert num_starts() == 1
    assert restarts() == []


@pytest.mark.parametrize("is_stubborn", [False, *slowly(True)])
def test_no_process_of_a_run_outlives_a_killed_supervisor_by_more_than_ten_seconds(
    is_stubborn: bool,
):
    handle = "note_signals()" if is_stubborn else "signal.signal(15, lambda *_: end(75))"
    part = f"""
{handle}
worker = subprocess.Popen({WORKER}) if {is_stubborn} else None
Path("worker").write_text(str(worker.pid if worker else os.getpid()))
start_heartbeat()
be_ready()
while True:
    time.sleep(1)
"""
    with supervisor(part) as process:
        wait_until(Path("ready").exists)
        process.kill()
        process.wait()
        pids = [read_pid("started-0"), read_pid("worker")]
        wait_until(lambda: not any(map(is_alive, pids)), within_sec=10)
    if is_stubborn:
        assert Path("signals").read_text().split() == ["SIGTERM"]


def test_a_run_whose_supervisor_was_killed_before_its_first_sign_of_life_ends_too():
    part = """
parent = os.getppid()
be_ready()
while os.getppid() == parent:
    time.sleep(0.01)
start_heartbeat()
time.sleep(60)
"""
    with supervisor(part) as process:
        wait_until(Path("ready").exists)
        process.kill()
        wait_until(lambda: not is_alive(read_pid("started-0")), within_sec=10)


def test_a_heartbeat_without_a_supervisor_is_nothing():
    code = (
        "import threading; from launch.supervisor_pipe import start_heartbeat; start_heartbeat(); "
        "print(threading.active_count())"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout == "1\n"


def test_signals_are_as_before_when_the_supervisor_has_returned():
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD)
    before = [signal.getsignal(number) for number in numbers]
    assert play_codes(0) == 0
    assert [signal.getsignal(number) for number in numbers] == before


def test_the_supervisor_does_without_jax():
    code = "import sys, launch.supervise; assert not {'jax', 'flax', 'grain'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
