"""Prepares JAX before its first use: devices, determinism, the cache of compiled programs."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from configs.check import require_at_least

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""
_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "sentencepiece",
)


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
    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def describe_environment() -> dict[str, Any]:
    """Returns versions, devices, host and commit, for environment.json."""
    import jax

    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "platform": device.platform,
        "device_kind": device.device_kind,
        "num_devices": jax.device_count(),
        "num_processes": jax.process_count(),
        "host": platform.node(),
        "system": platform.platform(),
        "cpu_count": os.cpu_count(),
        **_commit(),
    }


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
