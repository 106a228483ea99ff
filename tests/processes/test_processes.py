"""Runs over several processes: real processes, real signals, on the virtual devices of a CPU."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import call, environment_of_child, wait_until
from parts import slowly
from small_data import data_config, prepare_quietly
from small_processes import (
    FASTER_COMPILATION,
    NUM_STEPS,
    RUN,
    finish_all,
    free_port,
    losses,
    run_all,
    small_run,
    start_all,
    start_process,
)
from small_runs import content_of, write_text

from configs.run import MeshConfig
from data.token_store import manifest_entries
from launch.train_settings import parse
from sharding.mesh import make_mesh
from sharding.rules import sharding
from train.checkpoints.folders import checkpoint_steps
from train.checkpoints.parameter_digest import gather_pieces, params_digest
from train.checkpoints.restore import restore_params
from train.record.run_folder import RunFolder, read_metrics
from train.state import abstract_state

LAYOUT = ("--mesh.data", "2", "--mesh.fsdp", "2")
RELATIVE = 1e-5
"""The same terms in float32, added up in another order."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run over two processes with two devices each."""
    folder = tmp_path_factory.mktemp("two")
    write_text(folder)
    return run_all(folder, small_run(*LAYOUT), num_processes=2, num_devices=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_text(tmp_path)
    return tmp_path


def alone(folder: Path, *arguments: str, num_devices: int) -> RunFolder:
    return run_all(folder, small_run(*arguments), num_processes=1, num_devices=num_devices)


def events(run: RunFolder, name: str) -> list[dict]:
    return [event for event in run.read_events() if event["event"] == name]


def assert_same_losses(run: RunFolder, reference: RunFolder) -> None:
    assert len(losses(run)) == NUM_STEPS
    np.testing.assert_allclose(losses(run), losses(reference), rtol=RELATIVE)
    last, expected = (read_metrics(r.metrics)[NUM_STEPS] for r in (run, reference))
    assert last["tokens"] == expected["tokens"]
    assert last["eval/tokens"] == expected["eval/tokens"]
    np.testing.assert_allclose(last["eval/loss"], expected["eval/loss"], rtol=RELATIVE)


def assert_all_end(ended: dict[int, tuple[int, str]], code: int, *said: str) -> None:
    assert {i: c for i, (c, _) in ended.items()} == dict.fromkeys(ended, code), ended
    for _, output in ended.values():
        for words in said:
            assert words in output, output


def test_two_processes_train_as_one_does(undisturbed, folder):
    assert_same_losses(undisturbed, alone(folder, *LAYOUT, num_devices=4))


def test_the_digest_over_two_processes_is_that_of_the_arrays(undisturbed):
    mesh = make_mesh(MeshConfig())
    config = undisturbed.read_config()
    like = abstract_state(config, mesh).params
    params = restore_params(undisturbed.checkpoints, NUM_STEPS, like)
    (finished,) = events(undisturbed, "finished")
    assert finished["params_sha256"] == params_digest(jax.device_get(params))


def test_an_array_is_gathered_in_pieces_of_whole_rows(mesh, rng):
    whole = rng.standard_normal((10, 4, 6)).astype(np.float32)
    array = jax.device_put(whole, sharding(mesh, None, "embed", "heads"))
    pieces = list(gather_pieces(array, piece_bytes=3 * 4 * 6 * 4))
    assert [len(piece) for piece in pieces] == [3, 3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    np.testing.assert_array_equal(
        list(gather_pieces(jax.device_put(whole[0, 0, 0], sharding(mesh)))), [whole[0, 0, 0]]
    )


def test_the_first_process_writes_and_each_has_its_log(undisturbed):
    assert {path.name for path in undisturbed.logs.iterdir()} == {"process-0.log", "process-1.log"}
    assert len(events(undisturbed, "started")) == len(events(undisturbed, "finished")) == 1
    assert len(undisturbed.metrics.read_text().splitlines()) == NUM_STEPS
    assert len(list(undisturbed.tensorboard.iterdir())) == 1
    environment = events(undisturbed, "started")[0]["environment"]
    assert (environment["num_processes"], len(environment["hosts"])) == (2, 1)


def stop_one(folder: Path, number: int) -> RunFolder:
    """Starts a run, sends a signal to process 1 after a few steps, and returns its folder."""
    processes = start_all(folder, small_run(*LAYOUT), num_processes=2, num_devices=2)
    run = RunFolder(folder / RUN)
    wait_until(lambda: 5 in read_metrics(run.metrics), processes[0])
    processes[1].send_signal(number)
    assert_all_end(finish_all(processes), 75, f"{signal.Signals(number).name} of process 1")
    return run


def test_a_signal_to_one_process_stops_all_after_the_same_step(folder):
    run = stop_one(folder, signal.SIGTERM)
    (stopped,) = events(run, "stopped")
    assert (stopped["cause"], stopped["process"]) == ("SIGTERM", 1)
    assert checkpoint_steps(run.checkpoints)[-1] == stopped["step"] < NUM_STEPS
    assert len(losses(run)) == stopped["step"]


@pytest.mark.slow
def test_a_run_that_one_process_stopped_goes_on_bit_for_bit(folder, undisturbed):
    run = stop_one(folder, signal.SIGINT)
    (stopped,) = events(run, "stopped")
    run_all(folder, small_run(*LAYOUT), num_processes=2, num_devices=2)
    assert events(run, "resumed")[0]["step"] == stopped["step"]
    assert losses(run) == losses(undisturbed)
    digests = [events(r, "finished")[-1]["params_sha256"] for r in (run, undisturbed)]
    assert digests[0] == digests[1]


def refuse(folder: Path, *said: str, code: int = 2, **job) -> None:
    """Fails unless all processes end with a code within a minute, say so, and start no run."""
    before = content_of(folder / RUN)
    began = time.monotonic()
    ended = finish_all(start_all(folder, small_run(), num_devices=2, **job))
    assert time.monotonic() - began < 60
    assert_all_end(ended, code, *said)
    assert content_of(folder / RUN) == before


def test_a_process_with_other_settings_is_named_by_all(folder):
    refuse(
        folder,
        *("optim.peak_lr", "process 0 has 0.004, process 1 has 0.005", "started alike"),
        num_processes=2,
        others={1: ("--optim.peak_lr", "0.005")},
    )


@pytest.mark.slow
def test_a_process_with_a_wrong_setting_ends_all(folder):
    refuse(folder, "--optim.peak_l is not", num_processes=2, others={1: ("--optim.peak_l", "1")})


@pytest.mark.slow
def test_a_process_that_stays_away_is_named_by_all(folder):
    limit = ("--rendezvous-timeout-sec", "8")
    others = {0: limit, 2: limit}
    refuse(folder, "process 1 of 3", code=75, num_processes=3, absent=[1], others=others)


UNANSWERED = """
import sys, time
from launch.cli import guarded
from sharding.distributed.job import Job
from sharding.distributed.processes import join

processes = join(Job(coordinator=sys.argv[1], num_processes=2, process_id=int(sys.argv[2])))

def run():
    if not processes.is_first:
        time.sleep(3)
    with processes.together():
        if processes.is_first and sys.argv[3] == "JAX":
            processes._client.blocking_key_value_get("what process 1 never says", 100)
        processes.agree("settings", {}, limit_sec=1)
    return 0

code = guarded(run)
print(f"polls: {processes.num_polls}", flush=True)
processes.end(code)
"""


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("ours", "tessera: process 1 of 2 did not answer within"),
        *slowly(("JAX", "tessera: a process did not answer: ")),
    ],
)
def test_a_process_that_does_not_answer_in_time_is_named_by_all_and_may_the_next_time(limit, said):
    job = (UNANSWERED, f"localhost:{free_port()}")
    processes = {
        i: subprocess.Popen(
            [sys.executable, "-c", *job, str(i), limit],
            env=environment_of_child({**FASTER_COMPILATION, "JAX_PLATFORMS": "cpu"}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    }
    ended = finish_all(processes)
    assert_all_end(ended, 75, said)
    polls = re.search(r"polls: (\d+)", ended[1 if limit == "JAX" else 0][1])
    assert polls is not None
    assert int(polls[1]) >= 2  # one for its own value, and one for each second of waiting


@pytest.mark.slow
def test_the_first_process_that_stays_away_is_named_by_all(folder):
    limit = ("--rendezvous-timeout-sec", "8")
    others = {1: limit, 2: limit}
    refuse(folder, "process 0 did not", code=75, num_processes=3, absent=[0], others=others)


@pytest.mark.slow
def test_a_process_with_another_text_is_named_by_all(folder):
    (folder / "other.txt").write_text("another text " * 1000)
    other = ("--data.path", "other.txt")
    refuse(folder, "data.path", "text.txt", "other.txt", num_processes=2, others={1: other})


@pytest.mark.slow
def test_a_text_that_differs_from_machine_to_machine_is_named_by_all(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "text.txt").write_text("another text " * 1000)
    run_dir = ("--run-dir", str(folder / RUN))
    job = ("--coordinator", f"localhost:{free_port()}", "--num-processes", "2", "--process-id")
    processes = {
        i: start_process(where, *small_run(*run_dir, *job, str(i)))
        for i, where in enumerate((folder, elsewhere))
    }
    assert_all_end(finish_all(processes), 2, "data (sha256): process 0 has", "data.path:")
    assert not (folder / RUN).exists()


@pytest.mark.slow
def test_unequal_numbers_of_devices_are_named_by_all(folder):
    job = ("--coordinator", f"localhost:{free_port()}", "--num-processes", "2", "--process-id")
    processes = {
        i: start_process(
            folder,
            *small_run(*job, str(i)),
            environment={"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": number},
        )
        for i, number in enumerate("24")
    }
    assert_all_end(finish_all(processes), 2, "number of devices: process 0 has 2, process 1 has 4")
    assert not (folder / RUN).exists()


@pytest.mark.slow
def test_a_checkpoint_that_one_process_finds_damaged_is_set_aside_by_all(folder):
    run = run_all(folder, small_run(*LAYOUT), num_processes=2, num_devices=2)
    expected = losses(run)
    files = sorted(run.checkpoints.glob(f"{NUM_STEPS}/state/**/*"))
    damaged = [path for path in files if path.is_file()][1::2][0]  # one that process 1 looks at
    damaged.write_bytes(damaged.read_bytes() + b"x")
    run_all(folder, small_run(*LAYOUT), num_processes=2, num_devices=2)
    (event,) = events(run, "quarantined")
    assert (event["step"], str(damaged) in event["cause"]) == (NUM_STEPS, True)
    assert events(run, "resumed")[-1]["step"] < NUM_STEPS
    assert losses(run) == expected


@pytest.mark.slow
def test_damaged_data_ends_all_processes_though_one_alone_looks_at_it(folder):
    store = prepare_quietly(data_config(folder / "text.txt"), folder / "cache")
    damaged = store.folder / manifest_entries(store.manifest)[1]["file"]  # of the part of process 1
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    data = ("--data.path", str(store.folder))
    ended = finish_all(start_all(folder, small_run(*data), num_processes=2, num_devices=2))
    assert_all_end(ended, 65, f"{damaged} has sha256")
    assert "process 1 has ended" in ended[0][1]
    assert not (folder / RUN).exists()


@pytest.mark.slow
def test_an_error_of_ours_in_one_process_ends_all(folder):
    (folder / RUN / "logs" / "process-1.log").mkdir(parents=True)
    run = RunFolder(folder / RUN)
    run.begin(parse(small_run("--model.vocab_size", "257"))[1].config, {})
    processes = start_all(folder, small_run(*LAYOUT), num_processes=2, num_devices=2)
    assert_all_end(finish_all(processes), 70, "IsADirectoryError")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--coordinator localhost:1", ("--num-processes", "--process-id")),
        ("--num-processes 2 --process-id 0", ("--coordinator",)),
        ("--coordinator localhost:1 --num-processes 2 --process-id 2", ("must be below",)),
        ("--coordinator localhost:1 --num-processes two --process-id 0", ("two", "an integer")),
        ("--coordinator localhost --num-processes 2 --process-id 0", ("HOST:PORT",)),
        ("--start-limit-sec 5", ("--start-limit-sec", "use --rendezvous-timeout-sec")),
    ],
)
def test_flags_that_name_no_job_are_refused(flags: str, said: tuple[str, ...]):
    code, output = call("train", *small_run(*flags.split()))
    assert code == 2
    for words in said:
        assert words in output


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("step", [None, 0, 5])
def test_a_killed_process_ends_the_others(folder, killed, step):
    processes = start_all(folder, small_run(*LAYOUT), num_processes=2, num_devices=2)
    run = RunFolder(folder / RUN)
    reached = {
        None: lambda: (folder / "runs" / ".data").exists(),  # as the data is opened
        0: lambda: bool(run.path.exists() and events(run, "started")),  # as the step is compiled
        5: lambda: 5 in read_metrics(run.metrics),
    }
    wait_until(reached[step], processes[0])
    processes[killed].kill()
    ended = finish_all(processes, within_sec=60)
    assert ended[killed][0] == -signal.SIGKILL
    assert ended[1 - killed][0] not in (0, 2), ended
    run_all(folder, small_run(*LAYOUT), num_processes=2, num_devices=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        ("--mesh.data", "2", "--mesh.fsdp", "4"),
        ("--mesh.fsdp", "4", "--mesh.tensor", "2"),
        ("--mesh.context", "4"),
        ("--mesh.stage", "2", "--mesh.tensor", "2"),
    ],
    ids=str,
)
def test_eight_devices_train_alike_whatever_the_number_of_processes(tmp_path, layout):
    runs = []
    for num_processes in (1, 2, 4):
        folder = tmp_path / str(num_processes)
        folder.mkdir()
        write_text(folder)
        sizes = "--train.batch_size 16 --eval.batch_size 16 --model.num_kv_heads 2"
        arguments = small_run(*sizes.split(), *layout)
        devices = 8 // num_processes
        runs.append(run_all(folder, arguments, num_processes=num_processes, num_devices=devices))
    for run in runs[1:]:
        assert_same_losses(run, runs[0])


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 4])
def test_a_checkpoint_of_two_processes_goes_on_in_other_ones(folder, num_processes):
    layout = ("--mesh.data", "2", "--mesh.fsdp", "4")
    processes = start_all(folder, small_run(*layout), num_processes=2, num_devices=4)
    run = RunFolder(folder / RUN)
    wait_until(lambda: 5 in read_metrics(run.metrics), processes[0])
    processes[0].send_signal(signal.SIGTERM)
    assert_all_end(finish_all(processes), 75)
    devices = 8 // num_processes
    run_all(folder, small_run(*layout), num_processes=num_processes, num_devices=devices)
    reference = folder / "reference"
    reference.mkdir()
    write_text(reference)
    assert_same_losses(run, alone(reference, *layout, num_devices=8))
