"""The checkpoints of a run: what their manifests say, and whether their files agree."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from configs.errors import IntegrityError, SettingsError
from train.checkpoints.folders import checkpoint_folders, is_pinned
from train.checkpoints.manifest import read_manifest
from train.checkpoints.verify import check_files


@dataclass(frozen=True, kw_only=True)
class SavedCheckpoint:
    """A checkpoint of a run."""

    step: int
    tokens: int | None
    bytes: int | None
    eval_loss: float | None
    is_pinned: bool
    damage: str | None
    """What is wrong with it; None if the check passed."""


def list_checkpoints(folder: Path, how: Literal["full", "sizes"]) -> list[SavedCheckpoint]:
    """Returns the checkpoints, oldest first, without those that a run removes meanwhile."""
    found = [read_checkpoint(folder, step, how) for step in checkpoint_folders(folder)]
    return [checkpoint for checkpoint in found if (folder / str(checkpoint.step)).is_dir()]


def read_checkpoint(folder: Path, step: int, how: Literal["full", "sizes"]) -> SavedCheckpoint:
    """Returns a checkpoint; `how` much of its files is compared with its manifest."""
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
