"""The status of a run: whether it is alive, how far it is, and what to do next."""

import statistics
from typing import Any

from configs.errors import Diverged
from configs.run import RunConfig
from launch.next_commands import generate_hint, new_run_hint, resume_hint, started_with
from train.checkpoints.folders import checkpoint_steps
from train.record.eta import eta_sec, periods
from train.record.run_folder import Record, RunFolder, read_metrics

_NUM_TIMED = 20
"""So many of the last records say how long a step takes."""


def read_status(folder: RunFolder) -> dict[str, Any]:
    """Returns what there is to know of a run without touching it.

    `eta_sec` is the time to the last step while the run is training; None where no step was timed.

    Raises:
        SettingsError: the folder is not a run folder.
    """
    config = folder.read_config()
    events = folder.read_events()
    records = list(read_metrics(folder.metrics).values())
    steps = checkpoint_steps(folder.checkpoints)
    last = events[-1] if events else {}
    record = records[-1] if records else {}
    step = max(record.get("step", 0), *steps[-1:], 0)
    state, next_step = _state(folder, config, events, steps)
    evaluations = [r["eval/loss"] for r in records if "eval/loss" in r]
    return {
        "run": str(folder.path),
        "state": state,
        "step": step,
        "num_steps": config.train.num_steps,
        "eta_sec": _eta_sec(config, step, records),
        "tokens_per_second": record.get("tokens_per_second"),
        "loss": record.get("loss"),
        "eval_loss": evaluations[-1] if evaluations else None,
        "goodput": record.get("goodput/fraction"),
        "last_checkpoint": steps[-1] if steps else None,
        "last_event": f"{last.get('event')} at {last.get('time')}" if last else None,
        "next_step": next_step,
    }


def _state(
    folder: RunFolder, config: RunConfig, events: list[dict[str, Any]], steps: list[int]
) -> tuple[str, str | None]:
    """Returns whether a run is alive or how it ended, and what to do next."""
    process, resume = folder.holder(), resume_hint(events)
    if process is not None:
        return f"alive (process {process})", "wait, or stop it with Ctrl-C or SIGTERM"
    if steps and steps[-1] >= config.train.num_steps:
        return "finished", generate_hint(folder.path, config)
    ends = ("started", "stopped", "failed", "hung")
    last = next((event for event in reversed(events) if event.get("event") in ends), {})
    if last.get("event") == "stopped":
        return f"stopped by {last.get('cause')}", resume
    if last.get("event") != "failed":
        return "not running", resume
    code = last.get("exit_code")
    if code != Diverged.exit_code:
        return f"failed (exit code {code})", resume
    lower = ("--optim.peak-lr", f"{config.optim.peak_lr / 2:g}")
    return "diverged", new_run_hint(started_with(events), folder.path, *lower)


def _eta_sec(config: RunConfig, step: int, records: list[Record]) -> float | None:
    """Returns the time to the last step by the median of late steps and the ledger of the rest."""
    if step >= config.train.num_steps:
        return 0.0
    timed = [r["step_sec"] for r in records[-_NUM_TIMED:] if r.get("step_sec") is not None]
    ledger = records[-1] if records else {}
    others_sec = {}
    for span, kind in (("evaluation", "evaluation"), ("stall", "save_stall")):
        num = step // (periods(config)[span] or config.train.num_steps)
        others_sec[span] = (ledger.get(f"goodput/{kind}_sec") or 0.0) / max(num, 1)
    return eta_sec(config, step, statistics.median(timed) if timed else None, others_sec)
