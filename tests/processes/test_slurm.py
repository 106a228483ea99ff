"""A run as a step of a real SLURM: its daemons on this machine, `srun -n 2 ./tessera train ...`."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ROOT, environment_of_child, wait_until
from small_processes import FASTER_COMPILATION, NUM_STEPS, RUN, free_port, losses, small_run
from small_runs import write_text

from train.record.run_folder import RunFolder, read_metrics

DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIG = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP OverSubscribe=FORCE:4
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
MpiDefault=none
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A SLURM of one node; gives the environment in which its commands find it."""
    missing = [name for name in (*DAEMONS, "srun") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not found: apt install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("the daemons of SLURM want to be root here")
    folder = tmp_path_factory.mktemp("slurm")
    for parent in (folder, *folder.parents[:3]):
        parent.chmod(0o755)  # munged refuses a socket that others could replace or not reach
    config, key = folder / "slurm.conf", folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    config.write_text(
        CONFIG.format(
            host=os.uname().nodename.split(".")[0],
            cpus=os.cpu_count(),
            ports=(free_port(), free_port()),
            folder=folder,
        )
    )
    environment = environment_of_child(
        {**FASTER_COMPILATION, "SLURM_CONF": str(config), "TESSERA_PYTHON": sys.executable}
    )
    commands = (
        [
            *("munged", "--foreground", "--force", f"--key-file={key}"),
            *(f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid"),
            *(f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed"),
        ],
        ["slurmctld", "-D", "-f", str(config)],
        ["slurmd", "-D", "-f", str(config)],
    )
    with (folder / "daemons.log").open("w") as log:
        daemons = [
            subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            for command in commands
        ]
        try:
            _wait_until_idle(environment, folder)
            yield environment
        finally:
            for daemon in reversed(daemons):
                daemon.send_signal(signal.SIGTERM)
                daemon.wait(30)


def _wait_until_idle(environment: dict[str, str], folder: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        command = ["sinfo", "--noheader", "--format=%T"]
        found = subprocess.run(command, env=environment, capture_output=True, text=True)
        if found.stdout.strip() == "idle":
            return
        logs = "".join(path.read_text(errors="replace") for path in folder.glob("*.log"))
        assert time.monotonic() < deadline, f"{found}\n{logs}"
        time.sleep(0.5)


def srun(environment: dict[str, str], folder: Path) -> "subprocess.Popen[str]":
    """Starts a run of two tasks with two devices each, at the size of a test."""
    train = [str(ROOT / "tessera"), "train", *small_run("--mesh.fsdp", "2")]
    return subprocess.Popen(
        ["srun", "-n", "2", *train, "--virtual-devices", "2"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_tasks_of_a_step_train_one_run_and_stop_together(slurm, tmp_path: Path):
    write_text(tmp_path)
    run = RunFolder(tmp_path / RUN)
    step = srun(slurm, tmp_path)
    wait_until(lambda: 4 in read_metrics(run.metrics), step)
    subprocess.run(["scancel", "--signal=TERM", *_job_ids(slurm)], env=slurm, check=True)
    output = step.communicate(timeout=120)[0]
    assert step.returncode == 75, output
    assert run.read_events()[-1]["event"] == "stopped"

    step = srun(slurm, tmp_path)
    output = step.communicate(timeout=240)[0]
    assert step.returncode == 0, output
    assert run.read_events()[-1]["event"] == "finished"
    assert len(losses(run)) == NUM_STEPS
    started = [event for event in run.read_events() if event["event"] == "started"]
    assert [event["environment"]["num_processes"] for event in started] == [2, 2]


def _job_ids(environment: dict[str, str]) -> list[str]:
    command = ["squeue", "--noheader", "--format=%i"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return found.stdout.split()
