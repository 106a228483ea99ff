"""Faults of disks, files and clocks: damage, a full disk, refused writes, a clock set back."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from launch.faults.trial import (
    LIMIT_SEC,
    NUM_STEPS,
    SAVE_STEPS,
    Broken,
    Result,
    Started,
    Trial,
)
from train.checkpoints.manifest import MANIFEST, STATE
from train.record.time_ledger import CATEGORIES

_FAKETIME = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib*/faketime/libfaketimeMT.so.1")
_SET_BACK_SEC = 7200


def flip_a_byte(trial: Trial) -> Result:
    """A bit of the newest checkpoint is flipped: it is quarantined, the one before is used."""

    def flip(checkpoint: Path) -> None:
        path = _largest(checkpoint)
        content = bytearray(path.read_bytes())
        content[trial.rng.randrange(len(content))] ^= 1 << trial.rng.randrange(8)
        path.write_bytes(content)

    return _damage(trial, flip)


def truncate_a_file(trial: Trial) -> Result:
    """The newest checkpoint has a truncated file: quarantined, the one before is used."""

    def truncate(checkpoint: Path) -> None:
        path = _largest(checkpoint)
        os.truncate(path, trial.rng.randrange(path.stat().st_size))

    return _damage(trial, truncate)


def lose_the_manifest(trial: Trial) -> Result:
    """The newest checkpoint has no manifest: quarantined, the one before is used."""
    return _damage(trial, lambda checkpoint: (checkpoint / MANIFEST).unlink())


def _damage(trial: Trial, damage: Callable[[Path], object]) -> Result:
    """The damage is found before use, the checkpoint quarantined, and the one before it used."""
    started = trial.start()
    started.wait_for_save(trial.rng.randrange(2, NUM_STEPS // SAVE_STEPS - 2) * SAVE_STEPS)
    started.kill()
    newest = trial.saved()
    damage(trial.run.checkpoints / str(newest))
    trial.finish()
    trial.expect_event("quarantined", step=newest)
    trial.expect_event("resumed", step=newest - SAVE_STEPS)
    if not (trial.run.checkpoints / f"{newest}.bad").is_dir():
        raise Broken(f"checkpoint {newest} was not renamed to {newest}.bad")
    return trial.exact()


def _largest(checkpoint: Path) -> Path:
    files = [path for path in (checkpoint / STATE).rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def fill_the_disk(trial: Trial) -> Result:
    """The disk is full during a save: training continues, logs the failure and saves later."""
    script = [sys.executable, "-m", "launch.faults.small_disk"]
    request = {
        "run": str(trial.run.path),
        "fill_after": trial.rng.randrange(2, 6) * SAVE_STEPS,
        "fails": trial.rng.choice(("at once", "halfway")),
    }
    prefix = ("unshare", "-Urm", *script, json.dumps(request))
    trial.start(prefix=prefix).expect(0)
    trial.expect_event("save_failed")
    return trial.exact()


def needs_unshare() -> str | None:
    """Returns what is missing to mount a small disk, None if nothing is."""
    if shutil.which("unshare") is None:
        return "unshare is not installed (util-linux)"
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        return "unshare -Urm is not allowed here, so there is no disk to fill"
    return None


def refuse_writes(trial: Trial) -> Result:
    """The checkpoint folder refuses writes for a while: failed saves are logged, none is torn."""
    started = trial.start()
    started.wait_for_save(trial.rng.randrange(1, NUM_STEPS // SAVE_STEPS - 3) * SAVE_STEPS)
    folder = trial.run.checkpoints
    away = folder.with_name("checkpoints.away")
    folder.rename(away)
    folder.touch()  # a file, so that nobody can write into it: root neither
    trial.place.stopped.wait(trial.place.refused_sec)
    folder.unlink()
    away.rename(folder)
    started.expect(0)
    trial.expect_event("save_failed")
    return trial.exact()


def refuse_copies(trial: Trial) -> Result:
    """Durable storage refuses writes for a while: failed copies are logged and repeated."""
    started = trial.start("--checkpoint.durable_dir", str(trial.durable))
    started.wait_until(lambda: bool(trial.events("copied")), "copy")
    return _refuse_a_copy(trial, started)


def refuse_the_last_copy(trial: Trial) -> Result:
    """The last copy fails once: it is repeated before the run ends (exit code 0)."""
    started = trial.start(*copied_last(trial))
    started.wait_for_save(NUM_STEPS - 3 * SAVE_STEPS)
    return _refuse_a_copy(trial, started)


def copied_last(trial: Trial) -> tuple[str, ...]:
    """Returns the settings with which only the last checkpoint is copied."""
    period = ("--checkpoint.durable_every_steps", str(NUM_STEPS))
    return ("--checkpoint.durable_dir", str(trial.durable), *period)


def _refuse_a_copy(trial: Trial, started: Started) -> Result:
    durable = trial.durable
    durable.rename(away := durable.with_name(f"{durable.name}-away"))
    durable.touch()
    started.wait_until(lambda: bool(trial.events("copy_failed")), "copy that failed")
    durable.unlink()
    away.rename(durable)
    started.expect(0)
    expect_last_copy(trial)
    return trial.exact()


def expect_last_copy(trial: Trial) -> None:
    """Raises Broken unless durable storage has the last checkpoint."""
    if not (trial.durable / "checkpoints" / str(NUM_STEPS) / MANIFEST).is_file():
        raise Broken("durable storage does not have the last checkpoint")


def start_twice(trial: Trial) -> Result:
    """A second run in the folder of a running one is refused (exit code 2); the first finishes."""
    started = trial.start()
    started.wait_for_step(1)
    started.send(signal.SIGSTOP)  # or it may finish before the second starts
    second = trial.start()
    second.expect(2)
    started.send(signal.SIGCONT)
    if str(started.processes[0].pid) not in second.last_output():
        raise Broken(f"the second does not name the first: {second.last_output()}")
    started.expect(0)
    return trial.exact()


def set_the_clock_back(trial: Trial) -> Result:
    """The clock is set back, twice: no step is lost, and the time ledger stays right."""
    clock = trial.place.folder / f"{trial.name}-clock"
    clock.write_text("+0\n")
    environment = {
        "LD_PRELOAD": _libfaketime() or "",
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    started = trial.start(environment=environment)
    step = trial.rng.randrange(1, NUM_STEPS // 2)
    started.wait_for_step(step)
    clock.write_text(f"-{_SET_BACK_SEC}\n")
    started.wait_for_save(step + 1)  # on the other clock
    started.kill()
    clock.write_text(f"-{2 * _SET_BACK_SEC}\n")
    trial.start(environment=environment).expect(0)
    trial.expect_event("clock_set_back")
    last = json.loads(trial.run.ledger.read_text())["seconds"]
    if any(not 0 <= last[kind] < LIMIT_SEC for kind in CATEGORIES):
        raise Broken(f"the ledger says {last}")
    return trial.exact()


def needs_faketime() -> str | None:
    """Returns what is missing to set a clock back, None if nothing is."""
    return None if _libfaketime() else "libfaketime is not installed (Debian: faketime)"


def _libfaketime() -> str | None:
    found = [path for pattern in _FAKETIME for path in Path("/").glob(pattern.removeprefix("/"))]
    return str(found[0]) if found else None


def change_the_layout(trial: Trial) -> Result:
    """Killed, resumed on four devices, then on two processes: the same batches by digest."""
    layouts = [
        (("--virtual-devices", "4", "--mesh.fsdp", "4", "--mesh.data", "1"), 1),
        (("--mesh.fsdp", "2", "--mesh.data", "1"), 2),
    ]
    started, wanted = trial.start(), trial.place.reference(1)
    for number, (layout, num_processes) in enumerate(layouts, start=1):
        started.wait_for_save(number * (NUM_STEPS // 3))
        for i in range(len(started.processes)):
            started.kill(i)
        started = trial.start(*layout, num_processes=num_processes)
    started.expect(0)
    found = trial.outputs()
    if found.next_batches != wanted.next_batches or len(found.next_batches) < 2:
        raise Broken("the batches differ from those of the undisturbed run")
    for step, loss in wanted.losses.items():
        other = found.losses.get(step)
        if loss is None or other is None or abs(other - loss) > 1e-4 * loss:
            raise Broken(f"the loss of step {step} is {other}, not {loss}")
    return Result(steps_lost=trial.steps_lost())
