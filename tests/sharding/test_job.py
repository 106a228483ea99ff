"""Which job a process belongs to: what flags, SLURM, Open MPI and Kubernetes say of it."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from commands import ROOT
from small_processes import free_port

from configs.errors import SettingsError, TesseraError
from sharding.distributed import rendezvous
from sharding.distributed.job import Job, find_job, gpus_of
from sharding.distributed.rendezvous import meet

SLURM_STEP = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[007-008,011]",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_NTASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No trace of a cluster that the tests themselves may run on."""
    for name in (*SLURM_STEP, *OPEN_MPI, "JOB_COMPLETION_INDEX", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name in ("COORDINATOR_ADDRESS", "COORDINATOR_PORT", "NUM_PROCESSES", "PROCESS_ID"):
        monkeypatch.delenv(f"JAX_{name}", raising=False)


def find(
    monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str], flags: str = ""
) -> Job | None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return find_job(["quickstart", "--train.seed", "1", *flags.split()])


def test_a_process_that_nothing_is_said_of_is_alone(monkeypatch):
    assert find(monkeypatch, {}) is None


@pytest.mark.parametrize(
    "flags",
    [
        "--coordinator host:1234 --num-processes 2 --process-id 1",
        "--coordinator=host:1234 --num_processes=2 --process_id=1",
    ],
)
def test_flags_name_a_job_however_they_are_spelled(monkeypatch, flags):
    expected = Job(coordinator="host:1234", num_processes=2, process_id=1)
    assert find(monkeypatch, {}, flags) == expected


def test_a_slurm_step_names_its_first_node_and_a_port_of_the_job(monkeypatch):
    expected = Job(coordinator="node007:61441", num_processes=3, process_id=2)
    assert find(monkeypatch, SLURM_STEP) == expected


def test_flags_override_a_cluster(monkeypatch):
    job = find(monkeypatch, SLURM_STEP, "--coordinator head:9 --rendezvous-timeout-sec 5")
    assert job == Job(
        coordinator="head:9", num_processes=3, process_id=2, rendezvous_timeout_sec=5.0
    )


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_JOB_ID": "4097", "SLURM_NTASKS": "3"},  # the shell of salloc
        {name: v for name, v in SLURM_STEP.items() if "STEP" not in name},  # the script of sbatch
        {**SLURM_STEP, "SLURM_STEP_NUM_TASKS": "1"},
        {**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "1"},
        {"JOB_COMPLETION_INDEX": "0"},
    ],
)
def test_a_single_task_on_a_cluster_is_alone(monkeypatch, environment):
    assert find(monkeypatch, environment) is None


def test_open_mpi_names_its_launcher(monkeypatch):
    expected = Job(coordinator="10.96.0.1:62624", num_processes=4, process_id=3)
    assert find(monkeypatch, OPEN_MPI) == expected


def test_open_mpi_that_does_not_say_where_its_first_is_needs_the_flag(monkeypatch):
    silent = {name: value for name, value in OPEN_MPI.items() if "uri" not in name}
    with pytest.raises(SettingsError, match=r"Open MPI.* also needs --coordinator"):
        find(monkeypatch, silent)


def test_an_indexed_kubernetes_job_counts_by_its_index(monkeypatch):
    flags = "--coordinator job-0.svc:1234 --num-processes 5"
    job = find(monkeypatch, {"JOB_COMPLETION_INDEX": "4"}, flags)
    assert job == Job(coordinator="job-0.svc:1234", num_processes=5, process_id=4)


def test_variables_stand_for_flags(monkeypatch):
    environment = {
        "JAX_COORDINATOR_ADDRESS": "[::1]:1234",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "0",
    }
    job = find(monkeypatch, environment)
    assert job == Job(coordinator="[::1]:1234", num_processes=2, process_id=0)
    assert job is not None
    assert job.address == ("::1", 1234)


@pytest.mark.parametrize(
    ("local_id", "num_local", "num_visible", "gpus"),
    [
        (0, 1, 8, None),  # alone on its machine: all of them
        (1, 2, 8, (4, 5, 6, 7)),
        (3, 8, 8, (3,)),
        (3, 8, 1, None),  # it sees only its own
        (0, 2, 0, None),  # there are none
    ],
)
def test_processes_of_a_machine_share_its_gpus_evenly(local_id, num_local, num_visible, gpus):
    assert gpus_of(local_id, num_local, num_visible) == gpus


@pytest.mark.parametrize(
    ("visible", "gpus"), [("0,1,2,3", (2, 3)), ("7", None), ("", None)], ids=str
)
def test_a_task_of_two_takes_its_half_of_the_visible_gpus(monkeypatch, visible, gpus):
    two = {"SLURM_STEP_TASKS_PER_NODE": "1(x2),2", "SLURM_LOCALID": "1"}
    job = find(monkeypatch, {**SLURM_STEP, **two, "CUDA_VISIBLE_DEVICES": visible})
    assert job is not None
    assert job.gpus == gpus


def meet_all(jobs: list[Job]) -> list[tuple[int, str]]:
    """Returns exit code and message of each process of these, 0 and nothing where it may go on."""
    heard = [(0, "")] * len(jobs)

    def run(i: int) -> None:
        try:
            meet(jobs[i])
        except TesseraError as refusal:
            heard[i] = (refusal.exit_code, str(refusal))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return heard


def jobs_of(*places: tuple[int, int], rendezvous_timeout_sec: float = 20) -> list[Job]:
    coordinator = f"localhost:{free_port()}"
    return [
        Job(
            coordinator=coordinator,
            process_id=process_id,
            num_processes=num_processes,
            rendezvous_timeout_sec=rendezvous_timeout_sec,
        )
        for process_id, num_processes in places
    ]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not answer is not waited for that long."""
    monkeypatch.setattr(rendezvous, "_ANSWER_SEC", 0.5)


def test_processes_that_all_come_go_on():
    assert meet_all(jobs_of((2, 3), (0, 3), (1, 3))) == [(0, "")] * 3


def test_who_is_missing_is_told_to_all_who_came_and_may_come_the_next_time():
    heard = meet_all(jobs_of((0, 4), (2, 4), rendezvous_timeout_sec=1))
    assert len(set(heard)) == 1
    code, said = heard[0]
    assert code == 75
    assert said.startswith("process 1, 3 of 4 did not connect to --coordinator=localhost:")


def test_a_first_process_that_stays_away_may_come_the_next_time():
    ((code, said),) = meet_all(jobs_of((1, 2), rendezvous_timeout_sec=0.5))
    assert code == 75
    assert said.startswith("process 0 did not answer at --coordinator=localhost:")


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (((0, 3), (1, 3), (1, 3)), "--process-id=1 is given to two processes"),
        (((0, 2), (0, 2)), "--process-id=0 is given to two processes"),
        (((0, 2), (1, 3)), "--num-processes=3 of process 1 must be 2, as in process 0"),
    ],
)
def test_processes_that_do_not_fit_together_are_refused_and_all_say_why(places, said):
    assert meet_all(jobs_of(*places)) == [(2, said)] * len(places)


@pytest.mark.parametrize("end", ["died", "froze"])
def test_a_process_that_is_started_again_during_the_meeting_is_welcome(impatient, end: str):
    first, second, third = jobs_of((0, 3), (1, 3), (2, 3))
    with ThreadPoolExecutor() as pool:
        others = [pool.submit(meet_all, [first])]
        guest = greet(second)
        others.append(pool.submit(meet_all, [third]))
        if end == "died":
            guest.close()
        assert not wait(others, timeout=1.5).done  # the two wait for the one that is gone
        assert meet_all([second]) == [(0, "")]
        assert [other.result() for other in others] == [[(0, "")]] * 2
        guest.close()


def greet(job: Job) -> socket.socket:
    """Comes to the first process of a job as another one of it, and says no more."""
    deadline = time.monotonic() + 20
    while True:
        try:
            guest = socket.create_connection(job.address)
            break
        except OSError:
            assert time.monotonic() < deadline
    guest.sendall(f"tessera {job.process_id} {job.num_processes}\n".encode())
    return guest


def test_a_port_that_the_last_start_still_holds_is_waited_for(impatient):
    jobs = jobs_of((0, 2), (1, 2))
    with ThreadPoolExecutor() as pool, socket.create_server(jobs[0].address) as last:
        met = pool.submit(meet_all, jobs)
        assert not wait([met], timeout=1).done
        last.close()
        assert met.result() == [(0, "")] * 2


def test_a_port_that_stays_taken_may_be_free_the_next_time(impatient):
    jobs = jobs_of((0, 2), rendezvous_timeout_sec=0.5)
    with socket.create_server(jobs[0].address):
        ((code, said),) = meet_all(jobs)
    assert code == 75
    assert "process 0 cannot listen at port" in said
    assert "give a port that is free on its machine" in said


def test_a_stranger_at_the_port_is_not_believed(impatient):
    (job,) = jobs_of((1, 2), rendezvous_timeout_sec=0.5)
    with socket.create_server(job.address) as server, ThreadPoolExecutor() as pool:
        met = pool.submit(meet_all, [job])
        with server.accept()[0] as peer:
            peer.sendall(b"HTTP/1.1 400 Bad Request\r\n")
        ((code, said),) = met.result()
    assert code == 75
    assert "HTTP" not in said


MEETS = """
import resource, sys
from launch.cli import guarded
from sharding.distributed.job import Job
from sharding.distributed.rendezvous import meet

coordinator, num_processes, soft, hard = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_NOFILE, (int(soft), int(hard)))
job = Job(coordinator=coordinator, num_processes=int(num_processes), process_id=0)
sys.exit(guarded(lambda: meet(job) or 0))
"""


@pytest.mark.parametrize("hard", [24, 1024])
def test_too_few_file_handles_are_raised_or_named_by_all(hard: int):
    num_processes = 40
    jobs = jobs_of(*((i, num_processes) for i in range(1, 40)), rendezvous_timeout_sec=5)
    first = subprocess.Popen(
        [sys.executable, "-c", MEETS, jobs[0].coordinator, str(num_processes), "24", str(hard)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    heard = meet_all(jobs)
    _, said = first.communicate(timeout=60)
    if hard > num_processes:
        assert (first.returncode, set(heard)) == (0, {(0, "")})
        return
    assert first.returncode == 2
    assert "ulimit -n allows 24, and a job of 40 processes needs about" in said
    # Those that came after its end have heard nothing.
    assert {line for line in heard if "did not answer" not in line[1]} == {
        (2, said.strip().removeprefix("tessera: "))
    }
