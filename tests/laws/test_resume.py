"""A run that is killed or stopped at any moment goes on as if nothing had happened.

Real processes and real signals. One run of 60 steps is the reference of all.
"""

import random
import signal
import time
from pathlib import Path

import pytest
from commands import finish, start, wait_until
from small_runs import RUN, has_reached, tiny_run, write_text

from train.checkpoints.folders import checkpoint_steps
from train.record.run_folder import RunFolder, read_metrics

DETERMINED = ("tokens", "loss", "bits_per_byte", "grad_norm", "learning_rate", "eval/loss")
"""The keys of metrics.jsonl that say nothing of speed."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """60 steps in one go."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    write_text(folder)
    code, output = finish(start(folder, "train", *tiny_run()))
    assert code == 0, output
    return RunFolder(folder / RUN)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Where a run will be that is started in tmp_path."""
    write_text(tmp_path)
    return RunFolder(tmp_path / RUN)


def determined(run: RunFolder) -> dict[int, dict]:
    records = read_metrics(run.metrics)
    return {step: {key: r.get(key) for key in DETERMINED} for step, r in records.items()}


def last_event(run: RunFolder, name: str) -> dict:
    return [event for event in run.read_events() if event["event"] == name][-1]


def assert_same_run(run: RunFolder, reference: RunFolder) -> None:
    assert list(determined(run)) == list(range(1, 61))
    assert determined(run) == determined(reference)
    digests = [last_event(r, "finished")["params_sha256"] for r in (run, reference)]
    assert digests[0] == digests[1]
    for sample in reference.samples.iterdir():
        assert (run.samples / sample.name).read_bytes() == sample.read_bytes()


def unfinished(run: RunFolder) -> int:
    """Returns the step whose save is in progress, 0 if none is."""
    begun = run.checkpoints.glob("*.saving") if run.checkpoints.exists() else ()
    return max((int(path.name.removesuffix(".saving")) for path in begun), default=0)


def test_a_run_killed_at_a_random_step_goes_on_bit_for_bit(tmp_path, run, uninterrupted):
    seed = time.time_ns()
    draw = random.Random(seed)
    step, delay = draw.randint(1, 50), draw.uniform(0, 0.02)
    print(f"seed {seed}: killed {delay:.4f} s after step {step}")
    process = start(tmp_path, "train", *tiny_run())
    wait_until(lambda: has_reached(run.path, step), process)
    time.sleep(delay)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    code, output = finish(start(tmp_path, "train", *tiny_run()))
    assert code == 0, output
    assert_same_run(run, uninterrupted)


@pytest.mark.slow
def test_a_run_killed_while_it_saves_goes_on_bit_for_bit(tmp_path, run, uninterrupted):
    torn = 0
    for _ in range(5):  # the save may end between the look and the kill
        process = start(tmp_path, "train", *tiny_run())
        done = max(checkpoint_steps(run.checkpoints), default=0)
        wait_until(lambda least=done: unfinished(run) > max(least, 10), process)
        process.kill()
        finish(process)
        torn = unfinished(run)
        if torn:
            break
    assert torn, "no kill hit a save"
    code, output = finish(start(tmp_path, "train", *tiny_run()))
    assert code == 0, output
    assert 0 < last_event(run, "resumed")["step"] < torn
    assert_same_run(run, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_bit_for_bit(
    tmp_path, run, uninterrupted, number
):
    process = start(tmp_path, "train", *tiny_run())
    wait_until(lambda: has_reached(run.path, 12), process)
    process.send_signal(number)
    code, output = finish(process)
    assert code == 75, output

    *_, event = run.read_events()
    assert (event["event"], event["cause"]) == ("stopped", number.name)
    assert 12 <= event["step"] < 60
    assert checkpoint_steps(run.checkpoints)[-1] == event["step"]
    assert max(read_metrics(run.metrics)) == event["step"]
    command = last_event(run, "started")["command"]
    assert command.startswith("./tessera train quickstart --data.path text.txt ")
    *_, last_line = (run.logs / "process-0.log").read_text().splitlines()
    assert last_line.endswith(command)

    code, output = finish(start(tmp_path, "train", *tiny_run()))
    assert code == 0, output
    assert last_event(run, "resumed")["step"] == event["step"]
    assert_same_run(run, uninterrupted)


@pytest.mark.slow
def test_a_run_killed_a_dozen_times_goes_on_bit_for_bit(tmp_path, run, uninterrupted):
    seed = time.time_ns()
    draw = random.Random(seed)
    num_kills = 0
    while num_kills < 12 and checkpoint_steps(run.checkpoints)[-1:] != [60]:
        process = start(tmp_path, "train", *tiny_run())
        if num_kills % 2:  # anywhere in the start
            delay = draw.uniform(0, 6)
        else:  # soon after it has saved once more
            done = checkpoint_steps(run.checkpoints)[-1:]
            wait_until(lambda old=done: checkpoint_steps(run.checkpoints)[-1:] > old, process)
            delay = draw.uniform(0, 0.1)
        time.sleep(delay)
        process.kill()
        finish(process)
        num_kills += 1
        saved = checkpoint_steps(run.checkpoints)
        print(f"seed {seed}, kill {num_kills}: after {delay:.4f} s, saved {saved}")
    assert num_kills >= 4, "too fast to be killed often"
    code, output = finish(start(tmp_path, "train", *tiny_run()))
    assert code == 0, output
    assert_same_run(run, uninterrupted)
