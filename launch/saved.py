"""Opens a run that was trained before, for the commands that use its model."""

import dataclasses
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import jax

from configs.check import require
from configs.run import MeshConfig, RunConfig
from data.mixture import Data
from data.open_data import given_tokenizer, open_data
from data.tokenizers.tokenizer import Tokenizer
from sharding.mesh import make_mesh
from train.checkpoint import restore_params
from train.checkpoint_files import checkpoint_steps, read_progress, verify
from train.optimizer import Params
from train.run_folder import RunFolder
from train.state import abstract_state


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """A run's settings, data and parameters, on the devices that are here."""

    config: RunConfig
    data: Data | None
    """None where a model was imported and has not been trained here."""
    tokenizer: Tokenizer | None
    params: Params
    step: int
    mesh: jax.sharding.Mesh

    def on_mesh(self) -> AbstractContextManager:
        """Returns the context in which its model is called."""
        return jax.set_mesh(self.mesh)


def open_run(
    run: Path,
    step: int | None,
    cache_dir: Path,
    mesh: jax.sharding.Mesh | None = None,
    *,
    frugal: bool = False,
) -> SavedRun:
    """Returns a run at a step, or at its newest checkpoint.

    Args:
        mesh: where its parameters are put; None is whole on every device.
        frugal: read them piece by piece, with little memory beside theirs.

    Raises:
        SettingsError: it is not a run folder, or has no such checkpoint.
        IntegrityError: the checkpoint or the data is not what its manifest says.
    """
    folder = RunFolder(run)
    config = folder.read_config()
    steps = checkpoint_steps(folder.checkpoints)
    require(bool(steps), f"{run} has no checkpoint yet; let it train to its first")
    chosen = steps[-1] if step is None else step
    require(
        chosen in steps,
        f"--step={chosen} must be a checkpoint of {run}: {', '.join(map(str, steps))}",
    )
    progress = read_progress(folder.checkpoints, chosen)
    data, tokenizer = None, None
    if config.data.path is None and not config.data.mixture:
        tokenizer = given_tokenizer(config.data)
    else:
        data = open_data(config.data, cache_dir, lambda line: None, moved=progress.data_folders)
        progress.check_data(data.digest, config.data)
        tokenizer = data.tokenizer
    mesh = mesh or make_mesh(MeshConfig())
    batch_size = config.eval.batch_size or config.train.batch_size
    even = -(-batch_size // mesh.size) * mesh.size  # what the devices here can cut evenly
    config = dataclasses.replace(
        config, eval=dataclasses.replace(config.eval, batch_size=even), mesh=MeshConfig()
    )
    verify(folder.checkpoints, chosen, config.checkpoint.verify)
    like = abstract_state(config, mesh).params
    params = restore_params(folder.checkpoints, chosen, like, frugal=frugal)
    return SavedRun(
        config=config, data=data, tokenizer=tokenizer, params=params, step=chosen, mesh=mesh
    )
