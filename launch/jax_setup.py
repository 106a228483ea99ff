"""Prepares JAX before its first use: devices, determinism, the cache of compiled programs."""

import ctypes
import hashlib
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.require import require_at_least

if TYPE_CHECKING:
    from sharding.distributed.processes import Processes

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""
_PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain"),
    *("numpy", "sentencepiece"),
)
_M_MMAP_THRESHOLD = -3
"""Of mallopt(3): what is at least this large is mapped by itself, and unmapped when freed."""
_THREADS_PER_DEVICE = 16
"""A virtual device blocks a thread in every collective that waits for the others, and XLA starts
independent ones in any order: without a free thread they would wait for ever."""
_NOT_COMPARED = ("packages", "host", "hosts", "system", "cpu_count", "has_local_changes")
"""Keys of an environment whose changes are not reported."""
_CODE = ("configs", "sharding", "model", "data", "train", "launch")


def prepare_jax(*, virtual_devices: int | None = None, deterministic: bool = False) -> None:
    """Sets what JAX reads when it starts; must come before the first array.

    Args:
        virtual_devices: splits the CPU into so many devices, to try layouts on one machine.
        deterministic: on GPU, only deterministic kernels and no autotuning.
    """
    if deterministic:
        flags = "--xla_gpu_exclude_nondeterministic_ops=true --xla_gpu_autotune_level=0"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()

    import jax

    if virtual_devices is not None:
        require_at_least("--virtual-devices", virtual_devices, 1)
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", virtual_devices)
        if virtual_devices > 1:
            os.environ.setdefault("PJRT_NPROC", str(_THREADS_PER_DEVICE * virtual_devices))
    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def return_freed_memory() -> None:
    """Has what is freed go back to the system at once, for commands that hold whole models.

    By default glibc keeps blocks of up to 32 MiB in its arenas, which comes to as much as a file of
    weights. Other libraries of C have no such setting, and nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**20)


def describe_software() -> dict[str, str]:
    """Returns what must be equal in all processes of a run: versions and the code of Tessera."""
    total = hashlib.sha256()
    for path in sorted(path for folder in _CODE for path in (ROOT / folder).rglob("*.py")):
        total.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return {
        "code (sha256)": total.hexdigest()[:16],
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }


def describe_devices() -> dict[str, Any]:
    """Returns what must be equal in all processes of a run: kind and number of their devices."""
    import jax

    return {
        "kind of devices": jax.local_devices()[0].device_kind,
        "number of devices": jax.local_device_count(),
        "number of processes": jax.process_count(),
    }


def describe_environment(processes: "Processes") -> dict[str, Any]:
    import jax

    device = jax.devices()[0]
    hosts = processes.gather("host", platform.node())
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "platform": device.platform,
        "device_kind": device.device_kind,
        "num_devices": jax.device_count(),
        "num_processes": jax.process_count(),
        "host": platform.node(),
        "hosts": list(dict.fromkeys(hosts)),
        "system": platform.platform(),
        "cpu_count": os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS"),
        "matmul_precision": jax.config.values["jax_default_matmul_precision"],
        **_commit(),
    }


def environment_changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns {name: (before, now)} of changes that may affect results or speed."""
    old, new = ({**e, **e.get("packages", {})} for e in (before, now))
    names = [name for name in new if name not in _NOT_COMPARED]
    return {n: (old[n], new[n]) for n in names if n in old and old[n] != new[n]}


def _commit() -> dict[str, Any]:
    def git(*arguments: str) -> str | None:
        try:
            return subprocess.run(
                ("git", "-C", str(ROOT), *arguments), capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    status = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "has_local_changes": status and bool(status)}
