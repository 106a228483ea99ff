"""The processes of a run and the index of this one, from flags, environment or cluster."""

import argparse
import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from configs.errors import SettingsError
from configs.require import require

_TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")


@dataclass(frozen=True, kw_only=True)
class Job:
    """The processes of one run, as one of them sees them."""

    coordinator: str
    """HOST:PORT of process 0."""
    num_processes: int
    process_id: int
    gpus: tuple[int, ...] | None = None
    """Indices of the visible GPUs that this process uses; None is all."""
    rendezvous_timeout_sec: float = 60.0
    """Seconds the processes wait for each other at the start."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the coordinator."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


class _Task(NamedTuple):
    """What a cluster manager says of this process; None where it does not."""

    cluster: str | None = None
    coordinator: str | None = None
    num_processes: str | int | None = None
    process_id: str | int | None = None
    local_id: int = 0
    num_local: int = 1
    """Processes on this machine."""


def find_job(arguments: Sequence[str]) -> Job | None:
    """Returns the job this process belongs to, None for a single process.

    In this order: the flags --coordinator, --num-processes and --process-id; the variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; a SLURM step, Open MPI, a TPU
    pod, the index of an indexed Kubernetes job.

    Raises:
        SettingsError: only a part of it is known, or a number is invalid.
    """
    flags, task, environment = _flags(arguments), _find_task(), os.environ
    given = {
        "--coordinator": flags.coordinator or environment.get("JAX_COORDINATOR_ADDRESS"),
        "--num-processes": flags.num_processes or environment.get("JAX_NUM_PROCESSES"),
        "--process-id": flags.process_id or environment.get("JAX_PROCESS_ID"),
    }
    if task.num_processes is None and not any(given.values()):
        return None
    known = zip(given, (task.coordinator, task.num_processes, task.process_id), strict=True)
    found = {flag: value if given[flag] is None else given[flag] for flag, value in known}
    missing = [flag for flag, value in found.items() if value is None]
    parts = [f"{flag} {value}" for flag, value in found.items() if value is not None]
    if task.cluster is not None:
        parts.append(f"(of {task.cluster})")
    require(
        not missing,
        f"{' '.join(parts)} also needs {' and '.join(missing)}: a run over several processes needs "
        "--coordinator HOST:PORT, --num-processes N and, in each of them, --process-id I",
    )
    num_processes = _number("--num-processes", found["--num-processes"], least=1)
    process_id = _number("--process-id", found["--process-id"], least=0)
    coordinator = str(found["--coordinator"])
    require(
        process_id < num_processes,
        f"--process-id={process_id} must be below --num-processes={num_processes}: processes are "
        "numbered from 0",
    )
    require(
        re.fullmatch(r".+:\d+", coordinator) is not None,
        f"--coordinator={coordinator} must be HOST:PORT, an address of process 0 that every "
        "process can reach, with a port that is free",
    )
    if num_processes == 1:
        return None
    return Job(
        coordinator=coordinator,
        num_processes=num_processes,
        process_id=process_id,
        gpus=gpus_of(task.local_id, task.num_local, _num_gpus()),
        rendezvous_timeout_sec=flags.rendezvous_timeout_sec,
    )


def _flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the flags of a job, even if other arguments are wrong: all processes report that."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("coordinator", "num_processes", "process_id"):
        parser.add_argument(f"--{name.replace('_', '-')}", f"--{name}", dest=name)
    timeout = ("--rendezvous-timeout-sec", "--rendezvous_timeout_sec")
    parser.add_argument(*timeout, type=float, default=Job.rendezvous_timeout_sec)
    try:
        return parser.parse_known_args(arguments)[0]
    except argparse.ArgumentError:  # a flag without its value, which the parser of all reports
        return parser.parse_known_args([])[0]


def _number(flag: str, value: str | int | None, *, least: int) -> int:
    try:
        number = int(str(value))
    except ValueError:
        raise SettingsError(f"{flag}={value} must be an integer") from None
    require(number >= least, f"{flag}={number} must be at least {least}")
    return number


def _find_task() -> _Task:
    """Returns this process's task of a cluster; a task that is alone says nothing.

    JAX's readers of a cluster's environment are imported only where there is a cluster.
    """
    environment, port = os.environ, os.environ.get("JAX_COORDINATOR_PORT")
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in environment:
        from jax._src.clusters import SlurmCluster

        tasks_per_node = _expand(environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
        return _Task(
            cluster="SLURM",
            coordinator=SlurmCluster.get_coordinator_address(None, port),
            num_processes=environment["SLURM_STEP_NUM_TASKS"],
            process_id=environment["SLURM_PROCID"],
            local_id=int(environment.get("SLURM_LOCALID", 0)),
            num_local=tasks_per_node[int(environment.get("SLURM_NODEID", 0))],
        )
    if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        from jax._src.clusters import OmpiCluster

        knows_host = "OMPI_MCA_orte_hnp_uri" in environment  # not from version 5 on
        return _Task(
            cluster="Open MPI",
            coordinator=OmpiCluster.get_coordinator_address(None, port) if knows_host else None,
            num_processes=environment["OMPI_COMM_WORLD_SIZE"],
            process_id=environment["OMPI_COMM_WORLD_RANK"],
            local_id=int(environment["OMPI_COMM_WORLD_LOCAL_RANK"]),
            num_local=int(environment["OMPI_COMM_WORLD_LOCAL_SIZE"]),
        )
    if any(map(os.path.exists, _TPU_DEVICES)):
        import jax  # finds out whether this is a cloud TPU
        from jax._src.clusters import GceTpuCluster, GkeTpuCluster

        del jax
        for pod in (GkeTpuCluster, GceTpuCluster):
            if pod.is_env_present() and (num_processes := pod.get_process_count()) > 1:
                address = pod.get_coordinator_address(60, port)
                return _Task("a TPU pod", address, num_processes, pod.get_process_id())
    return _Task(process_id=environment.get("JOB_COMPLETION_INDEX"))  # an indexed Kubernetes job


def _expand(counts: str) -> list[int]:
    """Returns tasks per node from SLURM's short form: "2(x3),1" is 2, 2, 2, 1."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
    return [int(count) for count, times in found for _ in range(int(times or 1))]


def _num_gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name])
    return len(glob.glob("/dev/nvidia[0-9]*"))


def gpus_of(local_id: int, num_local: int, num_visible: int) -> tuple[int, ...] | None:
    """Returns the visible GPUs of one of several processes on a machine; None is all.

    Each gets an equal share, unless it is alone or sees only its own GPUs already.
    """
    if num_local == 1 or num_visible < num_local or num_visible % num_local:
        return None
    share = num_visible // num_local
    return tuple(range(local_id * share, (local_id + 1) * share))
