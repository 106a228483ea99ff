"""`./tessera checkpoints RUN`: lists the checkpoints of a run, pins them, verifies them."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from configs.require import require
from launch.arguments import RunPath, parse_arguments
from launch.reading.checkpoint_list import SavedCheckpoint, list_checkpoints
from train.checkpoints.folders import checkpoint_folders, other_names, pin
from train.record.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class CheckpointsArguments:
    """Lists the checkpoints of a run; exit code 1 where one is found damaged."""

    run: RunPath
    """The run folder."""
    pin: tuple[int, ...] = ()
    """Steps whose checkpoints are kept forever, whatever checkpoint.num_last is."""
    unpin: tuple[int, ...] = ()
    """Steps whose checkpoints are deleted again when the settings do not keep them."""
    verify: bool = False
    """Compare checksums with the manifests, not only the sizes of files."""
    json: bool = False
    """Print nothing but one JSON object, on one line."""


def main(arguments: Sequence[str]) -> int:
    parsed = parse_arguments(CheckpointsArguments, arguments, command="./tessera checkpoints")
    folder = RunFolder(parsed.run)
    folder.read_config()  # it is a run folder
    steps = checkpoint_folders(folder.checkpoints)
    for name, chosen in (("pin", parsed.pin), ("unpin", parsed.unpin)):
        for step in chosen:
            require(
                step in steps,
                f"--{name}={step} must be a checkpoint of {parsed.run}: "
                f"{', '.join(map(str, steps)) or 'there is none'}",
            )
            pin(folder.checkpoints, step, pinned=name == "pin")
    entries = list_checkpoints(folder.checkpoints, "full" if parsed.verify else "sizes")
    aside = other_names(folder.checkpoints)
    if parsed.json:
        content: dict[str, Any] = {
            "run": str(parsed.run),
            "checkpoints": [dataclasses.asdict(entry) for entry in entries],
            "aside": aside,
        }
        print(json.dumps(content))
    else:
        _show(entries, aside, check="checksums match" if parsed.verify else "size check passed")
    return 1 if any(entry.damage for entry in entries) else 0


def _show(entries: list[SavedCheckpoint], aside: list[str], *, check: str) -> None:
    console = Console(highlight=False, markup=False)
    if not entries:
        console.print("no checkpoint yet")
    else:
        table = Table(box=None, pad_edge=False)
        for name in ("step", "tokens", "MB", "eval/loss"):
            table.add_column(name, justify="right")
        table.add_column("")
        for entry in entries:
            table.add_row(
                str(entry.step),
                "" if entry.tokens is None else f"{entry.tokens:,}",
                "" if entry.bytes is None else f"{entry.bytes / 1e6:.1f}",
                "" if entry.eval_loss is None else f"{entry.eval_loss:.4f}",
                f"{entry.damage or check}{', pinned' if entry.is_pinned else ''}",
            )
        console.print(table, soft_wrap=True)
    if aside:
        console.print(f"not counted as checkpoints: {', '.join(aside)}", soft_wrap=True)
