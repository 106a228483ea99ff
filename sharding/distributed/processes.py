"""What the processes of a run exchange beside arrays, and how they end together.

It goes through the key-value store of JAX's coordination service, which needs no device: so they
can agree before anything is compiled, and from a thread in the background. A process that dies
makes the service abort the others (SIGABRT) about HEARTBEAT_SEC later.
"""

import contextlib
import itertools
import json
import logging
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax

from configs.errors import SettingsError, TesseraError, Unavailable, closing_line, exit_code_of
from sharding.distributed.job import Job
from sharding.distributed.rendezvous import meet

_logger = logging.getLogger("tessera")

HEARTBEAT_SEC = 10
_POLL_SEC = 1.0
_GRACE_SEC = 5.0
"""How long a process may take to end by itself after another has ended with an error."""
_LEAVE_SEC = 10.0
"""How long a process stays for the others after an error."""
_SHUTDOWN_SEC = 60
_SHOWN_DIFFERENCES = 6
_TIMED_OUT = "DEADLINE_EXCEEDED"
"""What JAX says where another process has not answered in time."""

Value = Any
"""What JSON can hold."""


class EndedElsewhere(TesseraError):
    """Another process has ended with an error, so that this one cannot go on."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class Disagreement(SettingsError):
    """The processes of a run were not started alike."""


class Unanswered(Unavailable):
    """Another process did not answer within its time."""


_COMMON = (Disagreement, Unanswered)
"""Errors that are not those of one process: all of them say the same."""


class Processes:
    """The processes of a run, seen from one of them; without a client it is the only one.

    Every process calls the methods that wait for others in the same order with the same names.
    """

    def __init__(self, job: Job | None = None, client: Any = None):
        self.index = job.process_id if job else 0
        self.num = job.num_processes if job else 1
        self._client = client
        self._turns: dict[str, Iterator[int]] = defaultdict(itertools.count)
        self._polling = threading.Lock()
        self.num_polls = 0
        """Polls of other processes so far, by any thread.

        A process that waits for another makes progress: that one has a watchdog of its own.
        """
        self._has_announced = False
        self._is_leaving = threading.Event()
        self.resume_command: str | None = None
        """The command that resumes the run, once there is something to resume."""
        if self.num > 1:
            threading.Thread(target=self._watch, name="other processes", daemon=True).start()

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run folder and logs for all."""
        return self.index == 0

    def gather(self, name: str, value: Value, *, limit_sec: float | None = None) -> list[Value]:
        """Returns the values of all processes, by index, in process 0, and [value] in the others.

        Raises:
            EndedElsewhere: another process has ended with an error.
            Unanswered: one has not answered within the limit; None waits as long as it lives.
        """
        if self.num == 1:
            return [value]
        folder = f"{name}/{next(self._turns[name])}"
        self._client.key_value_set(f"{folder}/{self.index}", json.dumps(value))
        if not self.is_first:
            return [value]
        deadline = None if limit_sec is None else time.monotonic() + limit_sec
        values = [self._get(f"{folder}/{i}", i, deadline) for i in range(self.num)]
        self._client.key_value_delete(folder)
        return values

    def from_first(self, name: str, value: Value) -> Value:
        """Returns the value of process 0 in every process, as soon as it is there."""
        if self.num == 1:
            return value
        key = f"{name}/{next(self._turns[name])}"
        if self.is_first:
            self._client.key_value_set(key, json.dumps(value))
            return value
        return self._get(key, 0, None)

    def wait(self, name: str) -> None:
        """Returns when every process has called it: a barrier."""
        self.gather(f"{name} come", None)
        self.from_first(f"{name} gone", None)

    def agree(self, name: str, content: Mapping[str, Value], limit_sec: float | None) -> None:
        """Returns if every process has the same content as process 0.

        Raises:
            Disagreement: names the fields, the processes and both values, in every process.
            Unanswered, EndedElsewhere: as `gather`.
        """
        lines = _differences(self.gather(name, dict(content), limit_sec=limit_sec))
        if lines:
            more = len(lines) - _SHOWN_DIFFERENCES
            raise Disagreement(
                "the processes of a run must be started alike, but:\n"
                + "\n".join(lines[:_SHOWN_DIFFERENCES])
                + (f"\n  and {more} more" if more > 0 else "")
            )
        self.from_first(f"{name} agreed", None)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Announces an error inside to the other processes, so that they end too.

        An error that only echoes the end of another process becomes EndedElsewhere, and one that
        says that another has not answered in time Unanswered.
        """
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            if self.num == 1 or self._has_announced or isinstance(error, EndedElsewhere):
                raise
            announced: BaseException = error
            if _may_be_an_echo(error):
                self._wait_for_cause(error)
                if _TIMED_OUT in str(error):  # all live, and one has taken longer than JAX allows
                    announced = Unanswered(
                        f"a process did not answer: {str(error).splitlines()[0]}"
                    )
            self._announce(announced)
            if announced is error:
                raise
            raise announced from error

    def end(self, exit_code: int) -> NoReturn:
        """Ends this process: with 0 once all are done, else as soon as the others know.

        What JAX does when a process exits by itself waits for the others and, after an error,
        changes the exit code.
        """
        self._is_leaving.set()
        if exit_code == 0:
            try:
                self.wait("end")
                jax.distributed.shutdown()
                _exit(0)
            except EndedElsewhere as ended:
                self._log_last(ended)
                exit_code = ended.exit_code
        self._leave(exit_code)

    def abandon(self, error: TesseraError) -> NoReturn:
        """Ends this process and the others from any thread, though the main one may be stuck."""
        self._is_leaving.set()
        self._log_last(error)
        if self.num == 1:
            _exit(error.exit_code)
        self._announce(error)
        self._leave(error.exit_code)

    def _leave(self, exit_code: int) -> NoReturn:
        """Ends this process after an error, once all are about to end: JAX aborts those who stay.

        The first, which runs the service, goes a moment after the others.
        """
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"leaving/{self.index}", "")
            if not self.is_first:
                self._client.blocking_key_value_get("all leave", int(_LEAVE_SEC * 1000))
                _exit(exit_code)
            deadline = time.monotonic() + _LEAVE_SEC
            while time.monotonic() < deadline:
                if len(self._client.key_value_dir_get("leaving/")) == self.num:
                    break
                time.sleep(0.05)
            self._client.key_value_set("all leave", "")
            time.sleep(_POLL_SEC)
        _exit(exit_code)

    def _get(self, key: str, owner: int, deadline: float | None) -> Value:
        began = time.monotonic()
        while True:
            with self._polling:
                self.num_polls += 1
            try:
                return json.loads(self._client.blocking_key_value_get(key, int(_POLL_SEC * 1000)))
            except jax.errors.JaxRuntimeError as error:
                if _TIMED_OUT not in str(error):
                    raise
            if ended := self._ended_elsewhere():
                raise ended
            if deadline is not None and time.monotonic() > deadline:
                raise Unanswered(
                    f"process {owner} of {self.num} did not answer within "
                    f"{time.monotonic() - began:.0f} s ({key}); see its log"
                )

    def _announce(self, error: BaseException) -> None:
        self._has_announced = True
        is_ours = isinstance(error, TesseraError)
        message = str(error) if is_ours else f"{type(error).__name__}: {error}"
        content = [exit_code_of(error), message, isinstance(error, _COMMON)]
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"ended/{self.index}", json.dumps(content))

    def _ended_elsewhere(self) -> EndedElsewhere | None:
        """Returns the error of the first process that ended with one, None without any."""
        for key, content in sorted(self._client.key_value_dir_get("ended/")):
            index = int(key.rpartition("/")[2])
            if index != self.index:
                code, message, is_common = json.loads(content)
                text = message if is_common else f"process {index} has ended: {message}"
                return EndedElsewhere(text, code)
        return None

    def _wait_for_cause(self, error: BaseException) -> None:
        """Waits for the error of another process; the service may abort this one meanwhile."""
        _logger.warning(
            f"{str(error).splitlines()[0]}; another process may have ended: waiting for its error"
        )
        deadline = time.monotonic() + HEARTBEAT_SEC + _GRACE_SEC
        while time.monotonic() < deadline:
            if ended := self._ended_elsewhere():
                raise ended from error
            time.sleep(_POLL_SEC)

    def _log_last(self, error: TesseraError) -> None:
        _logger.error(closing_line(str(error), error.exit_code, self.resume_command))

    def _watch(self) -> None:
        """Ends this process when another has ended with an error and this one is stuck waiting."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the service is gone
            while not self._is_leaving.wait(_POLL_SEC):
                ended = self._ended_elsewhere()
                if ended is None:
                    continue
                if self._is_leaving.wait(_GRACE_SEC):
                    return
                self._log_last(ended)
                self._leave(ended.exit_code)


ALONE = Processes()
"""A run over one process."""


def join(job: Job) -> Processes:
    """Connects all processes of a job, or raises as `meet`; before JAX looks for devices."""
    meet(job)
    # Its handler of SIGTERM would take the place of ours.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        job.coordinator,
        job.num_processes,
        job.process_id,
        local_device_ids=job.gpus,
        cluster_detection_method="deactivate",
        initialization_timeout=max(int(job.rendezvous_timeout_sec), 10),
        heartbeat_timeout_seconds=HEARTBEAT_SEC,
        shutdown_timeout_seconds=_SHUTDOWN_SEC,
    )
    from jax._src.distributed import global_state  # the store has no public name

    return Processes(job, global_state.client)


def _differences(contents: list[dict[str, Value]]) -> list[str]:
    """Returns a line for each field and value that is not that of process 0."""
    first = contents[0]
    who: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in dict.fromkeys(itertools.chain(*contents)):
        for i, content in enumerate(contents):
            if content.get(name) != first.get(name):
                who[name, str(content.get(name))].append(str(i))
    return [
        f"  {name}: process 0 has {first.get(name)}, process {', '.join(found)} has {value}"
        for (name, value), found in who.items()
    ]


def _may_be_an_echo(error: BaseException | None) -> bool:
    """Returns whether an error may come from a broken connection to another process."""
    while error is not None:
        if isinstance(error, TesseraError):
            return False
        if isinstance(error, jax.errors.JaxRuntimeError):
            return "RESOURCE_EXHAUSTED" not in str(error)
        error = error.__cause__ or error.__context__
    return False


def _exit(exit_code: int) -> NoReturn:
    """Ends this process at once, after flushing its output."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code)
