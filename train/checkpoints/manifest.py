"""The files of a run's checkpoints, and what makes one of them whole.

checkpoints/N/ holds the state after N steps and manifest.json, which names every file with its size
and digest, and itself. It is made as N.saving and renamed when nothing is missing, so that a
folder N without its manifest was damaged, not unfinished. N.removing is on its way out, N.fetching
on its way in; N.bad was found damaged and is kept for whoever wants to know why. N.aside is one
that a rollback has gone back from: no restore takes it, and it goes once a later save is whole, or
stays where it is pinned.
"""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from configs.check import require
from configs.data import DataConfig
from configs.errors import IntegrityError, SettingsError
from configs.run import CheckpointConfig, RunConfig
from configs.settings import classify, differences, flatten, unflatten, up_to_date
from data.atomic_files import atomic_write, digest_file, stays_inside, with_retries
from data.step_ranges import StepRange, steps_from

FORMAT_VERSION = 4
_FORMAT_OF_BATCHES = 3  # it counts whole batches, all of one size
STATE = "state"
MANIFEST = "manifest.json"
_PINNED = "pinned"
ASIDE, FETCHING = ".aside", ".fetching"
_SAVING, _REMOVING, _BAD = ".saving", ".removing", ".bad"
_OWN_DIGEST = "sha256"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands, beside its arrays; the part of a checkpoint that a person can read."""

    step: int
    """Steps taken."""
    tokens: int
    """Targets that counted in all steps so far."""
    data_sha256: str
    """Digest of the prepared data, which decides what the next batch is."""
    data_folders: dict[str, str] = field(default_factory=dict)
    """Where each source lay when prepared, so that it is found though its text has moved."""
    step_ranges: tuple[StepRange, ...] = ()
    """Which rows the steps have taken, and those after them take; () before the first step."""
    next_batch_sha256: str | None = None
    """Digest of the batch of the next step."""
    generator_key: str | None = None
    """The key that all randomness is folded from, and the kind of its generator."""
    num_rollbacks: int = 0
    """How often the run went back to an older checkpoint."""
    guard: dict[str, Any] = field(default_factory=dict)
    """What the guard against divergence remembers of the steps so far."""
    ledger: dict[str, float] = field(default_factory=dict)
    """Seconds of the run's life so far, by class."""
    eval_loss: float | None = None
    """eval/loss of this step, where it was evaluated."""

    def check_data(self, data_sha256: str, config: DataConfig) -> None:
        """Raises SettingsError unless the digest is that of the data the run was trained on."""
        given = (
            f"data.mixture={' '.join(config.mixture)}"
            if config.mixture
            else f"data.path={config.path}"
        )
        require(
            self.data_sha256 == data_sha256,
            f"{given} is another text than the run was trained on (digest "
            f"{data_sha256[:12]}, the run has {self.data_sha256[:12]}); give the same text, or "
            "another --run-dir",
        )

    def check_continues(self, config: RunConfig, data_sha256: str) -> None:
        """Raises SettingsError unless a run of these settings and data can go on from here."""
        self.check_data(data_sha256, config.data)
        require(
            self.step <= config.train.num_steps,
            f"train.num_steps={config.train.num_steps} must be at least {self.step}, the step that "
            "the run has reached",
        )


class FileEntry(NamedTuple):
    """What a manifest says of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint says of itself."""

    progress: Progress
    settings: dict[str, Any]
    """Those of the run, by flat name."""
    files: dict[str, FileEntry]
    """{path below checkpoints/N: its size and digest} of all files of the state."""

    def check_model(self, path: Path, config: RunConfig) -> None:
        """Raises SettingsError if the checkpoint is of another model; the message names fields."""
        changed = differences(self.settings, flatten(config))
        wrong = {
            name: values for name, values in changed.items() if classify(name) == "incompatible"
        }
        require(
            not wrong,
            f"{path} is the checkpoint of another model: "
            + "; ".join(f"{name}={old} there, {new} here" for name, (old, new) in wrong.items())
            + "; give the checkpoints of this run, or remove that one",
        )


def kept_steps(losses: Mapping[int, float | None], config: CheckpointConfig) -> set[int]:
    """Returns which checkpoints stay, given {step: eval loss or None} of all there are."""
    newest = sorted(losses)[-config.num_last :]
    scored = sorted((loss, step) for step, loss in losses.items() if loss is not None)
    best = [step for _, step in scored[: config.num_best]]
    period = config.keep_every_steps
    for_good = [step for step in losses if period is not None and step % period == 0]
    return {*newest, *best, *for_good}


def checkpoint_steps(folder: Path) -> list[int]:
    """Returns the steps of all finished checkpoints, oldest first."""
    return [step for step in checkpoint_folders(folder) if _manifest(folder, step).is_file()]


def other_names(folder: Path) -> list[str]:
    """Returns what is beside the checkpoints and does not count: being saved, damaged, aside."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in paths if not path.name.isdigit())


def checkpoint_folders(folder: Path) -> list[int]:
    """Returns the steps of all checkpoints, those too whose manifest is missing, oldest first."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in paths if path.name.isdigit() and path.is_dir())


def newest_progress(folder: Path) -> Progress | None:
    """Returns where the run stood at the newest checkpoint whose manifest can be read."""
    for step in reversed(checkpoint_steps(folder)):
        try:
            return read_progress(folder, step)
        except IntegrityError:  # the loop quarantines it and says so
            continue
    return None


def read_progress(folder: Path, step: int) -> Progress:
    """Returns where the run stood at a checkpoint; raises as read_manifest does."""
    return read_manifest(folder, step).progress


def read_manifest(folder: Path, step: int) -> Manifest:
    """Returns what a checkpoint says of itself.

    Raises:
        IntegrityError: the manifest is missing, is not as it was written, or names a file outside.
        SettingsError: it is of another format, so that this code cannot judge it.
        Unavailable: the disk does not answer.
    """
    path = _manifest(folder, step)
    try:
        content = with_retries(path.read_bytes, f"{path} cannot be read")
    except OSError as error:
        raise IntegrityError(f"{path} is missing: {error.strerror}") from None
    return parse_manifest(content, str(path))


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Returns what the bytes of a manifest say; raises as read_manifest does."""
    try:
        said = json.loads(content)
        version = said["format_version"]
        require(
            version in (_FORMAT_OF_BATCHES, FORMAT_VERSION),
            f"{where}: format_version={version} must be {FORMAT_VERSION}; go on with the version "
            f"of Tessera that made it, which is {'newer' if version > FORMAT_VERSION else 'older'}",
        )
        if said.pop(_OWN_DIGEST) != _digest_of(said):
            raise IntegrityError(f"{where} was changed after it was written")
        fields = said["progress"]
        if version == _FORMAT_OF_BATCHES:
            ranges = _ranges_of_batches(said["settings"], fields.pop("passed_over"))
            if fields.get("num_rollbacks"):  # it was amended, under settings that may be others
                fields |= {"next_batch_sha256": None, "generator_key": None}
        else:
            ranges = tuple(map(StepRange.from_json, fields["step_ranges"]))
        progress = Progress(**{**fields, "step_ranges": ranges})
        files = {name: FileEntry(**entry) for name, entry in said["files"].items()}
    except SettingsError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{where} is not a manifest: {error!r}") from None
    for name in files:
        if not (stays_inside(name) and name.startswith(f"{STATE}/")):
            raise IntegrityError(f"{where} must not name the file {name!r}")
    return Manifest(progress=progress, settings=said["settings"], files=files)


def _ranges_of_batches(
    settings: Mapping[str, Any], skipped: Iterable[int]
) -> tuple[StepRange, ...]:
    """Returns the one range of a run that knew whole batches alone, of which it skipped some."""
    if "train.batch_size" not in settings:  # nothing was trained on
        return ()
    steps = steps_from(unflatten(up_to_date(settings)))
    size = steps.batch_size
    return (steps.without_rows((item * size, (item + 1) * size) for item in skipped),)


def verify(
    folder: Path,
    step: int,
    how: Literal["full", "sizes"] = "full",
    *,
    part: int = 0,
    num_parts: int = 1,
) -> Manifest:
    """Returns the manifest of a checkpoint whose files are as it says.

    Args:
        how: full compares all bytes, sizes only the sizes of files.
        part: of several parts of the files only this one is looked at.

    Raises:
        IntegrityError: a file is missing, changed, or not named.
        SettingsError, Unavailable: as read_manifest.
    """
    manifest = read_manifest(folder, step)
    check_files(folder / str(step), manifest, how, part=part, num_parts=num_parts)
    return manifest


def check_files(
    checkpoint: Path,
    manifest: Manifest,
    how: Literal["full", "sizes"] = "full",
    *,
    part: int = 0,
    num_parts: int = 1,
) -> None:
    """Raises IntegrityError unless the files of a checkpoint are as its manifest says."""
    for name, said in sorted(manifest.files.items())[part::num_parts]:
        path = checkpoint / name
        check_file(path, str(path), said, how)
    there = with_retries(lambda: list_files(checkpoint), f"{checkpoint} cannot be listed")
    for name in sorted(there - set(manifest.files)):
        raise IntegrityError(f"{checkpoint / name} is not named by its manifest")


def check_file(
    path: Path, where: str, said: FileEntry, how: Literal["full", "sizes"] = "full"
) -> None:
    """Raises IntegrityError, which names `where`, unless a file is as a manifest says.

    Raises Unavailable where the disk does not answer: that is no damage.
    """

    def look() -> tuple[os.stat_result, str]:
        there = path.lstat()
        is_read = how == "full" and stat.S_ISREG(there.st_mode) and there.st_size == said.bytes
        return there, digest_file(path) if is_read else said.sha256

    try:
        there, found = with_retries(look, f"{where} cannot be read")
    except OSError:
        raise IntegrityError(f"{where} is missing") from None
    if not stat.S_ISREG(there.st_mode):
        raise IntegrityError(f"{where} is missing: there is no plain file of this name")
    if there.st_size != said.bytes:
        raise IntegrityError(f"{where} has {there.st_size} bytes; its manifest says {said.bytes}")
    if found != said.sha256:
        raise IntegrityError(
            f"{where} is changed: it has sha256 {found[:12]}, its manifest says {said.sha256[:12]}"
        )


def begin_save(folder: Path, step: int) -> Path:
    """Returns an empty folder for a checkpoint in the making."""
    making = folder / f"{step}{_SAVING}"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    return making


def describe_files(making: Path, names: Iterable[str]) -> dict[str, FileEntry]:
    """Returns what the manifest will say of some files of the state.

    They are on the disk then, and not only in its cache.

    Raises:
        OSError: one of them is not there.
        Unavailable: the disk does not answer.
    """

    def describe(path: Path) -> FileEntry:
        sha256 = digest_file(path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
            return FileEntry(os.fstat(file.fileno()).st_size, sha256)

    return {
        name: with_retries(
            lambda path=making / name: describe(path), f"{making / name} cannot be read"
        )
        for name in names
    }


def finish_save(making: Path, manifest: Manifest) -> Path:
    """Makes a checkpoint count: writes its manifest, and gives the folder its name."""
    write_manifest(making, manifest)
    whole = making.with_name(str(manifest.progress.step))
    if whole.exists():  # of a run that went on from an older one
        remove_checkpoint(whole.parent, int(whole.name))
    os.rename(making, whole)
    sync_folder(whole.parent)
    return whole


def write_manifest(checkpoint: Path, manifest: Manifest) -> None:
    """Writes what a checkpoint says of itself, whole or not at all."""
    with atomic_write(checkpoint / MANIFEST) as temporary:
        temporary.write_bytes(manifest_content(manifest))


def manifest_content(manifest: Manifest) -> bytes:
    """Returns the bytes of what a checkpoint says of itself."""
    content = {
        "format_version": FORMAT_VERSION,
        "progress": asdict(manifest.progress),
        "settings": manifest.settings,
        "files": {name: entry._asdict() for name, entry in sorted(manifest.files.items())},
    }
    content[_OWN_DIGEST] = _digest_of(content)
    return (json.dumps(content, indent=2) + "\n").encode()


def quarantine(folder: Path, step: int) -> Path:
    """Takes a damaged checkpoint out of the way without losing a byte; returns where it is."""
    return _rename(folder / str(step), folder / f"{step}{_BAD}")


def set_aside(folder: Path, step: int) -> Path:
    """Takes a whole checkpoint out of the way of a run that has gone back; returns where it is."""
    return _rename(folder / str(step), folder / f"{step}{ASIDE}")


def has_set_aside(folder: Path) -> bool:
    """Says whether a checkpoint was set aside, or found damaged, and is still there."""
    return any(ASIDE in name or _BAD in name for name in other_names(folder))


def may_be_removed(folder: Path) -> list[str]:
    """Returns the names of what rollbacks have set aside and nobody has pinned."""
    names = other_names(folder)
    return [name for name in names if ASIDE in name and not (folder / name / _PINNED).exists()]


def remove_aside(folder: Path) -> None:
    """Removes what rollbacks have set aside, once a later save is whole; pinned ones stay."""
    for name in may_be_removed(folder):
        shutil.rmtree(folder / name, ignore_errors=True)


def _rename(path: Path, wanted: Path) -> Path:
    free, number = wanted, 2
    while free.exists():
        free, number = wanted.with_name(f"{wanted.name}-{number}"), number + 1
    os.rename(path, free)
    return free


def is_pinned(folder: Path, step: int) -> bool:
    """Says whether a checkpoint stays whatever the settings say."""
    return (folder / str(step) / _PINNED).exists()


def pin(folder: Path, step: int, *, pinned: bool) -> None:
    """Makes a checkpoint stay for good, or lets it go as the others do."""
    path = folder / str(step) / _PINNED
    if pinned:
        path.touch()
    else:
        path.unlink(missing_ok=True)


def remove_surplus(folder: Path, config: CheckpointConfig, *, spared: int | None = None) -> None:
    """Removes the checkpoints that the settings do not keep; pinned and spared ones stay.

    Raises OSError, once all others are removed, where one cannot be.
    """
    losses = {}
    for step in checkpoint_steps(folder):
        try:
            losses[step] = read_progress(folder, step).eval_loss
        except (IntegrityError, SettingsError):
            continue  # not ours to judge here: it is neither counted nor removed
    failed = None
    for step in sorted(set(losses) - kept_steps(losses, config)):
        if step != spared and not is_pinned(folder, step):
            try:
                remove_checkpoint(folder, step)
            except OSError as error:
                failed = error
    if failed is not None:
        raise failed


def remove_checkpoint(folder: Path, step: int) -> None:
    """Removes a checkpoint; one half removed never counts."""
    leaving = folder / f"{step}{_REMOVING}"
    shutil.rmtree(leaving, ignore_errors=True)
    os.rename(folder / str(step), leaving)
    shutil.rmtree(leaving, ignore_errors=True)


def remove_unfinished(folder: Path, endings: tuple[str, ...] = (_SAVING, _REMOVING)) -> None:
    """Removes what a killed process left half saved or half removed."""
    for name in other_names(folder):
        if name.endswith(endings):
            shutil.rmtree(folder / name, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Returns when the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _manifest(folder: Path, step: int) -> Path:
    return folder / str(step) / MANIFEST


def list_files(checkpoint: Path) -> set[str]:
    """Returns the files of the state, by their paths below the checkpoint, that this machine sees.

    Where a file system is shared it may not see yet what another one has written.
    """
    found = (checkpoint / STATE).rglob("*")
    return {path.relative_to(checkpoint).as_posix() for path in found if not path.is_dir()}


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
