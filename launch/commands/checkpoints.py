"""`./tessera checkpoints RUN`: lists the checkpoints of a run, pins them, verifies them."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from configs.check import require
from configs.errors import IntegrityError, SettingsError
from launch.arguments import RunPath, parse_arguments
from train.checkpoints.manifest import (
    check_files,
    checkpoint_folders,
    is_pinned,
    other_names,
    pin,
    read_manifest,
)
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


@dataclass(frozen=True, kw_only=True)
class SavedCheckpoint:
    """What there is to say of a checkpoint."""

    step: int
    tokens: int | None
    bytes: int | None
    eval_loss: float | None
    is_pinned: bool
    damage: str | None
    """What is wrong with it, None if nothing was found."""


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
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
    how = "full" if parsed.verify else "sizes"
    entries = [look(folder.checkpoints, step, how) for step in steps]
    aside = other_names(folder.checkpoints)
    if parsed.json:
        content: dict[str, Any] = {
            "run": str(parsed.run),
            "checkpoints": [dataclasses.asdict(entry) for entry in entries],
            "aside": aside,
        }
        print(json.dumps(content))
    else:
        _show(entries, aside, every_byte=parsed.verify)
    return 1 if any(entry.damage for entry in entries) else 0


def look(folder: Path, step: int, how: Literal["full", "sizes"]) -> SavedCheckpoint:
    """Returns what a checkpoint says of itself, and whether its files are as it says."""
    manifest, damage = None, None
    try:
        manifest = read_manifest(folder, step)
        check_files(folder / str(step), manifest, how)
    except (IntegrityError, SettingsError, OSError) as error:
        damage = str(error)
    progress = manifest and manifest.progress
    return SavedCheckpoint(
        step=step,
        tokens=progress and progress.tokens,
        bytes=manifest and sum(entry.bytes for entry in manifest.files.values()),
        eval_loss=progress and progress.eval_loss,
        is_pinned=is_pinned(folder, step),
        damage=damage,
    )


def _show(entries: list[SavedCheckpoint], aside: list[str], *, every_byte: bool) -> None:
    console = Console(highlight=False, markup=False)
    if not entries:
        console.print("no checkpoint yet")
    else:
        table = Table(box=None, pad_edge=False)
        for name in ("step", "tokens", "MB", "eval/loss"):
            table.add_column(name, justify="right")
        table.add_column("")
        for entry in entries:
            whole = "every byte as written" if every_byte else "whole by its sizes"
            table.add_row(
                str(entry.step),
                "" if entry.tokens is None else f"{entry.tokens:,}",
                "" if entry.bytes is None else f"{entry.bytes / 1e6:.1f}",
                "" if entry.eval_loss is None else f"{entry.eval_loss:.4f}",
                f"{entry.damage or whole}{', pinned' if entry.is_pinned else ''}",
            )
        console.print(table, soft_wrap=True)
    if aside:
        console.print(f"not counted: {', '.join(aside)}", soft_wrap=True)
