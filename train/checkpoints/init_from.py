"""A new run that begins with the weights of another one, or goes on where that one stood."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.check import require
from configs.errors import SettingsError
from configs.run import RunConfig
from configs.settings import classify, differences, flatten
from data.mixture import Data
from data.step_ranges import steps_from
from model.hf.folder import HFModel, is_hf_folder, open_hf_model
from model.hf.registry import architecture_fields, effective_settings
from train.checkpoints.manifest import Manifest, checkpoint_steps, read_manifest
from train.record.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class InitFrom:
    """What a run begins with."""

    run: Path
    """A run folder, or that of a Hugging Face model."""
    step: int | None
    """None for a Hugging Face model."""
    with_optimizer: bool
    """Moments, step and place in the data too, and not the weights alone."""

    @property
    def folder(self) -> RunFolder:
        """The run."""
        return RunFolder(self.run)

    @property
    def checkpoints(self) -> Path:
        """The folder with its checkpoint."""
        return self.folder.checkpoints.absolute()

    def described(self) -> dict[str, Any]:
        """Returns the details of the event."""
        return {
            "run": str(self.run.absolute()),
            "step": self.step,
            "with_optimizer": self.with_optimizer,
        }


def find_init_from(
    words: str | None, folder: RunFolder, *, with_optimizer: bool
) -> InitFrom | None:
    """Returns what RUN, RUN@STEP or FOLDER names; RUN without a step is its newest checkpoint.

    None if nothing is named, or the run in the folder has begun with it already: then the other
    run need not be there any more.

    Raises:
        SettingsError: there is no such run or checkpoint, or the run began with something else.
    """
    if words is None:
        require(
            not with_optimizer,
            "--with-optimizer=True needs --init-from=None to be a run: give --init-from RUN@STEP",
        )
        return None
    path, at, number = words.rpartition("@") if "@" in words else (words, "", "")
    require(
        not at or number.isdigit(),
        f"--init-from={words} must be RUN, RUN@STEP such as runs/quickstart@400, or the folder of "
        "a Hugging Face model",
    )
    run, step = Path(path).expanduser(), int(number) if number else None
    if folder.newest_step() is not None:
        _check_began_with(folder, run, step, with_optimizer=with_optimizer)
        return None
    if is_hf_folder(run):
        require(
            not with_optimizer and step is None,
            f"--init-from={words} is a Hugging Face model, which has no optimizer and no steps: "
            "leave out --with-optimizer and @STEP",
        )
        return InitFrom(run=run, step=None, with_optimizer=False)
    source = RunFolder(run)
    source.read_config()  # it is a run folder
    steps = checkpoint_steps(source.checkpoints)
    require(bool(steps), f"--init-from={words} has no checkpoint yet")
    require(
        step is None or step in steps,
        f"--init-from={words}: step {step} must be a checkpoint of {path}: "
        f"{', '.join(map(str, steps))}",
    )
    chosen = steps[-1] if step is None else step
    return InitFrom(run=run, step=chosen, with_optimizer=with_optimizer)


def _check_began_with(
    folder: RunFolder, run: Path, step: int | None, *, with_optimizer: bool
) -> None:
    events = [event for event in folder.read_events() if event.get("event") == "branched"]
    before = {"run": None, "step": None, "with_optimizer": False, **(events[0] if events else {})}
    found = (before["run"], before["with_optimizer"])
    wanted = (str(run.absolute()), with_optimizer)
    began = f"from {before['run']}@{before['step']}" if events else "with random weights"
    require(
        found == wanted and step in (None, before["step"]),
        f"--init-from={run}{'' if step is None else f'@{step}'} --with-optimizer={with_optimizer} "
        f"does not fit --run-dir={folder.path}, which began {began} with_optimizer="
        f"{before['with_optimizer']}: give another --run-dir, or leave it out to go on",
    )


def check_hf_model(source: InitFrom, config: RunConfig) -> HFModel:
    """Returns the Hugging Face model that a run of these settings can begin with.

    Raises:
        SettingsError: its arrays have other shapes or meanings; says what would fit.
        IntegrityError: one of its files is damaged.
    """
    model = config.model
    hf_model = open_hf_model(source.run, dtype=model.dtype)
    names = [f"model.{name}" for name in architecture_fields()]
    hf, tessera = (
        {f"model.{name}": value for name, value in effective_settings(m).items()}
        for m in (hf_model.config, model)
    )
    wrong = {name: hf[name] for name in names if hf[name] != tessera[name]}
    require(
        not wrong,
        f"--init-from={source.run} is another model: "
        + "; ".join(f"{name}={value} there, {tessera[name]} here" for name, value in wrong.items())
        + "; to begin with it add "
        + " ".join(f"--{name} {_typed(value)}" for name, value in wrong.items()),
    )
    return hf_model


def _typed(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def check_source(source: InitFrom, config: RunConfig) -> Manifest:
    """Returns the manifest of the checkpoint that a run of these settings can begin with.

    Raises:
        SettingsError: its arrays have other shapes or meanings, or the run would be over.
        IntegrityError: its manifest is damaged.
    """
    assert source.step is not None
    manifest = read_manifest(source.checkpoints, source.step)
    own = ("model.", "optim.") if source.with_optimizer else "model."
    changed = differences(manifest.settings, flatten(config))
    wrong = {
        name: values
        for name, values in changed.items()
        if name.startswith(own) and classify(name) == "incompatible"
    }
    require(
        not wrong,
        f"--init-from={source.run}@{source.step} is another model: "
        + "; ".join(f"{name}={old} there, {new} here" for name, (old, new) in wrong.items())
        + "; give the settings of that run",
    )
    if source.with_optimizer and source.step >= config.train.num_steps:
        raise SettingsError(
            f"train.num_steps={config.train.num_steps} must be above {source.step}, the step of "
            f"--init-from={source.run}@{source.step}"
        )
    return manifest


def branched_progress(manifest: Manifest, config: RunConfig, data: Data) -> dict[str, Any]:
    """Returns what a run with the optimizer of another one takes over of its progress.

    Its place in the data where that is the same; other data begins with its first row. Not what the
    guard remembers: the losses of that run say little of those of this one.
    """
    progress = manifest.progress
    same_data = progress.data_sha256 == data.digest
    ranges = progress.step_ranges if same_data else (steps_from(config, progress.step),)
    return {
        "step": progress.step,
        "tokens": progress.tokens,
        "step_ranges": ranges,
    }
