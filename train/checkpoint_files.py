"""The files of a run's checkpoints, and what makes one of them whole.

checkpoints/N/ holds the state after N steps and manifest.json, which names every file with its size
and digest, and itself. It is made as N.saving and renamed when nothing is missing, so that a
folder N without its manifest was damaged, not unfinished. N.removing is on its way out; N.bad was
found damaged and is kept for whoever wants to know why, N.aside is a pinned one that the run has
gone back from.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from configs.check import require
from configs.data import DataConfig
from configs.errors import IntegrityError, SettingsError
from configs.run import CheckpointConfig, RunConfig
from configs.settings import classify, differences, flatten
from data.files import digest_file, stays_inside, write_json

FORMAT_VERSION = 3
STATE = "state"
MANIFEST = "manifest.json"
_PINNED = "pinned"
_SAVING, _REMOVING, _BAD, _ASIDE = ".saving", ".removing", ".bad", ".aside"
_OWN_DIGEST = "sha256"
_DECIDES_BATCHES = ("data.", "train.seed", "train.batch_size")


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
    passed_over: tuple[int, ...] = ()
    """Batches that are left out of the sequence."""
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

    def gives_batches_of(self, config: RunConfig) -> bool:
        """Says whether the batches under these settings are those of the checkpoint's run."""
        changed = differences(self.settings, flatten(config))
        return not any(
            name.startswith(_DECIDES_BATCHES) and classify(name) != "safe" for name in changed
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
    """
    path = _manifest(folder, step)
    try:
        return parse_manifest(path.read_bytes(), str(path))
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror}") from None


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Returns what the bytes of a manifest say; raises as read_manifest does."""
    try:
        said = json.loads(content)
        version = said["format_version"]
        require(
            version == FORMAT_VERSION,
            f"{where}: format_version={version} must be {FORMAT_VERSION}; go on with the version "
            f"of Tessera that made it, which is {'newer' if version > FORMAT_VERSION else 'older'}",
        )
        if said.pop(_OWN_DIGEST) != _digest_of(said):
            raise IntegrityError(f"{where} was changed after it was written")
        fields = said["progress"]
        progress = Progress(**{**fields, "passed_over": tuple(fields["passed_over"])})
        files = {name: FileEntry(**entry) for name, entry in said["files"].items()}
    except SettingsError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{where} is not a manifest: {error!r}") from None
    for name in files:
        if not (stays_inside(name) and name.startswith(f"{STATE}/")):
            raise IntegrityError(f"{where} must not name the file {name!r}")
    return Manifest(progress=progress, settings=said["settings"], files=files)


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
        SettingsError: as read_manifest.
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
        if path.is_symlink() or not path.is_file():
            raise IntegrityError(f"{path} is missing")
        check_file(path, str(path), said, how)
    for name in sorted(_files(checkpoint) - set(manifest.files)):
        raise IntegrityError(f"{checkpoint / name} is not named by its manifest")


def check_file(
    path: Path, where: str, said: FileEntry, how: Literal["full", "sizes"] = "full"
) -> None:
    """Raises IntegrityError, which names `where`, unless a file is as a manifest says."""
    size = path.stat().st_size
    if size != said.bytes:
        raise IntegrityError(f"{where} has {size} bytes; its manifest says {said.bytes}")
    found = digest_file(path) if how == "full" else said.sha256
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


def describe_files(making: Path, *, part: int = 0, num_parts: int = 1) -> dict[str, FileEntry]:
    """Returns what the manifest will say of the files of the state, or of one of several parts.

    They are on the disk then, and not only in its cache.
    """
    entries = {}
    for name in sorted(_files(making))[part::num_parts]:
        path = making / name
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        entries[name] = FileEntry(path.stat().st_size, sha256)
    return entries


def finish_save(making: Path, manifest: Manifest) -> Path:
    """Makes a checkpoint count: writes its manifest, and gives the folder its name."""
    write_manifest(making, manifest)
    whole = making.with_name(making.name.removesuffix(_SAVING))
    if whole.exists():  # of a run that went on from an older one
        remove_checkpoint(whole.parent, int(whole.name))
    os.rename(making, whole)
    sync_folder(whole.parent)
    return whole


def write_manifest(checkpoint: Path, manifest: Manifest) -> None:
    """Writes what a checkpoint says of itself, whole or not at all."""
    content = {
        "format_version": FORMAT_VERSION,
        "progress": asdict(manifest.progress),
        "settings": manifest.settings,
        "files": {name: entry._asdict() for name, entry in sorted(manifest.files.items())},
    }
    write_json(checkpoint / MANIFEST, {**content, _OWN_DIGEST: _digest_of(content)})


def quarantine(folder: Path, step: int) -> Path:
    """Takes a damaged checkpoint out of the way without losing a byte; returns where it is."""
    return _rename(folder / str(step), folder / f"{step}{_BAD}")


def set_aside(folder: Path, step: int) -> Path:
    """Takes a good checkpoint out of the way of a run that has gone back; returns where it is."""
    return _rename(folder / str(step), folder / f"{step}{_ASIDE}")


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
    """Removes the checkpoints that the settings do not keep; pinned and spared ones stay."""
    losses = {}
    for step in checkpoint_steps(folder):
        try:
            losses[step] = read_progress(folder, step).eval_loss
        except (IntegrityError, SettingsError):
            continue  # not ours to judge here: it is neither counted nor removed
    for step in set(losses) - kept_steps(losses, config):
        if step != spared and not is_pinned(folder, step):
            remove_checkpoint(folder, step)


def remove_checkpoint(folder: Path, step: int) -> None:
    """Removes a checkpoint; one half removed never counts."""
    leaving = folder / f"{step}{_REMOVING}"
    shutil.rmtree(leaving, ignore_errors=True)
    os.rename(folder / str(step), leaving)
    shutil.rmtree(leaving, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed process left half saved or half removed."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.endswith((_SAVING, _REMOVING)):
            shutil.rmtree(path, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Returns when the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _manifest(folder: Path, step: int) -> Path:
    return folder / str(step) / MANIFEST


def _files(checkpoint: Path) -> set[str]:
    """Returns the files of the state, by their paths below the checkpoint."""
    found = (checkpoint / STATE).rglob("*")
    return {path.relative_to(checkpoint).as_posix() for path in found if not path.is_dir()}


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
