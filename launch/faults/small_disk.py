"""Runs a command whose run folder is on a small disk, fills that disk, and makes room again.

`unshare -Urm python -m launch.faults.small_disk REQUEST COMMAND...`: only these processes see the
disk. The run folder is copied to where the others look at the end.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from train.checkpoints.folders import checkpoint_steps
from train.record.run_folder import RunFolder

_SIZE = "256m"
_FULL_SEC = 10.0
_LIMIT_SEC = 240


def main() -> int:
    """Returns the exit code of the command."""
    request, command = json.loads(sys.argv[1]), sys.argv[2:]
    run = RunFolder(Path(request["run"]))
    run.path.mkdir(parents=True)
    kept = run.path.with_name(f"{run.path.name}.kept")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", run.path], check=True)
    process = subprocess.Popen(command)
    try:
        least, ballast = request["fill_after"], run.path / ".ballast"
        _wait_until(lambda: _newest(run) >= least)
        # Files take up whole pages, so that the next save has not quite the room it needs.
        halfway = _size(run.checkpoints / str(_newest(run)))
        process.send_signal(signal.SIGSTOP)  # or it would write into the room that is measured
        _fill(ballast, spare_bytes=halfway if request["fails"] == "halfway" else 0)
        process.send_signal(signal.SIGCONT)
        log, deadline = run.logs / "process-0.log", time.monotonic() + _FULL_SEC
        _wait_until(  # the log is on that disk too, which may not take the line
            lambda: "could not be saved" in log.read_text() or time.monotonic() > deadline
        )
        time.sleep(0.2)
        ballast.unlink()
        return process.wait(_LIMIT_SEC)
    finally:
        process.kill()
        shutil.copytree(run.path, kept)
        subprocess.run(["umount", "-l", run.path], check=True)
        run.path.rmdir()
        kept.rename(run.path)


def _newest(run: RunFolder) -> int:
    return max(checkpoint_steps(run.checkpoints), default=0)


def _size(checkpoint: Path) -> int:
    return sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())


def _fill(ballast: Path, spare_bytes: int) -> None:
    free = shutil.disk_usage(ballast.parent).free
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(free - spare_bytes, 1))


def _wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LIMIT_SEC
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.001)


if __name__ == "__main__":
    sys.exit(main())
