"""Faults of disks, storage and peers that answer late or with an error."""

import functools
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

from launch.faults.disks import copied_last, expect_last_copy
from launch.faults.trial import LIMIT_SEC, NUM_STEPS, SAVE_STEPS, Broken, Result, Trial
from train.checkpoints.manifest import MANIFEST

_PAIR = 2
_LATE_SEC = 90
_HANG_SEC = 60
"""guard.hang_limit_sec of the slow runs: more than it takes to compile the step beside others."""
_WRITE_MSEC = 10_000
_SLOW_LIMIT_SEC = 2 * LIMIT_SEC


@functools.cache
def build_shim(folder: Path) -> Path:
    """Returns the library for LD_PRELOAD, compiled into a folder; see shim.c."""
    library, source = folder / "shim.so", Path(__file__).with_name("shim.c")
    made = library.with_name(f"{library.name}.{threading.get_ident()}")  # trials run side by side
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(made), str(source), "-ldl", "-pthread"]
    subprocess.run(command, check=True, capture_output=True)
    os.replace(made, library)
    return library


def needs_compiler() -> str | None:
    """Returns what is missing to build it, None if nothing is."""
    return None if shutil.which("cc") else "there is no C compiler (cc)"


class _Disk:
    """A disk that fails, or is slow, while a flag file exists."""

    def __init__(self, trial: Trial, kind: str, path: str):
        self._flag = trial.place.folder / f"{trial.name}-flag"
        self.hit = self._flag.with_name(f"{self._flag.name}.hit")
        self.environment = {
            "LD_PRELOAD": str(build_shim(trial.place.folder)),
            f"TESSERA_{kind}_PATH": path,
            f"TESSERA_{kind}_FLAG": str(self._flag),
            "TESSERA_SLOW_MSEC": str(_WRITE_MSEC),
        }

    def harm(self) -> None:
        self._flag.touch()

    def heal(self) -> None:
        self._flag.unlink()


def save_slowly(trial: Trial) -> Result:
    """After SIGTERM the save takes twice guard.hang_limit_sec: it is waited for (exit code 75)."""
    disk = _Disk(trial, "SLOW", f"{trial.name}/checkpoints/")
    limits = ("--guard.hang_limit_sec", str(_HANG_SEC))
    started = trial.start(*limits, environment=disk.environment)
    started.wait_for_save(trial.rng.randrange(2, 5) * SAVE_STEPS)
    disk.harm()
    began = time.monotonic()
    started.send(signal.SIGTERM)
    started.expect(75, within_sec=_SLOW_LIMIT_SEC)
    _expect_long(began)
    disk.heal()
    trial.finish()
    return trial.exact()


def copy_slowly(trial: Trial) -> Result:
    """The last copy takes twice guard.hang_limit_sec: it is waited for."""
    disk = _Disk(trial, "SLOW", f"{trial.durable.name}/checkpoints/")
    disk.harm()
    limits = ("--guard.hang_limit_sec", str(_HANG_SEC))
    started = trial.start(*limits, *copied_last(trial), environment=disk.environment)
    started.wait_for_save(NUM_STEPS)
    began = time.monotonic()
    started.expect(0, within_sec=_SLOW_LIMIT_SEC)
    _expect_long(began)
    expect_last_copy(trial)
    return trial.exact()


def _expect_long(began: float) -> None:
    if (seconds := time.monotonic() - began) < 2 * _HANG_SEC:
        raise Broken(f"it was not slow: {seconds:.0f} s instead of {2 * _HANG_SEC} s")


def list_stale_files(trial: Trial) -> Result:
    """Two processes each list only some files of a checkpoint: its manifest names all."""
    trial.start(num_processes=_PAIR, fault="stale_listing 0 0").expect(0)
    trial.call("checkpoints", trial.name, "--verify")
    return trial.exact()


def fail_to_read(trial: Trial) -> Result:
    """Reading a manifest fails (EIO): retried, then exit code 75; no checkpoint is quarantined."""
    disk = _Disk(trial, "EIO", MANIFEST)
    started = trial.start(environment=disk.environment)
    started.wait_for_save(trial.rng.randrange(2, NUM_STEPS // SAVE_STEPS - 2) * SAVE_STEPS)
    started.kill()
    newest = trial.saved()
    disk.harm()
    trial.start(environment=disk.environment).expect(75)
    again = trial.start(environment=disk.environment)
    disk.hit.unlink()
    again.wait_until(disk.hit.exists, "error")
    disk.heal()
    again.expect(0)
    trial.expect_event("resumed", step=newest)
    if trial.events("quarantined"):
        raise Broken("a good checkpoint was quarantined")
    return trial.exact()


def come_late(trial: Trial) -> Result:
    """A process starts 90 s late, after the other gave up: both are restarted, and train."""
    started = trial.start("--supervise", num_processes=_PAIR, late_sec=_LATE_SEC)
    started.expect(0, within_sec=_SLOW_LIMIT_SEC)
    if "exit code 75" not in started.logs[0].read_text():
        raise Broken(f"the first process did not give up: {started.last_output()}")
    return trial.exact()
