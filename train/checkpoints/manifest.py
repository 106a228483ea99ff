"""The manifest of a checkpoint: progress and settings of the run, and the checksum of each file."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from configs.data import DataConfig
from configs.errors import IntegrityError, SettingsError
from configs.flat_settings import classify, differences, flatten, unflatten, up_to_date
from configs.require import require
from configs.run import RunConfig
from data.atomic_files import atomic_write, stays_inside, with_retries
from data.step_ranges import StepRange, steps_from

FORMAT_VERSION = 4
_FORMAT_OF_BATCHES = 3  # it counts whole batches, all of one size
STATE = "state"
MANIFEST = "manifest.json"
_OWN_DIGEST = "sha256"


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """Where a run is, without its arrays; the part of a checkpoint that a person can read."""

    step: int
    """Steps taken."""
    tokens: int
    """Targets that counted in all steps so far."""
    data_sha256: str
    """Digest of the prepared data, which decides what the next batch is."""
    data_folders: dict[str, str] = field(default_factory=dict)
    """The folder of each prepared source, so that it is found even after its text has moved."""
    step_ranges: tuple[StepRange, ...] = ()
    """Which rows the steps took, and those after them take; () before the first step."""
    next_batch_sha256: str | None = None
    """Digest of the batch of the next step."""
    generator_key: str | None = None
    """The PRNG key from which all others are folded, and its implementation."""
    num_rollbacks: int = 0
    """Rollbacks of the run so far."""
    guard: dict[str, Any] = field(default_factory=dict)
    """State of the divergence guard."""
    ledger: dict[str, float] = field(default_factory=dict)
    """Seconds of the run so far, by class of the time ledger."""
    eval_loss: float | None = None
    """eval/loss of this step, if it was evaluated."""

    def check_data(self, data_sha256: str, config: DataConfig) -> None:
        """Raises SettingsError unless the digest is that of the data the run was trained on."""
        given = (
            f"data.mixture={' '.join(config.mixture)}"
            if config.mixture
            else f"data.path={config.path}"
        )
        require(
            self.data_sha256 == data_sha256,
            f"{given} is another text than the run was trained on (its digest is "
            f"{data_sha256[:12]}, that of the run is {self.data_sha256[:12]}); give the same text, "
            "or another --run-dir",
        )

    def check_continues(self, config: RunConfig, data_sha256: str) -> None:
        """Raises SettingsError unless a run with these settings and data can resume from here."""
        self.check_data(data_sha256, config.data)
        require(
            self.step <= config.train.num_steps,
            f"train.num_steps={config.train.num_steps} must be at least {self.step}, the step that "
            "the run has reached",
        )


class FileEntry(NamedTuple):
    """Size and checksum of a file, as its manifest lists them."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of a checkpoint's manifest."""

    progress: RunProgress
    settings: dict[str, Any]
    """Those of the run, by flat name."""
    files: dict[str, FileEntry]
    """{path below checkpoints/N: its entry} of all files of the state."""

    def check_model(
        self,
        where: object,
        config: RunConfig,
        *,
        groups: tuple[str, ...] = ("",),
        way_out: str = "put the checkpoints of this run there, or remove that one",
    ) -> None:
        """Raises SettingsError, which names fields of `groups`, if it is of another model."""
        wrong = [
            f"{name}={old} there, {new} here"
            for name, (old, new) in differences(self.settings, flatten(config)).items()
            if name.startswith(groups) and classify(name) == "incompatible"
        ]
        require(not wrong, f"{where} is another model: {'; '.join(wrong)}; {way_out}")


def read_progress(folder: Path, step: int) -> RunProgress:
    return read_manifest(folder, step).progress


def read_manifest(folder: Path, step: int) -> Manifest:
    """Returns the manifest of a checkpoint.

    Raises:
        IntegrityError: it is missing, was changed after it was written, or lists a file outside.
        SettingsError: it has another format, so that this version cannot check it.
        Unavailable: the disk does not answer.
    """
    path = folder / str(step) / MANIFEST
    try:
        content = with_retries(path.read_bytes, f"{path} cannot be read")
    except OSError as error:
        raise IntegrityError(f"{path} is missing: {error.strerror}") from None
    return parse_manifest(content, str(path))


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Returns the manifest that these bytes are; raises as read_manifest does."""
    try:
        fields = json.loads(content)
        version = fields["format_version"]
        require(
            version in (_FORMAT_OF_BATCHES, FORMAT_VERSION),
            f"{where}: format_version={version} must be {FORMAT_VERSION}; use the version of "
            f"Tessera that wrote it, which is {'newer' if version > FORMAT_VERSION else 'older'}",
        )
        if fields.pop(_OWN_DIGEST) != _digest_of(fields):
            raise IntegrityError(f"{where} was changed after it was written")
        progress = fields["progress"]
        if version == _FORMAT_OF_BATCHES:
            ranges = _ranges_of_batches(fields["settings"], progress.pop("passed_over"))
            if progress.get("num_rollbacks"):  # it was amended, under settings that may be others
                progress |= {"next_batch_sha256": None, "generator_key": None}
        else:
            ranges = tuple(map(StepRange.from_json, progress["step_ranges"]))
        progress = RunProgress(**{**progress, "step_ranges": ranges})
        files = {name: FileEntry(**entry) for name, entry in fields["files"].items()}
    except SettingsError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{where} is not a manifest: {error!r}") from None
    for name in files:
        if not (stays_inside(name) and name.startswith(f"{STATE}/")):
            raise IntegrityError(f"{where} lists {name!r}, which is outside {STATE}/")
    return Manifest(progress=progress, settings=fields["settings"], files=files)


def _ranges_of_batches(
    settings: Mapping[str, Any], skipped: Iterable[int]
) -> tuple[StepRange, ...]:
    """Returns the one range of a run of format 3, given the batches that it skipped."""
    if "train.batch_size" not in settings:  # nothing was trained on
        return ()
    steps = steps_from(unflatten(up_to_date(settings)))
    size = steps.batch_size
    return (steps.without_rows((item * size, (item + 1) * size) for item in skipped),)


def write_manifest(checkpoint: Path, manifest: Manifest) -> None:
    with atomic_write(checkpoint / MANIFEST) as temporary:
        temporary.write_bytes(manifest_content(manifest))


def manifest_content(manifest: Manifest) -> bytes:
    content = {
        "format_version": FORMAT_VERSION,
        "progress": asdict(manifest.progress),
        "settings": manifest.settings,
        "files": {name: entry._asdict() for name, entry in sorted(manifest.files.items())},
    }
    content[_OWN_DIGEST] = _digest_of(content)
    return (json.dumps(content, indent=2) + "\n").encode()


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
