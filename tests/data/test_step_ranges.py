"""The place in the data is kept where settings change on the way: no row twice, none left out."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from commands import call
from small_checkpoints import rewrite
from small_data import (
    batches_of,
    data_config,
    item,
    numbered_data,
    open_quietly,
    row_numbers,
)
from small_processes import run_all
from small_runs import RUN, tiny_run, write_text

from data.batches import TrainRows, continue_ranges, train_batches
from data.mixture import Data
from data.step_ranges import StepRange, range_of, step_range
from train.checkpoints.folders import checkpoint_steps
from train.checkpoints.manifest import read_progress
from train.record.run_folder import RunFolder

ROW = data_config(sequence_len=1)
BATCH_SIZES, HOSTS = (8, 16, 4), (1, 4, 2)
ONE_EPOCH = ("--data.sequence_len", "32", "--optim.schedule", "constant")
QUIET = ("--eval.every_steps", "None", "--sample.every_steps", "None")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Data:
    return numbered_data(tmp_path_factory.mktemp("numbered"))


def going_on(ranges, step: int, data: Data, config=ROW, *, batch_size: int, seed: int = 0, **more):
    new = step_range(config, batch_size=batch_size, seed=seed, first_step=step)
    return continue_ranges(ranges, new, data, config, **more)


def rows_of(data: Data, ranges: tuple[StepRange, ...], steps: range, config=ROW) -> list[int]:
    """Returns the numbered rows that steps, from 0, take."""
    return [
        row
        for step in steps
        for row in row_numbers(item(train_batches(data, config, range_of(ranges, step)), step))
    ]


def test_another_batch_size_takes_the_next_row(data):
    ranges: tuple[StepRange, ...] = ()
    found = []
    for stage, (batch_size, num_hosts) in enumerate(zip(BATCH_SIZES, HOSTS, strict=True)):
        first = stage * 3
        ranges = going_on(ranges, first, data, batch_size=batch_size).ranges
        hosts = [list(range(batch_size))[host::num_hosts] for host in range(num_hosts)]
        for step in range(first, first + 3):
            parts = [
                row_numbers(item(train_batches(data, ROW, ranges[-1], rows=rows), step))
                for rows in hosts
            ]
            found += [parts[row % num_hosts][row // num_hosts] for row in range(batch_size)]
    whole = batches_of(data, ROW, batch_size=1, seed=0)
    assert found == [row for place in range(84) for row in row_numbers(item(whole, place))]
    assert len(set(found)) == 84
    assert rows_of(data, ranges, range(9)) == found


def test_what_was_skipped_stays_skipped_under_another_batch_size(data):
    (steps,) = going_on((), 0, data, batch_size=4).ranges
    steps = steps.without_rows(rows for step in (2, 5, 7) for rows in steps.rows(step))
    assert steps.skipped == ((8, 12), (20, 24), (28, 32))
    ranges = going_on((steps,), 4, data, batch_size=6).ranges
    # 4 steps of 4 rows take 0 to 20 without 8 to 12; what follows is 24 to 28, and from 32 on.
    assert [ranges[-1].rows(step) for step in (4, 5)] == [[(24, 28), (32, 34)], [(34, 40)]]
    later = ranges[-1].without_rows([(35, 37)])
    assert later.rows(5) == [(34, 35), (37, 42)]
    assert [range_of((steps, later), step).row(step) for step in (0, 2, 3)] == [0, 12, 16]


@pytest.mark.parametrize("change", [{"sequence_len": 2}, {"packing": "best_fit"}, {"seed": 9}])
def test_another_order_begins_a_fresh_epoch_and_says_what_was_unseen(data, change):
    (steps,) = going_on((), 0, data, batch_size=8).ranges
    seed = change.get("seed", 0)
    own = {name: value for name, value in change.items() if name != "seed"}
    config = data_config(**{"sequence_len": 1, **own})
    found = going_on((steps,), 5, data, config, batch_size=8, seed=seed)
    assert found.num_unseen == 91 - 40
    assert f"{91 - 40} tokens" in found.message()
    assert found.ranges[0] == steps
    rows = TrainRows(data, config, found.ranges[-1])
    num_rows = len(rows.rows[0])
    addresses = [rows.address(place) for place in range(num_rows)]
    assert sorted(address.row for address in addresses) == list(range(num_rows))
    assert {address.epoch for address in addresses} == {1}


def test_an_epoch_that_was_not_broken_off_leaves_nothing_unseen(data):
    (steps,) = going_on((), 0, data, batch_size=13).ranges
    assert going_on((steps,), 7, data, data_config(sequence_len=3), batch_size=13).num_unseen == 0


def test_a_rollback_over_a_change_skips_what_went_wrong_and_begins_the_same_epoch(data):
    (steps,) = going_on((), 0, data, batch_size=8).ranges
    two = data_config(sequence_len=2)
    ranges = going_on((steps,), 20, data, two, batch_size=8).ranges
    again = going_on((steps,), 10, data, two, batch_size=8, left=ranges[-1]).ranges
    assert (again[-1].taken, again[-1].first_step) == (ranges[-1].taken, 10)
    assert again[-1].taken != going_on((steps,), 10, data, two, batch_size=8).ranges[-1].taken


def test_phases_stay_with_their_steps(tmp_path: Path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{name} word\n" * 400)
    entries = tuple(f"{name}={tmp_path / name}.txt" for name in "ab")
    config = data_config(mixture=entries, weights=(1, 1), phases=("11:1,3", "31:3,1"))
    data = open_quietly(config, tmp_path / "cache")
    ranges = going_on((), 0, data, config, batch_size=8).ranges
    ranges = going_on(ranges, 20, data, config, batch_size=16).ranges
    taken: dict[int, list[int]] = {0: [], 1: []}
    shares = Counter()
    for step in range(40):
        steps = range_of(ranges, step)
        schedule = TrainRows(data, config, steps).schedule
        for index in range(steps.batch_size):
            source, nth = schedule[steps.row(step, index)]
            taken[source].append(nth)
            shares[step // 10, source] += 1
    assert {source: nths == list(range(len(nths))) for source, nths in taken.items()} == {
        0: True,
        1: True,
    }
    assert [shares[tens, 0] for tens in range(4)] == [40, 20, 40, 120]


def test_other_weights_go_on_where_each_source_stood(tmp_path: Path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{name} word\n" * 400)
    entries = tuple(f"{name}={tmp_path / name}.txt" for name in "ab")
    config = data_config(mixture=entries, weights=(1, 1))
    data = open_quietly(config, tmp_path / "cache")
    other = dataclasses.replace(config, weights=(1, 3))
    ranges = going_on((), 0, data, config, batch_size=8).ranges
    ranges = going_on(ranges, 5, data, other, batch_size=8).ranges
    schedule = TrainRows(data, other, ranges[-1]).schedule
    assert schedule.counts(40) == [20, 20]
    assert schedule.counts(80) == [30, 50]


def test_a_checkpoint_from_before_goes_on_with_the_row_after_its_batches(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    assert call("train", *tiny_run(*QUIET, *ONE_EPOCH, "--train.num_steps", "10"))[0] == 0
    run = RunFolder(RUN)
    manifest = run.checkpoints / "10" / "manifest.json"
    progress = json.loads(manifest.read_text())["progress"]
    del progress["step_ranges"]
    progress |= {"passed_over": [3, 4], "num_rollbacks": 1, "next_batch_sha256": "0" * 64}
    rewrite(manifest, format_version=3, progress=progress)
    steps = read_progress(run.checkpoints, 10).step_ranges[-1]
    assert (steps.skipped, steps.row(2), steps.row(3), steps.row(10)) == (((24, 40),), 16, 40, 96)
    code, output = call("train", *tiny_run(*QUIET, *ONE_EPOCH, "--train.num_steps", "12"))
    assert code == 0, output
    assert read_progress(run.checkpoints, 12).step_ranges == (steps,)


def rows_seen(steps: range) -> Counter[tuple[int, int]]:
    """Returns how often `inspect --step` shows each row of the run."""
    seen: Counter[tuple[int, int]] = Counter()
    for step in steps:
        code, output = call("inspect", str(RUN), "--step", str(step), "--json")
        assert code == 0, output
        seen.update((row["epoch"], row["row"]) for row in json.loads(output)["rows"])
    return seen


def test_a_run_whose_batch_size_changes_sees_each_row_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    settings = (*QUIET, *ONE_EPOCH, "--train.log_every_steps", "20")
    for num_steps, batch_size in ((10, 8), (20, 16)):
        more = ("--train.num_steps", str(num_steps), "--train.batch_size", str(batch_size))
        code, output = call("train", *tiny_run(*settings, *more, "--allow-changes"))
        assert code == 0, output
    assert "train.batch_size 8 -> 16: step 11 takes the next row, row 80" in output
    num_rows = json.loads(call("inspect", str(RUN), "--step", "1", "--json")[1])["rows"][0][
        "num_rows"
    ]
    assert f", {(10 * 8 + 10 * 16) / num_rows:.3g} epochs" in output
    (event,) = [e for e in RunFolder(RUN).read_events() if e["event"] == "data_changed"]
    assert (event["step"], event["first_row"]) == (10, 80)
    seen = rows_seen(range(1, 21))
    assert set(seen.values()) == {1}
    assert len(seen) == 10 * 8 + 10 * 16
    # A branch goes on with the row after them, whatever its batch size.
    more = ("--train.num_steps", "25", "--train.batch_size", "8", "--run-dir", "branch")
    begin = ("--init-from", str(RUN), "--with-optimizer")
    assert call("train", *tiny_run(*settings, *more, *begin))[0] == 0
    steps = read_progress(Path("branch/checkpoints"), 25).step_ranges[-1]
    assert (steps.row(20), steps.batch_size) == (240, 8)


@pytest.mark.slow
def test_a_branch_on_another_text_begins_with_its_first_row(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    assert call("train", *tiny_run(*QUIET, "--train.num_steps", "10"))[0] == 0
    Path("other.txt").write_text("another text, of 30 cows\n" * 300)
    more = ("--data.path", "other.txt", "--train.num_steps", "12", "--run-dir", "branch")
    begin = ("--init-from", str(RUN), "--with-optimizer")
    code, output = call("train", *tiny_run(*QUIET, *more, *begin))
    assert code == 0, output
    (steps,) = read_progress(Path("branch/checkpoints"), 12).step_ranges
    assert (steps.first_step, steps.row(10)) == (10, 0)
    code, output = call("inspect", "branch", "--step", "10")
    assert code == 2
    assert "--step=10" in output
    assert "above 10" in output


@pytest.mark.slow
def test_rows_that_an_event_names_are_those_of_the_order_of_its_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    for num_steps, length in (("2", "16"), ("4", "8")):
        more = ("--train.num_steps", num_steps, "--data.sequence_len", length, "--allow-changes")
        code, output = call("train", *tiny_run(*QUIET, *more, "--optim.schedule", "constant"))
        assert code == 0, output
    for step in (1, 3):
        by_step, by_row = (
            json.loads(call("inspect", str(RUN), *given, "--step", str(step), "--json")[1])
            for given in ((), ("--first_row", "0"))
        )
        assert by_row == {**by_step, "step": None}


@pytest.mark.slow
def test_each_row_once_though_batch_size_and_hosts_change_on_the_way(tmp_path, monkeypatch):
    """60 steps of 8, 16 and 4 rows, in one process, four and two."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    draw = np.random.default_rng(0)
    lines = [f"{draw.integers(10**6)} sheep\n" for _ in range(2000)]
    Path("text.txt").write_text("".join(lines))
    settings = (*QUIET, *ONE_EPOCH, "--train.log_every_steps", "20", "--allow-changes")
    for stage, (batch_size, num_hosts) in enumerate(zip(BATCH_SIZES, HOSTS, strict=True)):
        more = ("--train.num_steps", str(20 * stage + 20), "--train.batch_size", str(batch_size))
        run_all(tmp_path, tiny_run(*settings, *more), num_processes=num_hosts, num_devices=1)
    seen = rows_seen(range(1, 61))
    assert len(seen) == 20 * sum(BATCH_SIZES)
    assert set(seen.values()) == {1}
    assert {epoch for epoch, _ in seen} == {0}
    assert checkpoint_steps(RunFolder(RUN).checkpoints)[-1] == 60
