"""What a run tells a person: on a screen, in a file, and where neither takes it."""

import contextlib
import io
import logging
from pathlib import Path

import pytest
from rich.console import Console

from train.record.console import Display, describe, log_to_console, log_to_file, logger

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


def said(console: Console) -> str:
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_numbers_are_shown_as_people_read_them():
    line = describe({**RECORD, "eval/loss": 3.5})
    assert line == (
        "loss 3.2500  eval 3.5000  lr 1.00e-03  12,346 tokens/s  MFU n/a causal, 50.0% full  "
        "data wait 1.5 ms"
    )
    assert describe({**RECORD, "loss": None}).startswith("loss n/a")


def test_a_logged_step_is_a_line_where_there_is_no_terminal(tmp_path: Path):
    screen = console()
    log_to_console(screen)
    log_to_file(tmp_path / "log")
    with Display(screen, first_step=0, num_steps=100) as display:
        display.show_step(20)
        display.show_record(RECORD)
    assert said(screen).startswith("step  20/100  loss 3.2500")
    assert "step  20/100  loss 3.2500" in (tmp_path / "log").read_text()


def test_on_a_terminal_the_numbers_stand_below_the_bar_and_the_line_in_the_file(tmp_path: Path):
    screen = console(is_terminal=True)
    log_to_console(screen)
    log_to_file(tmp_path / "log")
    with Display(screen, first_step=0, num_steps=100) as display:
        display.show_step(20)
        display.show_record(RECORD)
    assert "20/100" in said(screen)
    assert "step  20/100  loss" not in said(screen)
    assert "step  20/100  loss 3.2500" in (tmp_path / "log").read_text()


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
