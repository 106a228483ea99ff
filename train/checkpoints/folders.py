"""The folders of a run's checkpoints: listed, named, pinned and removed.

checkpoints/N/ holds the state after N steps and manifest.json. It is written as N.saving and
renamed once it is complete, so that a folder N without a manifest was damaged, not unfinished.
N.removing is being removed, N.fetching being fetched; N.bad failed verification and is kept for
inspection. N.aside was set aside by a rollback: it is never restored, and is removed after a later
save unless it is pinned.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from configs.errors import IntegrityError, SettingsError
from configs.run import CheckpointConfig
from train.checkpoints.manifest import (
    MANIFEST,
    Manifest,
    RunProgress,
    read_manifest,
    read_progress,
    write_manifest,
)

_PINNED = "pinned"
ASIDE, FETCHING = ".aside", ".fetching"
_SAVING, _REMOVING, _BAD = ".saving", ".removing", ".bad"


def checkpoint_steps(folder: Path) -> list[int]:
    """Returns the steps of all finished checkpoints, oldest first."""
    steps = checkpoint_folders(folder)
    return [step for step in steps if (folder / str(step) / MANIFEST).is_file()]


def checkpoint_folders(folder: Path) -> list[int]:
    """Returns the steps of all checkpoints, even without a manifest, oldest first."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in paths if path.name.isdigit() and path.is_dir())


def other_names(folder: Path) -> list[str]:
    """Returns the names beside the checkpoints: those being saved, damaged, or set aside."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in paths if not path.name.isdigit())


def newest_progress(folder: Path) -> RunProgress | None:
    """Returns where the run was at the newest checkpoint whose manifest can be read."""
    for step in reversed(checkpoint_steps(folder)):
        with contextlib.suppress(IntegrityError):  # the loop quarantines it and logs why
            return read_progress(folder, step)
    return None


def begin_save(folder: Path, step: int) -> Path:
    saving = folder / f"{step}{_SAVING}"
    shutil.rmtree(saving, ignore_errors=True)
    saving.mkdir(parents=True)
    return saving


def finish_save(saving: Path, manifest: Manifest) -> Path:
    """Completes a checkpoint: writes its manifest and renames the folder; returns its path."""
    write_manifest(saving, manifest)
    final = saving.with_name(str(manifest.progress.step))
    if final.exists():  # of a run that resumed from an older one
        remove_checkpoint(final.parent, int(final.name))
    os.rename(saving, final)
    _sync_folder(final.parent)
    return final


def quarantine(folder: Path, step: int) -> Path:
    """Renames a damaged checkpoint to N.bad, with all of its bytes; returns its path."""
    return _rename(folder / str(step), folder / f"{step}{_BAD}")


def set_aside(folder: Path, step: int) -> Path:
    """Renames a checkpoint later than a rollback's to N.aside; returns its path."""
    return _rename(folder / str(step), folder / f"{step}{ASIDE}")


def _rename(path: Path, wanted: Path) -> Path:
    free, number = wanted, 2
    while free.exists():
        free, number = wanted.with_name(f"{wanted.name}-{number}"), number + 1
    os.rename(path, free)
    return free


def has_set_aside(folder: Path) -> bool:
    return any(ASIDE in name or _BAD in name for name in other_names(folder))


def removable_aside(folder: Path) -> list[str]:
    """Returns the names of checkpoints that rollbacks have set aside and that are not pinned."""
    names = other_names(folder)
    return [name for name in names if ASIDE in name and not (folder / name / _PINNED).exists()]


def remove_aside(folder: Path) -> None:
    """Removes what rollbacks have set aside, after a later save; pinned ones stay."""
    for name in removable_aside(folder):
        shutil.rmtree(folder / name, ignore_errors=True)


def is_pinned(folder: Path, step: int) -> bool:
    return (folder / str(step) / _PINNED).exists()


def pin(folder: Path, step: int, *, pinned: bool) -> None:
    """Pins a checkpoint, so that it is never removed, or unpins it."""
    path = folder / str(step) / _PINNED
    if pinned:
        path.touch()
    else:
        path.unlink(missing_ok=True)


def kept_steps(losses: Mapping[int, float | None], config: CheckpointConfig) -> set[int]:
    """Returns which checkpoints are kept, given {step: eval loss or None} of all of them."""
    newest = sorted(losses)[-config.num_last :]
    scored = sorted((loss, step) for step, loss in losses.items() if loss is not None)
    best = [step for _, step in scored[: config.num_best]]
    period = config.keep_every_steps
    periodic = [step for step in losses if period is not None and step % period == 0]
    return {*newest, *best, *periodic}


def surplus(
    steps: Iterable[int], read: Callable[[int], Manifest], config: CheckpointConfig
) -> list[int]:
    """Returns the checkpoints that the settings do not keep.

    Those whose manifests cannot be read are not judged here: they are neither counted nor removed.
    """
    losses = {}
    for step in steps:
        with contextlib.suppress(IntegrityError, SettingsError):
            losses[step] = read(step).progress.eval_loss
    return sorted(set(losses) - kept_steps(losses, config))


def remove_surplus(folder: Path, config: CheckpointConfig, *, spared: int | None = None) -> None:
    """Removes the checkpoints that the settings do not keep; pinned and spared ones stay.

    If one cannot be removed, raises OSError after the others are.
    """
    failed = None
    for step in surplus(checkpoint_steps(folder), partial(read_manifest, folder), config):
        if step != spared and not is_pinned(folder, step):
            try:
                remove_checkpoint(folder, step)
            except OSError as error:
                failed = error
    if failed is not None:
        raise failed


def remove_checkpoint(folder: Path, step: int) -> None:
    """Removes a checkpoint; if interrupted, the remains are not taken for one."""
    removing = folder / f"{step}{_REMOVING}"
    shutil.rmtree(removing, ignore_errors=True)
    os.rename(folder / str(step), removing)
    shutil.rmtree(removing, ignore_errors=True)


def remove_unfinished(folder: Path, endings: tuple[str, ...] = (_SAVING, _REMOVING)) -> None:
    """Removes what a killed process left half saved or half removed."""
    for name in other_names(folder):
        if name.endswith(endings):
            shutil.rmtree(folder / name, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
