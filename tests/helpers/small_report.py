"""Run folders from literal lines, as a report is tested with: none of them was ever trained."""

import json
import math
from pathlib import Path
from typing import Any

from small_runs import tiny_run

from launch.train_settings import parse
from train.checkpoints.folders import begin_save, finish_save
from train.checkpoints.manifest import STATE, FileEntry, Manifest, RunProgress
from train.checkpoints.verify import describe_files, list_files
from train.record.run_folder import RunFolder
from train.record.time_ledger import CATEGORIES

HOSTILE = "<script>alert(1)</script>"
LEDGER = dict(zip(CATEGORIES, (50.0, 40.0, 20.0, 700.0, 10.0, 30.0, 100.0, 50.0), strict=True))
"""Seconds at the last record of a run; they sum to 1000."""


def begin_run(path: Path, *more: str, environment: dict[str, Any] | None = None) -> RunFolder:
    """Returns a run of 60 steps that was started and has done nothing yet."""
    _, parsed = parse(tiny_run(*more))
    folder = RunFolder(path)
    path.mkdir(parents=True)
    folder.begin(parsed.config, environment or {"host": "a", "packages": {"jax": "1"}})
    return folder


def record(step: int, **more: Any) -> dict[str, Any]:
    """Returns a line of metrics as a step of a run writes it."""
    loss = round(2 + 3 * math.exp(-step / 15) + 0.05 * math.sin(7 * step), 6)
    return {
        "step": step,
        "tokens": step * 128,
        "loss": loss,
        "grad_norm": round(1 + 5 * math.exp(-step / 10) + 0.3 * math.cos(5 * step), 6),
        "learning_rate": 0.003 * (1 - step / 60),
        "tokens_per_second": 9000.0 + 500 * math.sin(step),
        "step_sec": 0.01 + 0.001 * math.cos(step),
        "data_wait_sec": 0.001,
        "mfu_causal": None,
        **more,
    }


def ledger_of(part: float = 1.0) -> dict[str, float]:
    """Returns the keys of the ledger, all seconds being a part of those of LEDGER."""
    seconds = {f"goodput/{kind}_sec": sec * part for kind, sec in LEDGER.items()}
    return {"goodput/fraction": 0.7, **seconds}


def write_lines(path: Path, lines: list[Any], torn: str = "") -> None:
    """Writes objects as lines, and after them what a killed process has left of another one."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)


def event(number: int, name: str, **details: Any) -> dict[str, Any]:
    """Returns an event of one minute."""
    time = f"2026-11-26T{number // 60:02}:{number % 60:02}:00.000+00:00"
    return {"time": time, "event": name, **details}


def save(folder: RunFolder, step: int, eval_loss: float | None = None) -> Path:
    """Makes a checkpoint that is whole, of one small file."""
    making = begin_save(folder.checkpoints, step)
    (making / STATE).mkdir()
    (making / STATE / "array").write_bytes(b"x" * 1000)
    progress = RunProgress(step=step, tokens=step * 128, data_sha256="0", eval_loss=eval_loss)
    files: dict[str, FileEntry] = describe_files(making, list_files(making))
    return finish_save(making, Manifest(progress=progress, settings={}, files=files))


def eventful_run(path: Path) -> RunFolder:
    """Returns a run to which nearly everything has happened, all texts in it being hostile."""
    folder = begin_run(path, environment={"host": HOSTILE, "packages": {"jax": "1"}})
    layers = {f"decoder.{HOSTILE}[0]": "nan", "embed": "inf"}
    lines = [record(step, **ledger_of(step / 60)) for step in range(1, 46)]
    for line in lines[30:]:
        line["loss"] += 1
    lines += [record(step, **ledger_of(step / 60)) for step in range(31, 61)]
    for line in lines:
        if line["step"] % 30 == 0:
            line |= {"eval/loss": line["loss"] + 0.1, "eval/bits_per_byte": 3.0, "eval/tokens": 9}
        line |= {"moe/dropped_fraction": 1 / line["step"], f"eval/{HOSTILE}/loss": line["loss"]}
    lines[-10]["loss"] = lines[-10]["grad_norm"] = None
    write_lines(folder.metrics, lines, torn='{"step": 61, "lo')
    skips = [
        event(
            5,
            "skipped",
            step=i,
            rows=[[8 * i - 8, 8 * i]],
            loss="nan",
            grad_norm="inf",
            layers=layers,
        )
        for i in range(40, 44)
    ]
    events = [
        event(0, "started", command=f"./tessera train {HOSTILE}", environment={"host": HOSTILE}),
        event(1, "compiled", compile_sec=4.2),
        *(event(2, "saved", step=s, bytes=1000, stall_sec=0.1) for s in (10, 20, 30)),
        *skips,
        event(6, "rolled_back", step=45, to_step=30, cause=f"{HOSTILE} 20 steps were skipped",
              batches=[40, 43], skipped_rows=[[312, 344]], rollbacks=1, layers=layers),
        event(7, "save_failed", step=35, cause=f"{HOSTILE} no space left"),
        event(8, "hung", phase="save", seconds=61.0, limit_sec=60.0, stacks="logs/stacks-0.txt"),
        event(8, "failed", exit_code=124),
        event(9, "restarted", exit_code=137, wait_sec=2.0, restarts=1),
        event(9, "quarantined", step=40, path=HOSTILE, cause="a file is changed"),
        event(10, "resumed", step=30),
        event(10, "changed", settings={"checkpoint.every_steps": [10, HOSTILE]}),
        event(10, "environment_changed", changes={"jax": ["1", HOSTILE]}),
        event(11, "corrupted", step=50, devices=["cpu:1"], arrays=[HOSTILE]),
        event(12, "clock_set_back", seconds=3600.0),
        event(12, "slow_process", step=50, process=3, cause=HOSTILE),
        event(13, "copied", step=50, url=f"s3://{HOSTILE}"),
        event(14, "stopped", step=50, cause="SIGTERM", process=1),
        event(15, HOSTILE, why=HOSTILE),
        event(16, "finished", step=60, params_sha256="ab" * 32),
    ]  # fmt: skip
    write_lines(folder.events, events, torn='{"time": "2026')
    folder.write_sample(30, f"sheep {HOSTILE}\x1b[31m\nand home")
    folder.write_sample(60, "sheep crossed\n" * 5)
    save(folder, 30, eval_loss=2.4)
    (save(folder, 60, eval_loss=2.1) / "pinned").touch()
    (folder.checkpoints / f"40.bad{HOSTILE.replace('/', '')}").mkdir()
    folder.ledger.write_text(json.dumps({"first_start": 1000.0, "beat": 2001.5, "seconds": LEDGER}))
    return folder
