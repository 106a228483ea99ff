"""--init-from: a new run starts from the weights of another one, or from all of its state."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import SettingsError
from configs.require import require
from configs.run import RunConfig
from model.hf.folder import HFModel, is_hf_folder, open_hf_model
from model.hf.registry import architecture_fields, effective_settings
from train.checkpoints.folders import checkpoint_steps
from train.checkpoints.manifest import Manifest, read_manifest
from train.record.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class InitFrom:
    """What a run starts from."""

    run: Path
    """A run folder, or that of a Hugging Face model."""
    step: int | None
    """None for a Hugging Face model."""
    with_optimizer: bool
    """Optimizer state, step and position in the data too, not only the weights."""

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.run)

    @property
    def checkpoints(self) -> Path:
        return self.folder.checkpoints.absolute()

    def described(self) -> dict[str, Any]:
        """Returns the details of the event `branched`."""
        return {
            "run": str(self.run.absolute()),
            "step": self.step,
            "with_optimizer": self.with_optimizer,
        }


def find_init_from(
    given: str | None, folder: RunFolder, *, with_optimizer: bool
) -> InitFrom | None:
    """Returns what RUN, RUN@STEP or FOLDER names; RUN without a step is its newest checkpoint.

    None if nothing is given, or the run in the folder has started from it already: then the other
    run may have been removed.

    Raises:
        SettingsError: there is no such run or checkpoint, or the run started from something else.
    """
    if given is None:
        require(
            not with_optimizer,
            "--with-optimizer=True needs --init-from=None to be a run: give --init-from RUN@STEP",
        )
        return None
    path, at, number = given.rpartition("@") if "@" in given else (given, "", "")
    require(
        not at or number.isdigit(),
        f"--init-from={given} must be RUN, RUN@STEP such as runs/quickstart@400, or the folder of "
        "a Hugging Face model",
    )
    run, step = Path(path).expanduser(), int(number) if number else None
    if folder.newest_step() is not None:
        _check_started_from(folder, run, step, with_optimizer=with_optimizer)
        return None
    if is_hf_folder(run):
        require(
            not with_optimizer and step is None,
            f"--init-from={given} is a Hugging Face model, which has no optimizer and no steps: "
            "leave out --with-optimizer and @STEP",
        )
        return InitFrom(run=run, step=None, with_optimizer=False)
    source = RunFolder(run)
    source.read_config()  # raises if it is not a run folder
    steps = checkpoint_steps(source.checkpoints)
    require(bool(steps), f"--init-from={given} has no checkpoint yet")
    require(
        step is None or step in steps,
        f"--init-from={given}: step {step} must be a checkpoint of {path}: "
        f"{', '.join(map(str, steps))}",
    )
    chosen = steps[-1] if step is None else step
    return InitFrom(run=run, step=chosen, with_optimizer=with_optimizer)


def _check_started_from(
    folder: RunFolder, run: Path, step: int | None, *, with_optimizer: bool
) -> None:
    events = [event for event in folder.read_events() if event.get("event") == "branched"]
    before = {"run": None, "step": None, "with_optimizer": False, **(events[0] if events else {})}
    found = (before["run"], before["with_optimizer"])
    wanted = (str(run.absolute()), with_optimizer)
    start = f"from {before['run']}@{before['step']}" if events else "with random weights"
    require(
        found == wanted and step in (None, before["step"]),
        f"--init-from={run}{'' if step is None else f'@{step}'} --with-optimizer={with_optimizer} "
        f"does not fit --run-dir={folder.path}, which started {start} --with-optimizer="
        f"{before['with_optimizer']}: give another --run-dir, or leave out --init-from to resume",
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
        f"--init-from={source.run} has another architecture: "
        + "; ".join(f"{name}={value} there, {tessera[name]} here" for name, value in wrong.items())
        + "; to match it, add "
        + " ".join(f"--{name} {_typed(value)}" for name, value in wrong.items()),
    )
    return hf_model


def _typed(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def check_source(source: InitFrom, config: RunConfig) -> Manifest:
    """Returns the manifest of the checkpoint that a run of these settings can start from.

    Raises:
        SettingsError: its arrays have other shapes or meanings, or no step would be left.
        IntegrityError: its manifest is damaged.
    """
    assert source.step is not None
    manifest = read_manifest(source.checkpoints, source.step)
    manifest.check_model(
        f"--init-from={source.run}@{source.step}",
        config,
        groups=("model.", "optim.") if source.with_optimizer else ("model.",),
        way_out="give the settings of that run",
    )
    if source.with_optimizer and source.step >= config.train.num_steps:
        raise SettingsError(
            f"train.num_steps={config.train.num_steps} must be above {source.step}, the step of "
            f"--init-from={source.run}@{source.step}"
        )
    return manifest
