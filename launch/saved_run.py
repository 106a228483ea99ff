"""Opens a trained run for the commands that use its model."""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import jax

from configs.errors import SettingsError
from configs.require import require
from configs.run import MeshConfig, RunConfig
from data.mixture import Data
from data.open_data import given_tokenizer, open_data
from data.tokenizers.tokenizer import Tokenizer
from sharding.layout_check import check_fit, num_stage_microbatches
from sharding.mesh import make_mesh
from sharding.rules import mesh_axes
from train.checkpoints.folders import checkpoint_steps
from train.checkpoints.manifest import read_progress
from train.checkpoints.restore import restore_params
from train.checkpoints.verify import verify
from train.optimizer import Params
from train.record.run_folder import RunFolder
from train.state import abstract_state, params_in_stage_order


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """Settings, data and parameters of a run, on the devices of this process."""

    config: RunConfig
    data: Data | None
    """None for a model that was imported and not trained."""
    tokenizer: Tokenizer | None
    params: Params
    step: int
    mesh: jax.sharding.Mesh

    def on_mesh(self) -> AbstractContextManager:
        return jax.set_mesh(self.mesh)


def open_run(
    run: Path,
    step: int | None,
    cache_dir: Path,
    mesh_config: MeshConfig | None = None,
    *,
    frugal: bool = False,
) -> SavedRun:
    """Returns a run at a step, or at its newest checkpoint.

    Args:
        mesh_config: None takes the mesh that the run was trained on if it fits the devices here,
            else fully_sharded.
        frugal: read the parameters piece by piece, with little memory beside theirs.

    Raises:
        SettingsError: it is not a run folder, or has no such checkpoint, or the mesh does not fit.
        IntegrityError: the checkpoint or the data is not what its manifest says.
    """
    folder = RunFolder(run)
    config = folder.read_config()
    if mesh_config is None:
        mesh_config = config.mesh if _fits(config, config.mesh) else fully_sharded(config)
    config, mesh = on_devices(config, mesh_config)
    steps = checkpoint_steps(folder.checkpoints)
    require(bool(steps), f"{run} has no checkpoint yet; train it until the first is saved")
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
        data = open_data(
            config.data, cache_dir, lambda line: None, known_folders=progress.data_folders
        )
        progress.check_data(data.digest, config.data)
        tokenizer = data.tokenizer
    verify(folder.checkpoints, chosen, config.checkpoint.verify)
    like = abstract_state(config, mesh).params
    params = restore_params(folder.checkpoints, chosen, like, frugal=frugal)
    params = params_in_stage_order(params, config, mesh)
    return SavedRun(
        config=config, data=data, tokenizer=tokenizer, params=params, step=chosen, mesh=mesh
    )


def fully_sharded(config: RunConfig) -> MeshConfig:
    """Returns the mesh of all devices here that shards the parameters the most."""
    num = jax.device_count()
    meshes = (MeshConfig(fsdp=size) for size in range(num, 0, -1) if num % size == 0)
    return next(mesh for mesh in meshes if _fits(config, mesh))


def on_devices(config: RunConfig, mesh_config: MeshConfig) -> tuple[RunConfig, jax.sharding.Mesh]:
    """Returns the settings for a mesh of the devices here, and that mesh.

    eval.batch_size is rounded up to a multiple of the number of shards of a batch.

    Raises:
        SettingsError: they do not fit.
    """
    mesh = make_mesh(mesh_config)
    config = replace(config, mesh=mesh_config)
    share = num_stage_microbatches(config, mesh.shape["stage"])
    share *= math.prod(mesh.shape[axis] for axis in mesh_axes("act_batch"))
    batch_size = -(-(config.eval.batch_size or config.train.batch_size) // share) * share
    config = replace(config, eval=replace(config.eval, batch_size=batch_size))
    no_training = replace(config.train, batch_size=batch_size, num_microbatches=1)
    check_fit(replace(config, train=no_training), dict(mesh.shape))
    return config, mesh


def _fits(config: RunConfig, mesh_config: MeshConfig) -> bool:
    try:
        on_devices(config, mesh_config)
    except SettingsError:
        return False
    return True
