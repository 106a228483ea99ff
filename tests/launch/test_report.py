"""`./tessera report`: all that a run has recorded, on a page that is harmless."""

import contextlib
import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import ROOT
from small_inspect import Page
from small_report import (
    HOSTILE,
    LEDGER,
    begin_run,
    event,
    eventful_run,
    ledger_of,
    record,
    save,
    write_lines,
)

from configs.errors import SettingsError
from launch.commands.report import main
from launch.pages.curves import Scale, thinned
from launch.pages.run_page import _CLASSES
from launch.reading.event_messages import event_messages, name_of
from launch.reading.run_report import read_report
from train.record.events import ISSUES, MESSAGES
from train.record.run_folder import RunFolder


def report(run: Path, *more: str) -> tuple[str, str]:
    """Returns the page of a run, and what the command said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main([str(run), *more]) == 0
    return (run / "report.html").read_text(), said.getvalue()


def report_json(run: Path) -> dict[str, Any]:
    return json.loads(report(run, "--json")[1].splitlines()[-1])


@pytest.fixture(scope="module")
def eventful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return eventful_run(tmp_path_factory.mktemp("runs") / "run <i>").path


def test_whatever_a_run_holds_is_shown_as_text(eventful: Path):
    content, _ = report(eventful)
    page = Page(content)
    assert not page.elements & {"script", "i", "iframe", "img", "link", "a", "object", "form"}
    assert "<script" not in content
    assert all("alert" not in value for name, value in page.attributes if name.startswith("on"))
    assert {name for name, _ in page.attributes} <= {
        *("lang", "charset", "http-equiv", "content", "name", "class", "style", "title", "role"),
        *("aria-label", "viewbox", "x", "y", "x1", "y1", "x2", "y2", "cx", "cy", "r", "rx"),
        *("width", "height", "fill", "points", "text-anchor", "transform", "font-size"),
    }
    places = (
        "sheep",
        "copied the checkpoint of step 50 to s3://",
        "no space left",
        "./tessera train",
        "→",
        "why",
    )
    lines = page.text.splitlines()
    for place in places:
        assert any(HOSTILE in line and place in line for line in lines), place
    assert "\\x1b[31m" in page.text


def test_every_issue_is_shown_with_its_cause(eventful: Path):
    events = RunFolder(eventful).read_events()
    text = Page(report(eventful)[0]).text
    assert {*ISSUES} - {name_of(e) for e in events} == {"copy_failed", "not_removed"}
    run = shlex.quote(str(eventful))
    for words in (
        "4 nonfinite steps, steps 40 to 43",
        "rolled back from step 45 to step 30, skipping sequences 312 to 343",
        "the checkpoint of step 35 could not be saved",
        "save took 61 s, more than the limit of 60 s; stack traces are in logs/stacks-0.txt",
        "ended with exit code 124 (hung)",
        "restarted 2 s after exit code 137 (SIGKILL)",
        "the checkpoint of step 40 is damaged",
        "step 50, computed twice, gave two results: devices cpu:1",
        "the system clock was set back by 3,600 s",
        f"process 3 slows down the others: {HOSTILE}",
        f"./tessera inspect {run} --first-row 312 --step 45",
        f"./tessera inspect {run} --step 50",
        f"./tessera checkpoints {run} --verify",
        f"decoder.{HOSTILE}[0]",
    ):
        assert words in text, words


@pytest.mark.parametrize(
    "name", [*MESSAGES, "changed", "environment_changed", "of another version"]
)
def test_an_event_of_an_old_run_may_lack_any_of_its_keys(name: str):
    (message,) = event_messages([{"event": name}], "run")
    assert message.time == "unknown"
    assert "{" not in message.text


def test_the_ledger_names_every_second_and_is_checked_against_the_clock(eventful: Path):
    found = report_json(eventful)
    assert found["ledger"] == LEDGER
    assert (found["goodput"], found["wall_clock_sec"]) == (0.7, 1001.5)
    assert found["unaccounted_sec"] == 1.5
    text = Page(report(eventful)[0]).text
    for kind, seconds in LEDGER.items():
        shown = rf"{_CLASSES[kind][0]}: [^%]*\d:\d\d:\d\d{seconds:.0f}{seconds / 10:.1f}%"
        assert re.search(shown, text), kind
    assert "1,001.5 s passed" in text
    assert "the classes sum to 1,000.0 s (1.5 s less)" in text


def test_the_time_of_a_run_is_that_of_one_moment_whatever_came_since_its_last_record(
    tmp_path: Path,
):
    """The last record is a quarter older than the ledger's file, of which 100 s are no step."""
    folder = begin_run(tmp_path / "running")
    write_lines(folder.metrics, [record(step, **ledger_of(step / 60)) for step in range(1, 46)])
    now = LEDGER | {"evaluation": 130.0}
    content = {"first_start": 1000.0, "beat": 2100.0, "finished": False, "seconds": now}
    folder.ledger.write_text(json.dumps(content))
    found = report_json(folder.path)
    assert found["ledger"] == now
    assert found["goodput"] == pytest.approx(700 / 1100)
    assert (found["wall_clock_sec"], found["unaccounted_sec"]) == (1100.0, 0.0)
    text = Page(report(folder.path)[0]).text
    assert "total since the first start0:18:201,100100.0%" in text
    assert "the classes sum to 1,100.0 s (0.0 s more)" in text
    assert "0:18:20" in text
    assert "63.6%" in text


def test_without_its_file_the_ledger_is_that_of_the_last_record(tmp_path: Path):
    folder = begin_run(tmp_path / "copied")
    write_lines(folder.metrics, [record(60, **ledger_of())])
    folder.ledger.write_text('{"beat": 3')
    found = report_json(folder.path)
    assert (found["ledger"], found["goodput"], found["unaccounted_sec"]) == (LEDGER, 0.7, None)
    assert "up to step 60, all starts" in Page(report(folder.path)[0]).text


def test_a_run_without_a_ledger_shows_none(tmp_path: Path):
    folder = begin_run(tmp_path / "old")
    write_lines(folder.metrics, [record(step) for step in range(1, 5)])
    assert "Where the time went" not in report(folder.path)[0]
    found = report_json(folder.path)
    assert (found["ledger"], found["goodput"], found["wall_clock_sec"]) == ({}, None, None)


def test_a_run_that_has_just_begun_has_a_page(tmp_path: Path):
    folder = begin_run(tmp_path / "new")
    content, said = report(folder.path)
    assert "No step is logged yet." in Page(content).text
    assert said.strip().endswith("report.html: not running, 0 of 60 steps")
    assert report_json(folder.path)["last_record"] == {}


def test_a_run_that_has_only_its_settings_has_a_page(tmp_path: Path):
    whole = begin_run(tmp_path / "whole")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_bytes(whole.config.read_bytes())
    assert "No checkpoint yet." in report(tmp_path / "bare")[0]


def test_a_run_in_progress_is_reported_as_alive(tmp_path: Path):
    folder = begin_run(tmp_path / "run")
    with folder.held():
        assert report_json(folder.path)["state"] == f"alive (process {os.getpid()})"


def test_lines_that_a_kill_has_torn_are_ignored(tmp_path: Path):
    folder = begin_run(tmp_path / "run")
    write_lines(folder.metrics, [record(1), record(2)], torn='{"step": 3, "loss": 1')
    write_lines(folder.events, [event(1, "compiled", compile_sec=1.0)], torn='{"time": "2')
    found = report_json(folder.path)
    assert (found["step"], found["events"]) == (2, {"compiled": 1})


def test_what_a_resume_has_superseded_is_not_drawn(eventful: Path):
    folder = RunFolder(eventful)
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()[:-1]]
    assert [line["step"] for line in lines].count(40) == 2
    curve = read_report(folder).curve("loss")
    assert [step for step, _ in curve] == list(range(1, 61))
    assert dict(curve)[40] == lines[-21]["loss"] != lines[39]["loss"]


def test_a_loss_that_was_not_finite_is_a_gap(tmp_path: Path):
    folder = begin_run(tmp_path / "run")
    lines = [{"step": step, "loss": float(step)} for step in range(1, 9)]
    lines[3]["loss"] = None  # type: ignore[typeddict-item]
    lines[4]["loss"] = math.nan
    write_lines(folder.metrics, lines)
    content, _ = report(folder.path)
    pieces = [value for name, value in Page(content).attributes if name == "points"]
    assert [len(piece.split()) for piece in pieces] == [3, 3]
    assert "nan" not in content.lower()
    assert "loss: not finite at 2 of 8 steps, drawn as gaps" in content
    assert report_json(folder.path)["last_record"] == {"step": 8, "loss": 8.0}


def test_resumes_and_rollbacks_stand_in_every_curve(tmp_path: Path):
    folder = begin_run(tmp_path / "run")
    write_lines(folder.metrics, [record(step) for step in range(1, 11)])
    back = event(3, "rolled_back", step=9, to_step=6, skipped_rows=[[56, 64]])
    far = event(4, "resumed", step=50)
    write_lines(
        folder.events, [event(1, "resumed", step=4), back, event(3, "resumed", step=6), far]
    )
    content, _ = report(folder.path)
    num_charts = content.count('text-anchor="middle" class="note">step<')
    assert num_charts == 5
    assert content.count("<title>resumed at step 4</title>") == num_charts
    assert content.count("<title>rolled back from step 9 to step 6</title>") == num_charts
    assert "resumed at step 50" not in content


def test_a_thinned_curve_keeps_its_peaks_its_dips_and_its_order(rng: np.random.Generator):
    values = rng.standard_normal(100_003)
    values[[777, 50_000]] = 1e9, -1e9
    kept = thinned(list(enumerate(map(float, values))), 1000)
    assert len(kept) <= 1000
    assert [x for x, _ in kept] == sorted({x for x, _ in kept})
    assert {(777, 1e9), (50_000, -1e9)} <= {*kept}
    assert all(y == values[int(x)] for x, y in kept)
    assert thinned([(i, None) for i in range(5000)], 10)[0] == (0, None)


@pytest.mark.parametrize(
    ("low", "high", "is_log"),
    [
        *((0, 1, False), (1, 1, False), (0, 0, False), (-3, 1e9, False), (1e-9, 3e-9, False)),
        *((0.9, 5.5, True), (1e-8, 1e8, True), (2, 2, True)),
    ],
)
def test_the_ticks_of_a_scale_are_few_and_within_it(low: float, high: float, is_log: bool):
    scale = Scale((low, high), 0, 100, is_log)
    ticks = scale.ticks(4)
    assert 1 <= len(ticks) <= 9
    assert all(-1e-6 <= scale(tick) <= 100 + 1e-6 for tick in ticks)
    assert 0 <= scale(low) <= scale(high) <= 100


@pytest.mark.slow
def test_a_long_run_has_a_page_that_a_browser_opens(tmp_path: Path):
    folder = begin_run(tmp_path / "run", "--train.num_steps", "1000000")
    lines = [record(step, **ledger_of()) for step in range(10, 300_000, 10)]
    write_lines(folder.metrics, lines)
    events = []
    for step in range(1, 20_001):
        events.append(
            event(0, "skipped", step=step, rows=[[step - 1, step]], loss="nan", grad_norm="inf")
        )
        if step % 10 == 0:
            events.append(event(1, "saved", step=step, bytes=1, stall_sec=0.1))
    for _ in range(400):
        events += [event(2, "failed", exit_code=70), event(2, "restarted", exit_code=70)]
        events += [event(2, "started", command="./tessera train quickstart")]
    write_lines(folder.events, events)
    content, _ = report(folder.path)
    text = Page(content).text
    assert len(content) < 1_000_000
    assert "20,000 nonfinite steps, steps 1 to 20,000" in text
    assert "saved 2,000 checkpoints, steps 10 to 20,000" in text
    assert (
        "of 29,999 points, the lowest and the highest of each 60 successive ones are drawn" in text
    )
    assert "761 in between are in events.jsonl" in text


def test_nonfinite_steps_far_apart_are_not_grouped_in_old_and_new_runs():
    steps = (("skipped", 10), ("nonfinite_step", 11), ("nonfinite_step", 5000))
    events = [event(0, name, step=step, rows=[[step, step + 1]]) for name, step in steps]
    messages = event_messages(events, "run")
    assert {message.name for message in messages} == {"nonfinite_step"}
    assert [message.command for message in messages] == [
        "./tessera inspect run --first-row 10 --step 10",
        "./tessera inspect run --first-row 5000 --step 5000",
    ]


def test_checkpoints_are_shown_as_they_are(tmp_path: Path):
    folder = begin_run(tmp_path / "run")
    (save(folder, 5, eval_loss=2.25) / "pinned").touch()
    (save(folder, 10) / "state" / "array").write_bytes(b"short")
    (folder.checkpoints / "15").mkdir()
    (folder.checkpoints / "20.saving").mkdir()
    found = read_report(folder).checkpoints
    assert [(c.step, c.is_pinned, c.eval_loss, c.bytes) for c in found] == [
        (5, True, 2.25, 1000),
        (10, False, None, 1000),
        (15, False, None, None),
    ]
    assert [c.damage is None for c in found] == [True, False, False]
    text = Page(report(folder.path)[0]).text
    assert "has 5 bytes; its manifest says 1000" in text
    assert "Not counted as checkpoints: 20.saving" in text


def test_what_the_last_start_has_instead_stands_beside_what_the_first_one_had(tmp_path: Path):
    folder = begin_run(tmp_path / "run")
    assert "hostajax1" in re.sub(r"\s", "", Page(report(folder.path)[0]).text)
    later = {"host": "b", "packages": {"jax": "2", "grain": "3"}}
    write_lines(folder.events, [event(1, "started", command="x", environment=later)])
    text = Page(report(folder.path)[0]).text
    assert "first startlast starthostabjax12grainnull3" in text


def test_a_link_among_the_samples_is_not_followed(tmp_path: Path):
    folder = begin_run(tmp_path / "run")
    (tmp_path / "secret").write_text("a secret")
    folder.sample_of(7).symlink_to(tmp_path / "secret")
    folder.write_sample(6, "no secret here")
    assert read_report(folder).samples == {6: "no secret here"}


def test_the_last_samples_are_shown_in_the_order_of_their_steps(tmp_path: Path):
    folder = begin_run(tmp_path / "run")
    for step in (5, 900_000, 1_000_000, 20):
        folder.write_sample(step, f"text {step}")
    folder.write_sample(1_000_001, "x" * 10_000)
    samples = read_report(folder).samples
    assert list(samples) == [900_000, 1_000_000, 1_000_001]
    assert samples[1_000_001] == "x" * 4000 + "…"


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Returns when each file was changed, and what is in it."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def test_a_report_touches_nothing_of_the_run_but_its_page(tmp_path: Path):
    run = eventful_run(tmp_path / "run").path
    before = files_of(run)
    assert main([str(run), "--out", str(tmp_path / "page.html")]) == 0
    assert files_of(run) == before
    report(run)
    assert {*files_of(run)} - {*before} == {str(run / "report.html")}
    assert {path: files_of(run)[path] for path in before} == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints/x.html", "sub/../config.json"])
def test_a_page_never_takes_the_place_of_a_file_of_the_run(tmp_path: Path, name: str):
    folder = begin_run(tmp_path / "run")
    before = files_of(folder.path)
    with pytest.raises(SettingsError, match=r"--out=.* is in the run folder"):
        main([str(folder.path), "--out", str(folder.path / name)])
    assert files_of(folder.path) == before


def test_a_page_that_cannot_be_written_is_refused_and_leaves_nothing(tmp_path: Path):
    folder = begin_run(tmp_path / "run")
    with pytest.raises(SettingsError, match=r"--out=.*nowhere/page.html cannot be written"):
        main([str(folder.path), "--out", str(tmp_path / "nowhere" / "page.html")])
    (folder.path / "report.html").mkdir()
    with pytest.raises(SettingsError, match="give --out FILE"):
        main([str(folder.path)])
    assert not list(folder.path.glob("report.html.tmp*"))


def test_what_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(SettingsError, match="is not a run folder"):
        main([str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_a_run_that_may_only_be_read_asks_for_out(tmp_path: Path):
    begin_run(tmp_path / "run")
    mount = "mount --bind run run && mount -o remount,bind,ro run"
    namespace = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
    if subprocess.run([*namespace, mount], cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("a user may not mount a file system of his own here")
    code = "import sys; from launch.cli import guarded; from launch.commands.report import main; " \
        "sys.exit(guarded(lambda: main(sys.argv[1:])))"  # fmt: skip

    def run(*more: str) -> "subprocess.CompletedProcess[str]":
        command = shlex.join([sys.executable, "-c", code, "run", *more])
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [*namespace, f"{mount} && {command}"],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip

    refused, done = run(), run("--out", "page.html")
    assert refused.returncode == 2
    assert (
        "report.html cannot be written (Read-only file system): give --out FILE" in refused.stderr
    )
    assert done.returncode == 0, done.stderr
    assert "No step is logged yet." in (tmp_path / "page.html").read_text()


def test_a_report_needs_no_jax(eventful: Path):
    code = (
        "import sys; from launch.commands.report import main; main([sys.argv[1]]); "
        "assert not {'jax', 'flax', 'grain'} & {*sys.modules}"
    )
    subprocess.run((sys.executable, "-c", code, str(eventful)), cwd=ROOT, check=True)
