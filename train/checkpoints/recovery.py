"""Finds the newest checkpoint that is whole, here or in durable storage."""

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import IntegrityError, TesseraError
from configs.run import CheckpointConfig
from sharding.distributed.processes import ALONE, Processes
from train.checkpoints.durable import DurableTier
from train.checkpoints.manifest import (
    FETCHING,
    Manifest,
    checkpoint_folders,
    quarantine,
    read_manifest,
    remove_unfinished,
    verify,
)

Say = Callable[..., None]
"""Tells of an event: its name in events.jsonl, and its details by name."""


def say_nothing(event: str, **details: Any) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Place:
    """Where the checkpoints of a run are, and who works on them."""

    folder: Path
    """Absolute."""
    config: CheckpointConfig
    processes: Processes = ALONE
    durable: DurableTier | None = None
    """Where copies are; given in process 0 alone."""
    say: Say = say_nothing
    """Told of what happens, in process 0 alone."""
    span: Callable[[str], AbstractContextManager] = lambda name: contextlib.nullcontext()
    """Told what is done meanwhile (`train.health.spans`)."""


def newest_whole(place: Place, *, at_most: int | None = None) -> Manifest | None:
    """Returns what the newest whole checkpoint says, which is local then; None if there is none.

    Damaged ones that are newer are quarantined, and told of. Every process calls it.

    Args:
        at_most: none that is newer than this step is considered.

    Raises:
        IntegrityError: there are checkpoints, but none is whole; they stay where they are.
        SettingsError: one is of another format, or the durable storage cannot be read.
        Unavailable: a disk or the storage does not answer, which says nothing of a checkpoint.
    """
    causes: dict[int, str] = {}
    for step, is_local in _candidates(place, at_most):
        try:
            manifest = _verified(place, step) if is_local else _fetched(place, step, causes)
        except IntegrityError as error:
            causes[step] = str(error)
            continue
        _quarantine(place, causes)
        if place.processes.is_first:
            remove_unfinished(place.folder, (FETCHING,))
        return manifest
    if causes:
        lines = [f"  step {step}: {cause}" for step, cause in causes.items()]
        raise IntegrityError(
            "no checkpoint is whole:\n"
            + "\n".join(lines)
            + "\nbring one back, or give another --run-dir to begin at step 0"
        )
    return None


def _candidates(place: Place, at_most: int | None) -> list[tuple[int, bool]]:
    """Returns (step, whether it is local), the newest first and a local one before its copy."""
    found: list[tuple[int, bool]] = []
    if place.processes.is_first:
        found = [(step, True) for step in checkpoint_folders(place.folder)]
        found += [(step, False) for step in (place.durable.steps() if place.durable else ())]
    found = place.processes.from_first("checkpoints", sorted(found, reverse=True))
    return [(step, local) for step, local in found if at_most is None or step <= at_most]


def _verified(place: Place, step: int) -> Manifest:
    """Returns the manifest of a local checkpoint that all processes found to be as it says."""
    processes, manifest, cause = place.processes, None, None
    part, num_parts = processes.index, processes.num
    try:
        with place.span("verification"):
            how = place.config.verify
            manifest = verify(place.folder, step, how, part=part, num_parts=num_parts)
    except IntegrityError as error:
        cause = str(error)
    causes = processes.gather("checkpoint verified", cause)
    cause = processes.from_first("verdict", next(filter(None, causes), None))
    if cause is not None:
        raise IntegrityError(cause)
    assert manifest is not None
    return manifest


def _fetched(place: Place, step: int, causes: dict[int, str]) -> Manifest:
    """Returns the manifest of a checkpoint that was fetched from durable storage.

    A damaged local one of the same step makes room for it.
    """
    damaged = {step: causes.pop(step)} if step in causes else {}
    _quarantine(place, damaged)
    cause = None
    if place.processes.is_first:
        assert place.durable is not None
        try:
            with place.span("fetch"):
                place.durable.fetch(step, place.folder)
            place.say("fetched", step=step, url=place.durable.url)
        except IntegrityError as error:
            cause = str(error)
    cause = place.processes.from_first("checkpoint fetched", cause)
    if cause is not None:
        raise IntegrityError(cause)
    return read_manifest(place.folder, step)


def _quarantine(place: Place, causes: Mapping[int, str]) -> None:
    if not place.processes.is_first:
        return
    for step, cause in causes.items():
        if (place.folder / str(step)).is_dir():
            path = quarantine(place.folder, step)
            place.say("quarantined", step=step, path=str(path), cause=cause)


def words(error: BaseException) -> str:
    """Returns what went wrong in one line."""
    said = " ".join(str(error).split())
    return said if isinstance(error, TesseraError | OSError) else f"{type(error).__name__}: {said}"
