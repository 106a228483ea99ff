"""Starts a run again when something from outside ended it (`./tessera train ... --supervise`).

The supervisor is a process without JAX, so that what ends a run does not end it too. It runs the
command in a session of its own, where Ctrl-C reaches it only through the supervisor, and nothing
of that session is left when the command has ended.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from configs.check import require, require_at_least
from configs.errors import INTERNAL_ERROR, Hung, Stopped
from launch.cli import BROKEN_PIPE
from launch.heartbeat import DESCRIPTOR, PERIOD_SEC
from train.checkpoints.folders import checkpoint_steps
from train.record.run_folder import RunFolder

_STOPS = (signal.SIGTERM, signal.SIGINT)
_PASSED_ON = (*_STOPS, signal.SIGUSR1)
_MANY = 4096
"""Bytes that are read from a pipe at once, each of which is a sign of life or a signal."""

_SHOW_CURSOR, _USUAL_COLUMNS = "\x1b[?25h", 80


@dataclass(frozen=True, kw_only=True)
class RestartPolicy:
    """How often and how soon a run is started again, and when it counts as frozen."""

    max_restarts: int = 10
    """Restarts without a new checkpoint in between; each new checkpoint gives all of them back."""
    wait_sec: float = 2.0
    """Seconds before the first restart; they double with each one that leads to no checkpoint."""
    max_wait_sec: float = 60.0
    """Seconds that the wait before a restart does not exceed."""
    frozen_limit_sec: float = 30.0
    """Seconds without a sign of life after which the run is killed, and counts as hung."""
    start_limit_sec: float = 60.0
    """Seconds in which the first sign of life must come."""

    def __post_init__(self) -> None:
        require_at_least("--max-restarts", self.max_restarts, 0)
        require_at_least("--restart-wait-sec", self.wait_sec, 0)
        least = 2 * PERIOD_SEC
        require(
            self.frozen_limit_sec >= least,
            f"--frozen-limit-sec={self.frozen_limit_sec} must be at least {least}: a run gives a "
            f"sign of life every {PERIOD_SEC:g} s",
        )


def supervise(
    command: Sequence[str], folder: RunFolder, policy: RestartPolicy | None = None
) -> int:
    """Runs a command until there is no use in starting it again; returns its last exit code.

    Started again are stops from outside (75), hangs (124) and crashes (a signal, as 128 + its
    number), and an error of ours (70) once; an ending that the next start would repeat is final.
    A restart uses up the budget of the policy unless a checkpoint newer than any before was made.
    Each one is said on stderr and, once there is a run, in its events; the time that was lost is
    counted by the run itself.

    SIGTERM, SIGINT and SIGUSR1 are passed on to the command. After SIGTERM or SIGINT its ending is
    the last, and while nothing runs they end this at once (75). The command must call
    `start_heartbeat`. Only the main thread may call this.

    Args:
        command: program and arguments; its output goes where that of this process goes.
        folder: of the run; it need not exist yet.
    """
    policy = policy or RestartPolicy()
    budget = _Budget(policy, _newest_step(folder))
    with _Signals() as signals:
        while True:
            code = _run_once(command, signals, policy)
            if signals.stop_within(0):
                return code
            wait_sec = budget.wait_after(code, _newest_step(folder))
            if wait_sec is None:
                return code
            if signals.stop_within(wait_sec):
                return Stopped.exit_code
            if folder.exists:
                folder.add_event(
                    "restarted", exit_code=code, wait_sec=wait_sec, restarts=budget.num_restarts
                )


class _Budget:
    """Which endings are worth a restart, and how long to wait for it."""

    def __init__(self, policy: RestartPolicy, newest_step: int):
        self._policy = policy
        self._newest_step = newest_step
        self.num_restarts = 0
        """Since the newest checkpoint was made, as the next attribute."""
        self._num_internal_errors = 0

    def wait_after(self, code: int, newest_step: int) -> float | None:
        """Counts an ending; returns the seconds to wait for a restart, or None if it is final.

        Says on stderr which of them it is, unless the run has said all there is to say.

        Args:
            newest_step: of all checkpoints that there are now.
        """
        if newest_step > self._newest_step:
            self._newest_step = newest_step
            self.num_restarts = self._num_internal_errors = 0
        self._num_internal_errors += code == INTERNAL_ERROR
        if not _is_worth_a_restart(code):
            return None
        if self._num_internal_errors > 1:
            _say(f"ended with exit code {code} a second time without a new checkpoint; it is final")
            return None
        most = self._policy.max_restarts
        if self.num_restarts >= most:
            _say(
                f"ended with exit code {code}, and --max-restarts={most} allows no more restarts "
                "without a new checkpoint; see why in the logs of the run, then give the same "
                "command to go on"
            )
            return None
        wait_sec = min(self._policy.wait_sec * 2**self.num_restarts, self._policy.max_wait_sec)
        self.num_restarts += 1
        _say(
            f"ended with exit code {code}; restart {self.num_restarts} of {most} in {wait_sec:g} s"
        )
        return wait_sec


def _is_worth_a_restart(code: int) -> bool:
    # With nobody left who reads the output, the next start would end in the same way.
    is_crash = 128 < code < 128 + signal.NSIG and code != BROKEN_PIPE
    return is_crash or code in (Stopped.exit_code, Hung.exit_code, INTERNAL_ERROR)


class _Signals:
    """Signals as something to wait for: while it is entered, none of them interrupts anything.

    The handler of the system writes their numbers into a pipe. So does SIGCHLD, which ends a wait
    when a command has ended.
    """

    def __enter__(self) -> "_Signals":
        self.stops: list[int] = []
        """All signals to stop so far."""
        self.descriptor, self._writing = os.pipe()
        os.set_blocking(self.descriptor, False)
        os.set_blocking(self._writing, False)
        self._wakeup_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._before = {
            number: signal.signal(number, lambda number, frame: None)
            for number in (*_PASSED_ON, signal.SIGCHLD)
        }
        return self

    def __exit__(self, *error: object) -> None:
        for number, act in self._before.items():
            signal.signal(number, act)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self.descriptor)
        os.close(self._writing)

    def read(self) -> list[int]:
        """Returns the signals to pass on that have come since the last call."""
        numbers = b""
        with contextlib.suppress(BlockingIOError):  # none has come
            numbers = os.read(self.descriptor, _MANY)
        self.stops += [number for number in numbers if number in _STOPS]
        return [number for number in numbers if number in _PASSED_ON]

    def stop_within(self, seconds: float) -> bool:
        """Says whether a signal to stop has ever come; waits so long for one."""
        deadline = time.monotonic() + seconds
        self.read()
        while not self.stops and (left := deadline - time.monotonic()) > 0:
            select.select([self.descriptor], [], [], left)
            self.read()
        return bool(self.stops)


def _run_once(command: Sequence[str], signals: _Signals, policy: RestartPolicy) -> int:
    """Returns the exit code of a command, once nothing of its process group is left."""
    heartbeat, writing = os.pipe()
    child = subprocess.Popen(
        command,
        pass_fds=(writing,),
        env={**os.environ, DESCRIPTOR: str(writing)},
        start_new_session=True,
    )
    os.close(writing)
    try:
        is_frozen = not _watch(child, heartbeat, signals, policy)
    finally:
        os.close(heartbeat)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # all have ended
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if child.returncode:
        _start_line()
    if is_frozen:
        return Hung.exit_code
    if len(signals.stops) == 1 and child.returncode == -signals.stops[0]:
        return Stopped.exit_code  # so early that it did not handle signals yet
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _watch(
    child: "subprocess.Popen[bytes]", heartbeat: int, signals: _Signals, policy: RestartPolicy
) -> bool:
    """Passes signals on until the child has ended; returns False as soon as it is frozen."""
    limit_sec = policy.start_limit_sec
    watched = [signals.descriptor, heartbeat]
    silent_sec = 0.0  # counted, for the clock goes on where both processes are frozen
    while child.poll() is None:
        ready, _, _ = select.select(watched, [], [], PERIOD_SEC)
        for number in signals.read():
            child.send_signal(number)
        if not ready:
            silent_sec += PERIOD_SEC
        elif heartbeat in ready:
            if os.read(heartbeat, _MANY):
                limit_sec, silent_sec = policy.frozen_limit_sec, 0.0
            else:  # it is on its way out, in what is left of its time
                watched.remove(heartbeat)
        if silent_sec >= limit_sec:
            _say(f"gave no sign of life for {limit_sec:g} s, and is killed")
            return False
    return True


def _newest_step(folder: RunFolder) -> int:
    """Returns the step of the newest checkpoint; -1 if there is none, or it cannot be read."""
    try:
        return max(checkpoint_steps(folder.checkpoints), default=-1)
    except OSError:
        return -1


def _start_line() -> None:
    """Ends the line that a killed command has left on a terminal, if it has, and shows the cursor.

    As many blanks as the terminal is wide lead into the next line, unless from the start of one.
    """
    for stream in (sys.stderr, sys.stdout):
        with contextlib.suppress(OSError, ValueError):
            if stream.isatty():
                columns = os.get_terminal_size(stream.fileno()).columns or _USUAL_COLUMNS
                cursor = "" if os.environ.get("TERM") == "dumb" else _SHOW_CURSOR
                print(f"{cursor}{' ' * columns}", end="\r", file=stream, flush=True)
                return


def _say(what: str) -> None:
    """Says on stderr what became of the run; one that nobody reads any more is no reason to end."""
    _start_line()
    with contextlib.suppress(OSError):
        print(f"tessera: the run {what}", file=sys.stderr, flush=True)
