"""What a checkpoint is on disk, for those who write, read, list and remove them.

`checkpoints/N/state` is Orbax's; `checkpoints/N/manifest.json` is written last and names every file
with its digest. A folder without a manifest was not finished: it is ignored, then removed.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from configs.check import require
from configs.data import DataConfig
from configs.errors import IntegrityError
from configs.run import CheckpointConfig, RunConfig
from data.files import digest_file, write_json

FORMAT_VERSION = 2
_MANIFEST = "manifest.json"


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
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(p.name) for p in paths if p.name.isdigit() and (p / _MANIFEST).is_file())


def read_progress(folder: Path, step: int) -> Progress:
    """Returns where the run stood at a checkpoint; raises IntegrityError if that cannot be read."""
    return _read_manifest(folder, step)[0]


def _read_manifest(folder: Path, step: int) -> tuple[Progress, dict[str, str]]:
    """Returns the progress of a checkpoint, and {file: sha256} of all below checkpoints/N.

    Raises:
        IntegrityError: the manifest cannot be read or is of another format.
    """
    path = folder / str(step) / _MANIFEST
    try:
        content = json.loads(path.read_text())
        version = content["format_version"]
        if version != FORMAT_VERSION:
            raise IntegrityError(f"{path}: format_version={version} must be {FORMAT_VERSION}")
        fields = content["progress"]
        progress = Progress(**{**fields, "passed_over": tuple(fields["passed_over"])})
        return progress, content["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{path} cannot be read ({error}); remove {path.parent} to go on from an older one"
        ) from None


def verify(folder: Path, step: int, *, part: int = 0, num_parts: int = 1) -> None:
    """Raises IntegrityError if a file of a checkpoint is not what its manifest says.

    Of several parts of its files only one is looked at.
    """
    checkpoint = folder / str(step)
    for name, said in sorted(_read_manifest(folder, step)[1].items())[part::num_parts]:
        path = checkpoint / name
        found = digest_file(path) if path.is_file() else None
        if found != said:
            raise IntegrityError(
                f"{path} is {'changed' if found else 'missing'}: its manifest says sha256 "
                f"{said[:12]}, found {found and found[:12]}; remove {checkpoint} to go on from an "
                "older checkpoint"
            )


def remove_surplus(folder: Path, config: CheckpointConfig) -> None:
    """Removes the checkpoints that the settings do not keep."""
    steps = checkpoint_steps(folder)
    losses = {step: read_progress(folder, step).eval_loss for step in steps}
    for step in set(steps) - kept_steps(losses, config):
        _remove(folder / str(step))


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed process left half saved or half removed."""
    whole = {str(step) for step in checkpoint_steps(folder)}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and path.name not in whole:
            shutil.rmtree(path)


def _remove(folder: Path) -> None:
    (folder / _MANIFEST).unlink()  # first, so that half a checkpoint never counts
    shutil.rmtree(folder)


def digest_files(folder: Path, *, part: int = 0, num_parts: int = 1) -> dict[str, str]:
    """Returns {file: sha256} of all below checkpoints/N, or of one of several parts of them."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): digest_file(path) for path in paths[part::num_parts]
    }


def write_manifest(folder: Path, progress: Progress, digests: Mapping[str, str]) -> None:
    """Makes checkpoints/N count: writes the digest of each of its files, whole or not at all."""
    content = {
        "format_version": FORMAT_VERSION,
        "progress": asdict(progress),
        "sha256": dict(sorted(digests.items())),
    }
    write_json(folder / _MANIFEST, content)
