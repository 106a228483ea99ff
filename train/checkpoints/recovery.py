"""Finds the newest valid checkpoint, local or in durable storage."""

from collections.abc import Mapping

from configs.errors import IntegrityError
from train.checkpoints.context import CheckpointContext
from train.checkpoints.folders import FETCHING, checkpoint_folders, quarantine, remove_unfinished
from train.checkpoints.manifest import Manifest, read_manifest
from train.checkpoints.verify import verify


def newest_valid(context: CheckpointContext, *, at_most: int | None = None) -> Manifest | None:
    """Returns the manifest of the newest valid checkpoint, local by then; None without any.

    Newer ones that are damaged are quarantined, with an event each. Those of steps after `at_most`
    are left alone. Every process calls it.

    Raises:
        IntegrityError: there are checkpoints, but none is valid; they stay where they are.
        SettingsError: one has another format, or the durable storage cannot be read.
        Unavailable: a disk or the storage does not answer, which proves no damage.
    """
    causes: dict[int, str] = {}
    for step, is_local in _candidates(context, at_most):
        try:
            manifest = _verified(context, step) if is_local else _fetched(context, step, causes)
        except IntegrityError as error:
            causes[step] = str(error)
            continue
        _quarantine(context, causes)
        if context.processes.is_first:
            remove_unfinished(context.folder, (FETCHING,))
        return manifest
    if causes:
        lines = [f"  step {step}: {cause}" for step, cause in causes.items()]
        raise IntegrityError(
            "no checkpoint is valid:\n"
            + "\n".join(lines)
            + "\nbring one back from a backup, or give another --run-dir to start at step 0"
        )
    return None


def _candidates(context: CheckpointContext, at_most: int | None) -> list[tuple[int, bool]]:
    """Returns (step, whether it is local), newest first, a local one before its mirrored copy."""
    found: list[tuple[int, bool]] = []
    if context.processes.is_first:
        found = [(step, True) for step in checkpoint_folders(context.folder)]
        found += [(step, False) for step in (context.durable.steps() if context.durable else ())]
    found = context.processes.from_first("checkpoints", sorted(found, reverse=True))
    return [(step, local) for step, local in found if at_most is None or step <= at_most]


def _verified(context: CheckpointContext, step: int) -> Manifest:
    """Returns the manifest of a local checkpoint, of which each process verifies a part."""
    part, num_parts = context.processes.index, context.processes.num

    def check() -> None:
        with context.span("verification"):
            how = context.config.verify
            verify(context.folder, step, how, part=part, num_parts=num_parts)

    cause, _ = context.everywhere("checkpoint verified", check, (IntegrityError,))
    if cause is not None:
        raise IntegrityError(cause)
    return read_manifest(context.folder, step)


def _fetched(context: CheckpointContext, step: int, causes: dict[int, str]) -> Manifest:
    """Returns the manifest of a checkpoint, fetched from durable storage.

    A damaged local one of the same step is quarantined first.
    """
    damaged = {step: causes.pop(step)} if step in causes else {}
    _quarantine(context, damaged)

    def fetch() -> None:
        assert context.durable is not None
        with context.span("fetch"):
            context.durable.fetch(step, context.folder)
        context.emit("fetched", step=step, url=context.durable.url)

    cause, _ = context.in_first("checkpoint fetched", fetch, (IntegrityError,))
    if cause is not None:
        raise IntegrityError(cause)
    return read_manifest(context.folder, step)


def _quarantine(context: CheckpointContext, causes: Mapping[int, str]) -> None:
    if not context.processes.is_first:
        return
    for step, cause in causes.items():
        if (context.folder / str(step)).is_dir():
            path = quarantine(context.folder, step)
            context.emit("quarantined", step=step, path=str(path), cause=cause)
