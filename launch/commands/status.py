"""`./tessera status RUN`: whether a run is alive, how far it is, and what to do next."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launch.arguments import RunPath, parse_arguments
from launch.reading.run_status import read_status
from train.record.eta import duration
from train.record.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class StatusArguments:
    """Shows whether a run is alive, how far it is, and what to do next."""

    run: RunPath
    """The run folder."""
    json: bool = False
    """Print nothing but one JSON object, on one line."""


def main(arguments: Sequence[str]) -> int:
    parsed = parse_arguments(StatusArguments, arguments, command="./tessera status")
    status = read_status(RunFolder(parsed.run))
    if parsed.json:
        print(json.dumps(status))
        return 0
    shown = _shown(status)
    for name, value in shown.items():
        print(f"{name:<{max(map(len, shown))}}  {'none' if value is None else value}")
    return 0


def _shown(status: dict[str, Any]) -> dict[str, str | None]:
    num_steps, left = status["num_steps"], status["eta_sec"]

    def rounded(name: str, form: str) -> str | None:
        return None if status[name] is None else format(status[name], form)

    return {
        "run": status["run"],
        "state": status["state"],
        "step": f"{status['step']:,} of {num_steps:,} ({status['step'] / num_steps:.0%})",
        "time left": "unknown" if left is None else duration(left) if left else None,
        "tokens/s": rounded("tokens_per_second", ",.0f"),
        "loss": rounded("loss", ".4f"),
        "validation loss": rounded("eval_loss", ".4f"),
        "goodput": rounded("goodput", ".1%"),
        "last checkpoint": rounded("last_checkpoint", ",d"),
        "last event": status["last_event"],
        "next step": status["next_step"],
    }
