"""Runs the tasks of a preparation: in this process, in worker processes, or on Ray."""

import contextlib
import importlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any, Literal

from configs.errors import SettingsError, Stopped
from configs.suggested_commands import pip_install

Engine = Literal["local", "ray"]
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Workers:
    """Where tasks run; results do not depend on it."""

    num_workers: int | None = None
    """Local worker processes; None is one per core. Ray has its own."""
    engine: Engine = "local"

    def run(
        self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
    ) -> Iterator[tuple[int, Any]]:
        """Yields (index of the call, its result) as calls finish.

        Raises:
            SettingsError: raised by a call, or a worker of Ray was killed.
            Stopped: a local worker was killed.
        """
        if self.engine == "ray" and calls:
            return _run_on_ray(function, calls)
        num_workers = min(self.num_workers or len(os.sched_getaffinity(0)), len(calls))
        if num_workers <= 1:
            return ((i, function(*call)) for i, call in enumerate(calls))
        return _run_locally(function, calls, num_workers)


def _run_locally(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], num_workers: int
) -> Iterator[tuple[int, Any]]:
    executor = ProcessPoolExecutor(
        num_workers, mp_context=get_context("spawn"), initializer=_prepare_worker
    )
    try:
        # Workers inherit the blocked signal, so only this process handles Ctrl-C.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            futures = {executor.submit(function, *call): i for i, call in enumerate(calls)}
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise Stopped(
            f"one of {num_workers} worker processes was killed, often because memory ran out "
            "(--num-workers of ./tessera prepare sets fewer); run the same command again to resume"
        ) from None
    finally:
        # There is no public way to end a call.
        processes = list((executor._processes or {}).values())
        executor.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _prepare_worker() -> None:
    """Makes the worker exit when its parent does, even if that is killed."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is one process per core already
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _run_on_ray(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[int, Any]]:
    """Runs on the cluster at RAY_ADDRESS, or on this machine; folders must be shared."""
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise SettingsError(
            "--engine=ray needs the package ray, but it is not installed: run "
            f"{pip_install('ray')}, or pass --engine local"
        ) from None
    environment = {"PYTHONPATH": str(_ROOT), "TOKENIZERS_PARALLELISM": "false"}
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            _require_cluster(os.environ.get("RAY_ADDRESS", ""))
            ray.init(
                runtime_env={"env_vars": environment},
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
            stack.callback(ray.shutdown)
        remote = ray.remote(max_retries=3)(_call)
        waiting = {
            remote.remote(function.__module__, function.__name__, call): i
            for i, call in enumerate(calls)
        }
        while waiting:
            done, _ = ray.wait(list(waiting))
            for reference in done:
                try:
                    yield waiting.pop(reference), ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except ray.exceptions.RayError as error:
                    raise SettingsError(
                        "a worker of --engine=ray was killed repeatedly, often because memory ran "
                        f"out ({str(error).splitlines()[0]}); run the same command again to resume"
                    ) from None


def _require_cluster(address: str) -> None:
    """Raises SettingsError if nothing listens at an address; Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto", or this machine alone
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise SettingsError(
            f"--engine=ray cannot reach RAY_ADDRESS={address} ({error}): start the cluster with "
            "ray start, or unset RAY_ADDRESS to use this machine alone"
        ) from None


def _call(module: str, name: str, arguments: tuple[Any, ...]) -> Any:
    """Runs a function of a module by name on the worker, so that no code is sent."""
    return getattr(importlib.import_module(module), name)(*arguments)
