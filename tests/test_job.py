"""Which job a process belongs to: what flags, SLURM, Open MPI and Kubernetes say of it."""

import threading
from collections.abc import Mapping

import pytest
from small_processes import free_port

from configs.errors import SettingsError
from sharding.job import Job, find_job, gpus_of
from sharding.rendezvous import meet

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
    job = find(monkeypatch, SLURM_STEP, "--coordinator head:9 --start-limit-sec 5")
    assert job == Job(coordinator="head:9", num_processes=3, process_id=2, start_limit_sec=5.0)


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


def meet_all(jobs: list[Job]) -> list[str]:
    """Returns what each process of these hears, nothing where it may go on."""
    heard = [""] * len(jobs)

    def run(i: int) -> None:
        try:
            meet(jobs[i])
        except SettingsError as refusal:
            heard[i] = str(refusal)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return heard


def jobs_of(*places: tuple[int, int], start_limit_sec: float = 20) -> list[Job]:
    coordinator = f"localhost:{free_port()}"
    return [
        Job(
            coordinator=coordinator,
            process_id=process_id,
            num_processes=num_processes,
            start_limit_sec=start_limit_sec,
        )
        for process_id, num_processes in places
    ]


def test_processes_that_all_come_go_on():
    assert meet_all(jobs_of((2, 3), (0, 3), (1, 3))) == ["", "", ""]


def test_who_is_missing_is_told_to_all_who_came():
    heard = meet_all(jobs_of((0, 4), (2, 4), start_limit_sec=1))
    assert len(set(heard)) == 1
    assert heard[0].startswith("process 1, 3 of 4 did not come to --coordinator=localhost:")


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (((0, 3), (1, 3), (1, 3)), "--process-id=1 is given to two processes"),
        (((0, 2), (0, 2)), None),
        (((0, 2), (1, 3)), "--num-processes=3 of process 1 must be 2, as in process 0"),
    ],
)
def test_processes_that_do_not_fit_together_are_refused(places, said):
    heard = meet_all(jobs_of(*places, start_limit_sec=2))
    assert all(heard) or said is None
    assert any(heard)
    if said is not None:
        assert said in heard[0]
