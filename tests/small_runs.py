"""A run so small that a test can afford to start it, kill it and start it again."""

import contextlib
import io
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from launch.cli import main

ROOT = Path(__file__).resolve().parent.parent
RUN = Path("runs/quickstart-text")
"""Where the run of `tiny_run` is, below the folder it was started in."""
PROMPT = "sheep "
_SETTINGS = """
    --data.path text.txt --data.tokenizer bytes --data.sequence_len 16
    --model.num_layers 2 --model.embed_dim 32 --model.mlp_dim 64
    --model.num_heads 2 --model.num_kv_heads 1 --model.head_dim 16 --model.dropout 0.1
    --optim.num_warmup_steps 0
    --train.num_steps 60 --train.batch_size 8 --train.log_every_steps 1
    --checkpoint.every_steps 5 --eval.every_steps 30 --eval.batch_size 8
    --sample.every_steps 30 --sample.num_tokens 8
"""


def write_text(folder: Path) -> Path:
    """Writes 10 kB of text that a tiny model has something to learn from."""
    path = folder / "text.txt"
    draw = random.Random(0)
    lines = (
        f"{draw.randrange(1000)} sheep crossed the bridge, and then home.\n" for _ in range(225)
    )
    path.write_text("".join(lines))
    return path


def tiny_run(*more: str) -> list[str]:
    """Returns the arguments of `train` for 60 steps on text.txt, with what a test gives instead.

    Dropout is on, so that randomness is in play, and every batch divides over eight devices.
    """
    return ["quickstart", *_SETTINGS.split(), "--sample.prompts", PROMPT, *more]


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Starts `python -m launch ...` in a folder, as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "launch", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Returns the exit code of a process and all that it printed, once it has ended."""
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def call(*arguments: str) -> tuple[int, str]:
    """Runs a command in this process and returns its exit code and all that it printed."""
    logger = logging.getLogger("tessera")
    kept, logger.handlers, propagate = logger.handlers, [], logger.propagate
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = main(arguments)
    except SystemExit as ending:  # tyro's
        code = int(ending.code or 0)
    finally:
        for handler in logger.handlers:
            handler.close()
        logger.handlers, logger.propagate = kept, propagate
        for number, act in signals.items():
            signal.signal(number, act)
    return code, printed.getvalue()


def wait_until(holds: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Returns as soon as something holds; fails if the process ends before."""
    deadline = time.monotonic() + 120
    while not holds():
        assert process.poll() is None, f"ended too early:\n{process.communicate()[0]}"
        assert time.monotonic() < deadline, "waited for two minutes"
        time.sleep(0.0005)


def has_reached(run: Path, step: int) -> bool:
    """Says whether the log of a run shows a step: metrics.jsonl is only flushed by a save."""
    log = run / "logs" / "process-0.log"
    return log.exists() and f" step {step:>2}/60 " in log.read_text()


def content_of(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of every file below a folder by its name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
