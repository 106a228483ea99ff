"""Where tasks run does not matter: one process, several, or a Ray cluster of several nodes."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from commands import wait_until
from small_prepare import finish, kill, run, session_of, start, workers_of, write_corpus
from small_runs import content_of

from configs.errors import SettingsError
from data.atomic_files import atomic_write
from data.prepare.engine import Workers
from data.prepare.work_folder import WORK
from data.token_store import MANIFEST

COMMAND = ["prepare", "--data.path", "texts", "--data.tokenizer", "bytes"]


def double(number: int, wait_for: str | None, make: str) -> int:
    while wait_for and not Path(wait_for).exists():
        time.sleep(0.01)
    Path(make).touch()
    return 2 * number


def refuse(number: int) -> None:
    raise SettingsError(f"data.path: {number} is not a text")


def fill(path: str) -> None:
    with atomic_write(Path(path)):
        raise OSError(28, "No space left on device")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray cluster of two nodes with one core each."""
    ray = pytest.importorskip("ray", reason="the package ray is an extra, and not installed")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    with pytest.MonkeyPatch.context() as monkeypatch:
        cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            cluster.add_node(num_cpus=1)
            monkeypatch.setenv("RAY_ADDRESS", cluster.address)
            yield cluster.address
        finally:
            ray.shutdown()
            cluster.shutdown()


def ended(workers: Workers, function, calls) -> dict:
    return dict(workers.run(function, calls))


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_every_call_is_answered_once_under_its_number(tmp_path, num_workers):
    """As they are done, not as they were given: of several workers one waits for the last call."""
    paths = [str(tmp_path / f"{number}") for number in range(7)]
    waits = [paths[6] if num_workers > 1 else None, *[None] * 6]
    found = list(Workers(num_workers).run(double, list(zip(range(7), waits, paths, strict=True))))
    assert sorted(found) == [(number, 2 * number) for number in range(7)]
    if num_workers > 1:
        assert found[0][0] != 0
    assert list(Workers(num_workers).run(double, [])) == []


def test_workers_are_ended_though_they_are_at_work(tmp_path):
    paths = [str(tmp_path / name) for name in ("first", "never", "second")]
    calls = Workers(2).run(double, [(1, None, paths[0]), (2, paths[1], paths[2])])
    assert isinstance(calls, Generator)
    assert next(calls) == (0, 2)
    workers = [worker.pid for worker in multiprocessing.active_children()]
    assert len(workers) == 2
    began = time.monotonic()
    calls.close()  # as after Ctrl-C, or after what another call has raised
    assert time.monotonic() - began < 10
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_a_worker_refuses_is_refused_in_its_words(num_workers, tmp_path):
    with pytest.raises(SettingsError, match=r"^data\.path: 3 is not a text$"):
        ended(Workers(num_workers), refuse, [(3,), (3,)])
    with pytest.raises(SettingsError, match=f"no space is left .* {tmp_path}/a: free some"):
        ended(Workers(num_workers), fill, [(f"{tmp_path}/a",)] * 2)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_told_and_none_is_left(tmp_path):
    write_corpus(tmp_path / "texts")
    out = tmp_path / "out"
    command = start(tmp_path, *COMMAND, "--num_workers", "2", "--out", "out")
    wait_until(lambda: len(list((out / WORK).glob("shards-*.json"))) > 1)
    os.kill(workers_of(command)[-1], signal.SIGKILL)
    code, said = finish(command)
    assert code == 75
    assert "one of 2 worker processes was killed" in said
    assert "run the same command again to resume" in said
    lines = [line for line in said.splitlines() if not line.endswith(" elapsed")]  # of progress
    assert len(lines) == 3
    assert not workers_of(command)
    assert not (out / MANIFEST).exists()
    for name in ("out", "undisturbed"):
        code, said = run(tmp_path, *COMMAND, "--num_workers", "1", "--out", name)
        assert code == 0, said
    assert content_of(out) == content_of(tmp_path / "undisturbed")


@pytest.mark.slow
def test_ray_makes_the_same_bytes_on_two_nodes(tmp_path, cluster):
    write_corpus(tmp_path / "texts")
    for engine in ("local", "ray"):
        options = ["--engine", engine, "--num_workers", "1", "--out", engine]
        code, said = run(tmp_path, *COMMAND, *options, RAY_ADDRESS=cluster)
        assert code == 0, said
    assert content_of(tmp_path / "ray") == content_of(tmp_path / "local")


@pytest.mark.slow
def test_ray_tells_what_a_worker_refuses(tmp_path, cluster):
    write_corpus(tmp_path / "texts", 300)
    with (tmp_path / "texts" / "a.jsonl").open("a") as file:
        file.write("no JSON\n")
    said = []
    for engine in ("local", "ray"):
        options = ["--engine", engine, "--num_workers", "1", "--out", engine]
        code, output = run(tmp_path, *COMMAND, *options, RAY_ADDRESS=cluster)
        assert code == 2, output
        said.append(output.splitlines()[-1])  # Ray may add lines of its own before it
    assert said[0] == said[1]
    assert "a.jsonl, line 301 is not JSON" in said[1]
    assert list(Workers(engine="ray").run(double, [])) == []


@pytest.mark.slow
def test_ray_tells_that_a_worker_is_lost_again_and_again(cluster):
    with pytest.raises(SettingsError, match=r"a worker of --engine=ray was killed .* goes on"):
        ended(Workers(engine="ray"), os.abort, [()])


def calls_on_ray() -> list[int]:
    """Returns the processes of this machine that run a call on a Ray cluster."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith(b"ray::_call"):
                found.append(int(path.parent.name))
    return found


@pytest.mark.slow
def test_ray_bears_the_loss_of_a_worker(tmp_path, cluster):
    write_corpus(tmp_path / "texts", 20_000)
    command = start(tmp_path, *COMMAND, "--engine", "ray", "--out", "out", RAY_ADDRESS=cluster)
    wait_until(lambda: len(list((tmp_path / "out" / WORK).glob("shards-*.json"))) > 1)
    wait_until(calls_on_ray)
    for pid in calls_on_ray():
        os.kill(pid, signal.SIGKILL)
    code, said = finish(command)
    assert code == 0, said
    run(tmp_path, *COMMAND, "--out", "undisturbed")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_killed_preparation_on_ray_goes_on_to_the_same_bytes(tmp_path, cluster):
    write_corpus(tmp_path / "texts", 20_000)
    options = ["--engine", "ray", "--out", "out"]
    command = start(tmp_path, *COMMAND, *options, RAY_ADDRESS=cluster)
    wait_until(lambda: len(list((tmp_path / "out" / WORK).glob("shards-*.json"))) > 1)
    kill(command, whole_group=False)
    finish(command)
    assert not (tmp_path / "out" / MANIFEST).exists()
    code, said = run(tmp_path, *COMMAND, *options, RAY_ADDRESS=cluster)
    assert code == 0, said
    run(tmp_path, *COMMAND, "--out", "undisturbed")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "undisturbed")


@pytest.mark.slow
def test_ray_of_this_machine_leaves_no_process(tmp_path):
    """Without RAY_ADDRESS a cluster is started for the command, and ends with it."""
    write_corpus(tmp_path / "texts", 300)
    command = start(tmp_path, *COMMAND, "--engine", "ray", "--out", "ray")
    code, said = finish(command)
    assert code == 0, said
    wait_until(lambda: not session_of(command), within_sec=20)
    run(tmp_path, *COMMAND, "--out", "local")
    assert content_of(tmp_path / "ray") == content_of(tmp_path / "local")


def test_a_ray_cluster_that_is_not_there_is_refused(tmp_path):
    write_corpus(tmp_path / "texts", 100)
    options = ["--engine", "ray", "--out", "out"]
    code, said = run(tmp_path, *COMMAND, *options, RAY_ADDRESS="127.0.0.1:1")
    assert code == 2, said
    assert "RAY_ADDRESS=127.0.0.1:1" in said
    assert "Traceback" not in said
