"""Restarts a run that something from outside ended (`./tessera train ... --supervise`).

The supervisor is a process without JAX, so that what ends a run does not end it too. It runs the
command in a new session, where Ctrl-C reaches it only through the supervisor, and kills what is
left of that session when the command has ended.
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

from configs.errors import INTERNAL_ERROR, Hung, Stopped
from launch.cli import BROKEN_PIPE
from launch.supervisor_pipe import DESCRIPTOR, PERIOD_SEC
from train.checkpoints.folders import checkpoint_steps
from train.record.run_folder import RunFolder

_STOPS = (signal.SIGTERM, signal.SIGINT)
_FORWARDED = (*_STOPS, signal.SIGUSR1)
_MANY = 4096
"""Bytes that are read from a pipe at once, each of them a heartbeat or a signal."""

_SHOW_CURSOR, _USUAL_COLUMNS = "\x1b[?25h", 80


@dataclass(frozen=True, kw_only=True)
class RestartPolicy:
    """How often and how soon a run is restarted, and when it counts as frozen."""

    max_restarts: int = 10
    """Restarts without a new checkpoint; each new checkpoint resets the count."""
    wait_sec: float = 2.0
    """Seconds before the first restart; doubled after each one without a new checkpoint."""
    max_wait_sec: float = 60.0
    """The longest wait before a restart, in seconds."""
    frozen_limit_sec: float = 30.0
    """Seconds without a heartbeat after which the run is killed and counts as hung."""
    start_limit_sec: float = 60.0
    """Seconds until the first heartbeat is due."""


def supervise(
    command: Sequence[str], folder: RunFolder, policy: RestartPolicy | None = None
) -> int:
    """Runs a command until a restart is of no use; returns its last exit code.

    Stops from outside (75), hangs (124) and crashes (a signal, as 128 + its number) are restarted,
    and an internal error (70) once; any other exit code is final, as a restart would repeat it.
    A restart counts against the policy unless a checkpoint newer than any before was made. Each
    one is logged on stderr and, once there is a run, in its events; the run itself counts the
    downtime.

    SIGTERM, SIGINT and SIGUSR1 are forwarded to the command. After SIGTERM or SIGINT its exit code
    is final, and between two starts they end this at once (75). The command must call
    `start_heartbeat`. Only the main thread may call this.

    Args:
        command: program and arguments; its output goes where that of this process goes.
        folder: of the run; it need not exist yet.
    """
    policy = policy or RestartPolicy()
    budget = _Budget(policy, _newest_step(folder))
    with _SignalPipe() as signals:
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
    """Which exit codes are worth a restart, and how long to wait for it."""

    def __init__(self, policy: RestartPolicy, newest_step: int):
        self._policy = policy
        self._newest_step = newest_step
        self.num_restarts = 0
        """Since the newest checkpoint was made, like the next attribute."""
        self._num_internal_errors = 0

    def wait_after(self, code: int, newest_step: int) -> float | None:
        """Counts an exit code; returns the seconds to wait for a restart, or None if it is final.

        Logs which of them on stderr, unless the run has logged all there is to know.

        Args:
            newest_step: of all checkpoints that exist now.
        """
        if newest_step > self._newest_step:
            self._newest_step = newest_step
            self.num_restarts = self._num_internal_errors = 0
        self._num_internal_errors += code == INTERNAL_ERROR
        if not _is_worth_a_restart(code):
            return None
        if self._num_internal_errors > 1:
            _log(
                f"ended with exit code {code} again without a new checkpoint and is not restarted; "
                "see the logs of the run"
            )
            return None
        most = self._policy.max_restarts
        if self.num_restarts >= most:
            _log(
                f"ended with exit code {code}, and {most} restarts without a new checkpoint are "
                "the most; see the logs of the run, then resume with the same "
                "command"
            )
            return None
        wait_sec = min(self._policy.wait_sec * 2**self.num_restarts, self._policy.max_wait_sec)
        self.num_restarts += 1
        _log(
            f"ended with exit code {code}; restart {self.num_restarts} of {most} in {wait_sec:g} s"
        )
        return wait_sec


def _is_worth_a_restart(code: int) -> bool:
    # If nobody reads the output any more, the next start would end in the same way.
    is_crash = 128 < code < 128 + signal.NSIG and code != BROKEN_PIPE
    return is_crash or code in (Stopped.exit_code, Hung.exit_code, INTERNAL_ERROR)


class _SignalPipe:
    """Signals as something to wait for: as a context, it turns them into bytes of a pipe.

    SIGCHLD among them, which ends a wait when the command has ended.
    """

    def __enter__(self) -> "_SignalPipe":
        self.stops: list[int] = []
        """All signals to stop so far."""
        self.descriptor, self._writing = os.pipe()
        os.set_blocking(self.descriptor, False)
        os.set_blocking(self._writing, False)
        self._wakeup_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._before = {
            number: signal.signal(number, lambda number, frame: None)
            for number in (*_FORWARDED, signal.SIGCHLD)
        }
        return self

    def __exit__(self, *error: object) -> None:
        for number, act in self._before.items():
            signal.signal(number, act)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self.descriptor)
        os.close(self._writing)

    def read(self) -> list[int]:
        """Returns the signals to forward that have arrived since the last call."""
        numbers = b""
        with contextlib.suppress(BlockingIOError):  # none has arrived
            numbers = os.read(self.descriptor, _MANY)
        self.stops += [number for number in numbers if number in _STOPS]
        return [number for number in numbers if number in _FORWARDED]

    def stop_within(self, seconds: float) -> bool:
        """Returns whether a signal to stop has arrived, now or before; waits so long for one."""
        deadline = time.monotonic() + seconds
        self.read()
        while not self.stops and (left := deadline - time.monotonic()) > 0:
            select.select([self.descriptor], [], [], left)
            self.read()
        return bool(self.stops)


def _run_once(command: Sequence[str], signals: _SignalPipe, policy: RestartPolicy) -> int:
    """Returns the exit code of a command, after killing what is left of its process group."""
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
        with contextlib.suppress(ProcessLookupError, PermissionError):  # none is left
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if child.returncode:
        _start_line()
    if is_frozen:
        return Hung.exit_code
    if len(signals.stops) == 1 and child.returncode == -signals.stops[0]:
        return Stopped.exit_code  # before it handled signals
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _watch(
    child: "subprocess.Popen[bytes]", heartbeat: int, signals: _SignalPipe, policy: RestartPolicy
) -> bool:
    """Forwards signals until the child has ended; returns False as soon as it is frozen."""
    limit_sec = policy.start_limit_sec
    watched = [signals.descriptor, heartbeat]
    silent_sec = 0.0  # counted, because the clock continues while both processes are frozen
    while child.poll() is None:
        ready, _, _ = select.select(watched, [], [], PERIOD_SEC)
        for number in signals.read():
            child.send_signal(number)
        if not ready:
            silent_sec += PERIOD_SEC
        elif heartbeat in ready:
            if os.read(heartbeat, _MANY):
                limit_sec, silent_sec = policy.frozen_limit_sec, 0.0
            else:  # it is exiting, within the same limit
                watched.remove(heartbeat)
        if silent_sec >= limit_sec:
            _log(f"sent no heartbeat for {limit_sec:g} s and is killed")
            return False
    return True


def _newest_step(folder: RunFolder) -> int:
    try:
        return max(checkpoint_steps(folder.checkpoints), default=-1)
    except OSError:
        return -1


def _start_line() -> None:
    """Ends the line that a killed command may have left on a terminal, and shows the cursor.

    As many blanks as the terminal is wide reach the next line, unless they begin a line.
    """
    for stream in (sys.stderr, sys.stdout):
        with contextlib.suppress(OSError, ValueError):
            if stream.isatty():
                columns = os.get_terminal_size(stream.fileno()).columns or _USUAL_COLUMNS
                cursor = "" if os.environ.get("TERM") == "dumb" else _SHOW_CURSOR
                print(f"{cursor}{' ' * columns}", end="\r", file=stream, flush=True)
                return


def _log(message: str) -> None:
    """Writes to stderr what happened to the run; does nothing if nobody reads it any more."""
    _start_line()
    with contextlib.suppress(OSError):
        print(f"tessera: the run {message}", file=sys.stderr, flush=True)
