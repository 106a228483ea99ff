"""Saves the state in the background and restores it, through Orbax."""

import hashlib
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from configs.run import CheckpointConfig
from train.checkpoint_files import (
    Progress,
    remove_surplus,
    remove_unfinished,
    verify,
    write_manifest,
)
from train.state import TrainState


class Checkpoints:
    """Writes the checkpoints of one run in the background, and restores them."""

    def __init__(self, folder: Path, config: CheckpointConfig, *, read_only: bool = False):
        self._folder = folder.absolute()
        self._config = config
        self._saver = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._finished: Future[None] | None = None
        if not read_only:
            remove_unfinished(self._folder)

    def save(self, state: TrainState, progress: Progress) -> None:
        """Begins to save a state, after waiting for the save before it."""
        self.wait()
        folder = self._folder / str(progress.step)
        shutil.rmtree(folder, ignore_errors=True)  # of a run that went on from an older checkpoint
        folder.mkdir(parents=True)
        if jax.default_backend() == "cpu":
            # On a CPU Orbax writes from the arrays themselves, and the next step would reuse them.
            state = jax.tree.map(jnp.copy, state)
        self._saver.save(folder / "state", args=ocp.args.StandardSave(state))
        self._finished = self._background.submit(self._finish, folder, progress)

    def _finish(self, folder: Path, progress: Progress) -> None:
        self._saver.wait_until_finished()
        write_manifest(folder, progress)
        remove_surplus(self._folder, self._config)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Returns the state of a checkpoint, each leaf where `like` (shapes, shardings) wants it.

        Raises:
            IntegrityError: a file is missing or differs from what the manifest says.
        """
        verify(self._folder, step)
        path = self._folder / str(step) / "state"
        return self._saver.restore(path, args=ocp.args.StandardRestore(like))

    def wait(self) -> None:
        """Returns when the save that was begun counts; raises what went wrong in it."""
        if self._finished is not None:
            finished, self._finished = self._finished, None
            finished.result()

    def close(self) -> None:
        """Waits, then ends the background threads."""
        try:
            self.wait()
        finally:
            self._background.shutdown()
            self._saver.close()


def params_digest(params: Mapping[str, Any]) -> str:
    """Returns the SHA-256 over sorted paths, shapes, dtypes and little-endian bytes of arrays."""
    total = hashlib.sha256()
    leaves, _ = jax.tree.flatten_with_path(jax.device_get(params))
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}
    for name, array in sorted(named.items()):
        little = array.astype(array.dtype.newbyteorder("<"))
        total.update(f"{name}\0{array.shape}\0{array.dtype.name}\0".encode())
        total.update(little.tobytes())
    return total.hexdigest()
