"""What a run tells a person: on a screen, in a file, and where neither takes it."""

import contextlib
import dataclasses
import io
import logging
from pathlib import Path

import pytest
from rich.console import Console

from configs.presets.table import PRESETS
from configs.run import RunConfig
from train.record.console import Display, describe, log_to_console, log_to_file, logger
from train.record.eta import duration
from train.record.spans import Spans

RECORD = {
    "step": 20,
    "loss": 3.25,
    "learning_rate": 1e-3,
    "tokens_per_second": 12345.6,
    "mfu_causal": None,
    "mfu_full": 0.5,
    "data_wait_sec": 0.0015,
}


@pytest.fixture(autouse=True)
def quiet():
    """The logger as it was, whatever a test does to it."""
    kept = logger.handlers[:], logger.propagate, logger.level
    absl = logging.getLogger("absl")
    kept_absl = absl.handlers[:], absl.propagate
    yield
    for handler in logger.handlers:
        with contextlib.suppress(OSError):  # of a full disk
            handler.close()
    logger.handlers[:], logger.propagate, logger.level = kept
    absl.handlers[:], absl.propagate = kept_absl


def console(*, is_terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=200, highlight=False)


def config(num_steps: int) -> RunConfig:
    """Settings with an evaluation and a sample each 20 steps, and a save each 50."""
    run = PRESETS["quickstart"]()
    return dataclasses.replace(
        run,
        optim=dataclasses.replace(run.optim, num_warmup_steps=0),
        train=dataclasses.replace(run.train, num_steps=num_steps),
        eval=dataclasses.replace(run.eval, every_steps=20),
        sample=dataclasses.replace(run.sample, every_steps=20),
        checkpoint=dataclasses.replace(run.checkpoint, every_steps=50),
    )


def spans_of(**seconds: list[float]) -> Spans:
    """Spans in which each name took so many seconds each time."""
    spans = Spans()
    for name, durations in seconds.items():
        spans.durations[name].extend(durations)
    return spans


def said(console: Console) -> str:
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_numbers_are_shown_as_people_read_them():
    line = describe({**RECORD, "eval/loss": 3.5})
    assert line == (
        "loss 3.2500  eval 3.5000  lr 1.00e-03  12,346 tokens/s  MFU n/a causal, 50.0% full  "
        "data wait 1.5 ms"
    )
    assert describe({**RECORD, "loss": None}).startswith("loss n/a")
    assert "MFU" not in describe({**RECORD, "mfu_full": None})


def test_a_logged_step_is_a_line_where_there_is_no_terminal(tmp_path: Path):
    screen = console()
    log_to_console(screen)
    log_to_file(tmp_path / "log")
    with Display(screen, config(100), Spans(), first_step=0) as display:
        display.show_step(20)
        display.show_record(RECORD)
    assert said(screen).startswith("step  20/100  loss 3.2500")
    assert "step  20/100  loss 3.2500" in (tmp_path / "log").read_text()


def test_on_a_terminal_the_numbers_stand_below_the_bar_and_the_line_in_the_file(tmp_path: Path):
    screen = console(is_terminal=True)
    log_to_console(screen)
    log_to_file(tmp_path / "log")
    with Display(screen, config(100), Spans(), first_step=0) as display:
        display.show_step(20)
        display.show_record(RECORD)
    assert "20/100" in said(screen)
    assert "step  20/100  loss" not in said(screen)
    assert "step  20/100  loss 3.2500" in (tmp_path / "log").read_text()


def test_the_last_step_is_shown_with_its_own_loss():
    screen = console(is_terminal=True)
    with Display(screen, config(20), Spans(), first_step=0) as display:
        display.show_step(10)
        display.show_record({**RECORD, "step": 10, "loss": 9.0})
        display.show_step(20)
        display.show_record({**RECORD, "eval/loss": 3.5})
    assert "step 20  loss 3.2500  eval 3.5000" in said(screen).rpartition("20/20")[2]


def test_the_time_left_counts_steps_evaluations_samples_and_saves_that_are_to_come():
    spans = spans_of(step=[1.0, 9.0, 1.0], evaluation=[5.0], sample=[2.0], stall=[3.0])
    display = Display(console(), config(100), spans, first_step=20)
    now = display._step_ended
    assert display.eta_sec(now) == 80 * 1.0 + 4 * (5.0 + 2.0) + 2 * 3.0
    assert display.eta_sec(now + 0.5) == 80 + 34 - 0.5
    assert display.eta_sec(now + 100) == 80 + 34 - 1.0  # the step takes longer than those before


def test_the_time_left_goes_on_falling_while_a_run_evaluates():
    spans = spans_of(step=[1.0] * 3, evaluation=[5.0])
    display = Display(console(), config(100), spans, first_step=20)
    with spans("evaluation"):
        began = display.eta_sec(10.0)
        assert began == 80 + 4 * 5.0 + 5.0
        assert display.eta_sec(12.0) == 80 + 4 * 5.0 + 3.0
        assert display.eta_sec(90.0) == 80 + 4 * 5.0
        assert "ETA" in display._times(1.0)
        assert display._times(1.0).endswith(", evaluating")
    assert "evaluating" not in display._times(1.0)


def test_an_evaluation_counts_by_its_own_time_however_the_steps_were_timed():
    spans = spans_of(step=[1.0] * 3)
    display = Display(console(), config(100), spans, first_step=19)
    before = display.eta_sec(display._step_ended)
    spans.durations["evaluation"].append(60.0)
    display.show_step(20)
    after = display.eta_sec(display._step_ended)
    assert before == 81
    assert after == 80 + 4 * 60


def test_the_time_left_is_unknown_until_a_few_steps_were_timed():
    display = Display(console(), config(100), spans_of(step=[0.01, 1.0]), first_step=0)
    assert display.eta_sec(display._step_ended) is None
    assert "ETA unknown" in display._times(1.0)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0 s"), (89, "89 s"), (95, "1.6 min"), (7200, "2.0 h"), (200_000, "2.3 days")],
)
def test_a_time_is_shown_in_the_unit_that_suits_it(seconds: float, shown: str):
    assert duration(seconds) == shown


def test_of_a_process_that_is_not_the_first_only_warnings_are_shown_with_its_number():
    screen = console()
    log_to_console(screen, process=3)
    logger.info("all is well")
    logger.warning("something is not")
    assert said(screen) == "process 3: something is not\n"


def test_a_line_that_the_disk_does_not_take_is_left_out_without_a_word(capfd):
    log_to_file(Path("/dev/full"))
    logger.warning("this line does not fit")
    assert capfd.readouterr() == ("", "")
