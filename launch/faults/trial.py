"""A trial: one small real run that a fault is injected into, and how it ends."""

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import IntegrityError
from launch.jax_setup import ROOT
from launch.reading.event_messages import name_of
from train.checkpoints.folders import checkpoint_steps
from train.checkpoints.manifest import read_progress
from train.record.run_folder import RunFolder, read_json_lines, read_metrics
from train.record.time_ledger import stat_fields

NUM_STEPS, SAVE_STEPS = 100, 10
LIMIT_SEC = 240.0
"""The limit of every wait: a run that hangs must not hang the command."""
ORPHAN_SEC = 10.0
"""No process outlives a killed run by more than this."""
_MARK = "TESSERA_TRIAL"
"""The environment variable of all processes of a trial, also of those they start themselves."""
SMALL = f"""
    --data.tokenizer bytes --data.sequence_len 16
    --model.num_layers 2 --model.embed_dim 32 --model.mlp_dim 64
    --model.num_heads 2 --model.num_kv_heads 1 --model.head_dim 16 --model.dropout 0.1
    --optim.num_warmup_steps 0 --train.batch_size 8 --train.num_microbatches 1
    --train.num_steps {NUM_STEPS} --train.log_every_steps 1
    --checkpoint.every_steps {SAVE_STEPS} --checkpoint.keep_every_steps {SAVE_STEPS}
    --eval.every_steps None --eval.batch_size 8 --sample.every_steps None --sample.num_tokens 1
""".split()


class Broken(Exception):
    """A promise was not kept."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """How one try ended, if the promise was kept."""

    steps_lost: tuple[int, ...] = ()
    """Steps that were repeated, for each time that the run went back."""
    is_exact: bool | None = None
    """Whether losses and parameters equal those of the undisturbed run; None if they may differ."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a run computed."""

    losses: Mapping[int, float | None]
    params_sha256: str
    next_batches: Mapping[int, str | None]
    """Digest of the next batch at each checkpoint."""


class Workplace:
    """A folder with a text, the runs of all trials, and the undisturbed runs beside them.

    Once it is `stopped`, no process of a trial is started.

    Args:
        more: arguments of every run.
        refused_sec: how long storage refuses writes.
    """

    def __init__(self, folder: Path, preset: str, more: Sequence[str], refused_sec: float):
        self.folder, self.preset, self.more = folder, preset, tuple(more)
        self.refused_sec = refused_sec
        folder.mkdir(parents=True, exist_ok=True)
        rng = random.Random(0)
        lines = (f"{rng.randrange(1000)} sheep crossed the bridge.\n" for _ in range(400))
        self.text = "".join(lines)
        (folder / "text.txt").write_text(self.text)
        self.mark = uuid.uuid4().hex
        self.stopped = threading.Event()
        self._beginning = threading.Lock()
        self._lock = threading.Lock()
        self._references: dict[int, Outputs] = {}

    def begin(self, arguments: Sequence[str], **how: Any) -> "subprocess.Popen[bytes]":
        """Starts a process of a trial, as `subprocess.Popen` does; Broken once it is stopped."""
        with self._beginning:
            if self.stopped.is_set():
                raise Broken("stopped")
            how |= {"cwd": self.folder, "stdin": subprocess.DEVNULL, "start_new_session": True}
            begun: Any = subprocess.Popen(arguments, **how)
            return begun

    def stop(self) -> None:
        """Kills the processes of all trials and lets none start; a signal handler may call it."""
        if not self.stopped.is_set():
            self.stopped.set()
            with self._beginning:  # or one that is being started would have no mark yet
                pass
            _kill_all(self.mark)

    def reference(self, num_processes: int) -> Outputs:
        """Returns the outputs of an undisturbed run."""
        with self._lock:
            if num_processes not in self._references:
                trial = Trial(self, f"undisturbed-{num_processes}")
                trial.start(num_processes=num_processes).expect(0)
                self._references[num_processes] = trial.outputs()
            return self._references[num_processes]


@dataclass
class Started:
    """Processes of one start of a run."""

    trial: "Trial"
    processes: "list[subprocess.Popen[bytes]]"
    logs: list[Path]

    def wait_until(self, holds: Callable[[], bool], what: str) -> None:
        """Waits until something holds; Broken if a process ends before, or the time is over."""
        deadline = time.monotonic() + LIMIT_SEC
        while not holds():
            for i, process in enumerate(self.processes):
                if process.poll() is not None:
                    raise Broken(
                        f"ended with {process.returncode} before {what}: {self.last_output(i)}"
                    )
            if time.monotonic() > deadline:
                raise Broken(f"no {what} within {LIMIT_SEC:.0f} s")
            time.sleep(0.001)

    def wait_for_step(self, step: int) -> None:
        self.wait_until(lambda: self.trial.reached() >= step, f"step {step}")

    def wait_for_save(self, step: int) -> None:
        self.wait_until(lambda: self.trial.saved() >= step, f"checkpoint of step {step}")

    def send(self, number: int, process: int = 0) -> None:
        self.processes[process].send_signal(number)

    def expect(self, *allowed: int, within_sec: float = LIMIT_SEC) -> None:
        """Raises Broken unless every process ends by then, with one of these exit codes."""
        deadline = time.monotonic() + within_sec
        for i, process in enumerate(self.processes):
            try:
                code = process.wait(max(deadline - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                raise Broken(f"process {i} still runs after {within_sec:.0f} s") from None
            code = code if code >= 0 else 128 - code  # as a shell shows it
            if code not in allowed:
                raise Broken(f"exit code {code} instead of {allowed}: {self.last_output(i)}")

    def kill(self, process: int = 0) -> None:
        """Kills one process with SIGKILL and waits for its end."""
        self.send(signal.SIGKILL, process)
        self.processes[process].wait()

    def last_output(self, process: int = 0) -> str:
        return " | ".join(self.logs[process].read_text(errors="replace").splitlines()[-4:])


@dataclass
class Trial:
    """A run folder, its processes, and the steps it lost."""

    place: Workplace
    name: str
    rng: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self._mark = f"{self.place.mark}-{uuid.uuid4().hex}"
        self._num_starts, self._num_processes = 0, 1
        self.run = RunFolder(self.place.folder / self.name)
        self.durable = self.place.folder / f"{self.name}-durable"

    def start(
        self,
        *more: str,
        num_processes: int | None = None,
        fault: str | None = None,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        late_sec: float = 0.0,
    ) -> Started:
        """Starts or resumes the run.

        Args:
            more: arguments beside those of every trial.
            num_processes: None is as many as at the start before, at first 1.
            fault: "NAME FIRST LAST", which `launch.faults.run_with_fault` injects.
            prefix: a command that starts the process.
            late_sec: how much later than the first process the others start.
        """
        self._num_starts += 1
        self._num_processes = num_processes or self._num_processes
        module = (
            ["launch"] if fault is None else ["launch.faults.run_with_fault", *fault.split(), "--"]
        )
        wait = ("sh", "-c", f'sleep {late_sec:g}; exec "$@"', "late") if late_sec else ()
        arguments = [*prefix, sys.executable, "-m", *module, "train", self.place.preset]
        arguments += ["--data.path", "text.txt", "--run-dir", self.name]
        arguments += [*SMALL, *self.place.more, *more]
        environ = self._environment(environment or {})
        job = f"--coordinator localhost:{free_port()} --num-processes {self._num_processes} "
        job += "--virtual-devices 1 --process-id"
        processes, logs = [], []
        for i in range(self._num_processes):
            late = wait if i else ()
            own = [*job.split(), str(i)] if self._num_processes > 1 else []
            logs.append(self.place.folder / f"{self.name}-start-{self._num_starts}-{i}.log")
            with logs[-1].open("w") as log:
                started = self.place.begin(
                    [*late, *arguments, *own], env=environ, stdout=log, stderr=log
                )
                processes.append(started)
        return Started(self, processes, logs)

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), _MARK: self._mark, **more}

    def finish(self, *more: str) -> None:
        """Resumes the run to its end; Broken if that is not exit code 0."""
        self.start(*more).expect(0)

    def recover(self) -> Result:
        """Resumes a run that has ended, and returns a good result; Broken where it is none."""
        self.expect_nobody()
        self.finish()
        return self.exact()

    def call(self, *arguments: str) -> str:
        """Returns what another command prints; Broken unless its exit code is 0."""
        process = self.place.begin(
            [sys.executable, "-m", "launch", *arguments],
            env=self._environment({}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        printed, errors = (part.decode() for part in process.communicate(timeout=LIMIT_SEC))
        if process.returncode:
            raise Broken(f"{arguments[0]} ended with {process.returncode}: {errors}")
        return printed

    def reached(self) -> int:
        return max(read_metrics(self.run.metrics), default=0)

    def saving(self) -> list[int]:
        """Returns the steps whose saves are in progress, or were when the run was killed."""
        begun = self.run.checkpoints.glob("*.saving") if self.run.checkpoints.exists() else ()
        return sorted(int(path.name.removesuffix(".saving")) for path in begun)

    def saved(self) -> int:
        return max(checkpoint_steps(self.run.checkpoints), default=0)

    def events(self, name: str) -> list[dict]:
        return [event for event in self.run.read_events() if name_of(event) == name]

    def expect_event(self, name: str, **details: object) -> dict:
        """Returns the last event of a kind with these details; Broken if there is none."""
        for event in reversed(self.events(name)):
            if details.items() <= event.items():
                return event
        found = [event["event"] for event in self.run.read_events()]
        raise Broken(f"no event {name} with {details}; there are {', '.join(found)}")

    def outputs(self) -> Outputs:
        """Returns what the run computed; Broken if it has not finished."""
        losses = {step: line["loss"] for step, line in read_metrics(self.run.metrics).items()}
        next_batches = {}
        for step in checkpoint_steps(self.run.checkpoints):
            with contextlib.suppress(IntegrityError):
                next_batches[step] = read_progress(self.run.checkpoints, step).next_batch_sha256
        return Outputs(
            losses=losses,
            params_sha256=self.expect_event("finished")["params_sha256"],
            next_batches=next_batches,
        )

    def exact(self) -> Result:
        """Returns a good result; Broken unless all outputs equal those of the undisturbed run."""
        found, wanted = self.outputs(), self.place.reference(self._num_processes)
        for step, loss in wanted.losses.items():
            if found.losses.get(step) != loss:
                raise Broken(f"the loss of step {step} is {found.losses.get(step)}, not {loss}")
        if found.params_sha256 != wanted.params_sha256:
            raise Broken("the parameters differ from those of the undisturbed run")
        return Result(steps_lost=self.steps_lost(), is_exact=True)

    def steps_lost(self) -> tuple[int, ...]:
        """Returns how many steps the run repeated, for each time that it went back."""
        steps = [line["step"] for line in read_json_lines(self.run.metrics) if "step" in line]
        return tuple(
            before - after + 1 for before, after in itertools.pairwise(steps) if after <= before
        )

    def expect_nobody(self, within_sec: float = ORPHAN_SEC) -> None:
        """Raises Broken if a process of the trial still runs after so long."""
        deadline = time.monotonic() + within_sec
        while left := list(_marked(self._mark)):
            if time.monotonic() > deadline:
                raise Broken(f"processes {left} still run {within_sec:.0f} s after the run")
            time.sleep(0.1)

    def signal_child(self, number: int, supervisor: int) -> None:
        """Sends a signal to the process that a supervisor runs; Broken if there is none."""
        for pid in _marked(self._mark):
            with contextlib.suppress(OSError, ValueError):
                if int(stat_fields(pid)[1]) == supervisor:
                    os.kill(pid, number)
                    return
        raise Broken("a supervisor has no process")

    def end(self) -> None:
        _kill_all(self._mark)


def _marked(mark: str) -> Iterator[int]:
    """Yields the processes whose mark begins so."""
    variable = f"{_MARK}={mark}".encode()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = (path / "environ").read_bytes().split(b"\0")
            is_ours = any(each.startswith(variable) for each in variables)
            if is_ours and stat_fields(int(path.name))[0] not in "ZX":
                yield int(path.name)


def _kill_all(mark: str) -> None:
    """Kills all processes of a mark, also those that they start meanwhile."""
    deadline = time.monotonic() + ORPHAN_SEC
    while (left := list(_marked(mark))) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]
