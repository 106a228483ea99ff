"""The processes of a run and the index of this one, from flags, environment or cluster."""

import argparse
import contextlib
import glob
import io
import os
import re
from collections.abc import Mapping, Sequence
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


class _ClusterTask(NamedTuple):
    """This process according to its cluster manager."""

    cluster: str
    coordinator: str | None
    num_processes: int
    process_id: int
    gpus: tuple[int, ...] | None = None


def find_job(arguments: Sequence[str]) -> Job | None:
    """Returns the job this process belongs to, None for a single process.

    In this order: the flags --coordinator, --num-processes and --process-id; the variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID (or JOB_COMPLETION_INDEX, of an
    indexed Kubernetes job); a SLURM step, Open MPI, a TPU pod.

    Raises:
        SettingsError: only a part of it is known, or a number is invalid.
    """
    flags = _flags(arguments)
    task = _slurm() or _open_mpi() or _tpu_pod()
    found: dict[str, str | int | None] = {
        "--coordinator": flags.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"),
        "--num-processes": flags.num_processes or os.environ.get("JAX_NUM_PROCESSES"),
        "--process-id": flags.process_id or os.environ.get("JAX_PROCESS_ID"),
    }
    if task is None and not any(found.values()):
        return None
    if task is not None:
        known = (task.coordinator, task.num_processes, task.process_id)
        found = {
            flag: own if own is not None else said
            for (flag, own), said in zip(found.items(), known, strict=True)
        }
    elif found["--process-id"] is None:
        found["--process-id"] = os.environ.get("JOB_COMPLETION_INDEX")
    _check_all_given(found, task)
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
        gpus=task and task.gpus,
        rendezvous_timeout_sec=flags.rendezvous_timeout_sec,
    )


def _flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the flags of a job, even if other arguments are wrong: all processes report that."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("coordinator", "num_processes", "process_id"):
        parser.add_argument(f"--{name.replace('_', '-')}", f"--{name}", dest=name)
    timeout = ("--rendezvous-timeout-sec", "--rendezvous_timeout_sec")
    parser.add_argument(*timeout, type=float, default=Job.rendezvous_timeout_sec)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return parser.parse_known_args(arguments)[0]
    except SystemExit:  # a flag without its value, which the parser of all settings reports
        return parser.parse_known_args([])[0]


def _check_all_given(found: Mapping[str, object], task: _ClusterTask | None) -> None:
    missing = [flag for flag, value in found.items() if value is None]
    given = " ".join(f"{flag} {value}" for flag, value in found.items() if value is not None)
    if task is not None:
        given += f" (of {task.cluster})"
    require(
        not missing,
        f"{given} also needs {' and '.join(missing)}: a run over several processes needs "
        "--coordinator HOST:PORT, --num-processes N and, in each of them, --process-id I",
    )


def _number(flag: str, value: str | int | None, *, least: int) -> int:
    try:
        number = int(str(value))
    except ValueError:
        raise SettingsError(f"{flag}={value} must be an integer") from None
    require(number >= least, f"{flag}={number} must be at least {least}")
    return number


def _slurm() -> _ClusterTask | None:
    """Returns this process's task in a step started by srun with several tasks."""
    num_processes = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if num_processes == 1 or "SLURM_PROCID" not in os.environ:
        return None
    from jax._src.clusters import SlurmCluster

    port = os.environ.get("JAX_COORDINATOR_PORT")
    tasks = _expand(os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    return _ClusterTask(
        "SLURM",
        SlurmCluster.get_coordinator_address(None, port),
        num_processes,
        int(os.environ["SLURM_PROCID"]),
        gpus_of(
            int(os.environ.get("SLURM_LOCALID", 0)),
            tasks[int(os.environ.get("SLURM_NODEID", 0))],
            _num_gpus(),
        ),
    )


def _expand(counts: str) -> list[int]:
    """Returns tasks per node from SLURM's short form: "2(x3),1" is 2, 2, 2, 1."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
    return [int(count) for count, times in found for _ in range(int(times or 1))]


def _open_mpi() -> _ClusterTask | None:
    """Returns this process's rank among those started by Open MPI's mpirun."""
    num_processes = int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1))
    if num_processes == 1:
        return None
    from jax._src.clusters import OmpiCluster

    port = os.environ.get("JAX_COORDINATOR_PORT")
    knows_host = "OMPI_MCA_orte_hnp_uri" in os.environ  # unset from version 5 on
    return _ClusterTask(
        "Open MPI",
        OmpiCluster.get_coordinator_address(None, port) if knows_host else None,
        num_processes,
        int(os.environ["OMPI_COMM_WORLD_RANK"]),
        gpus_of(
            int(os.environ["OMPI_COMM_WORLD_LOCAL_RANK"]),
            int(os.environ["OMPI_COMM_WORLD_LOCAL_SIZE"]),
            _num_gpus(),
        ),
    )


def _tpu_pod() -> _ClusterTask | None:
    """Returns this process's task in a TPU pod of several hosts."""
    if not any(map(os.path.exists, _TPU_DEVICES)):
        return None
    import jax  # finds out whether this is a cloud TPU
    from jax._src.clusters import GceTpuCluster, GkeTpuCluster

    del jax
    for cluster in (GkeTpuCluster, GceTpuCluster):
        if cluster.is_env_present() and cluster.get_process_count() > 1:
            return _ClusterTask(
                "a TPU pod",
                cluster.get_coordinator_address(60, os.environ.get("JAX_COORDINATOR_PORT")),
                cluster.get_process_count(),
                cluster.get_process_id(),
            )
    return None


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
