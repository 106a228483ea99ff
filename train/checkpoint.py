"""Saves the state in the background and restores it, through Orbax."""

import functools
import hashlib
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from configs.run import CheckpointConfig
from sharding.processes import ALONE, Processes
from train.checkpoint_files import (
    Progress,
    digest_files,
    remove_surplus,
    remove_unfinished,
    verify,
    write_manifest,
)
from train.state import TrainState


class Checkpoints:
    """Writes the checkpoints of one run in the background, and restores them.

    Of several processes each writes, digests and verifies its part; the first does the rest.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        processes: Processes = ALONE,
        *,
        read_only: bool = False,
    ):
        self._folder = folder.absolute()
        self._config = config
        self._processes = processes
        self._saver = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._finished: Future[None] | None = None
        if not read_only and processes.is_first:
            remove_unfinished(self._folder)

    def save(self, state: TrainState, progress: Progress) -> None:
        """Begins to save a state, after waiting for the save before it."""
        self.wait()
        folder = self._folder / str(progress.step)
        if self._processes.is_first:
            shutil.rmtree(folder, ignore_errors=True)  # of a run that went on from an older one
            folder.mkdir(parents=True)
        self._processes.wait("checkpoint folder")
        if jax.default_backend() == "cpu":
            # On a CPU Orbax writes from the arrays themselves, and the next step would reuse them.
            state = jax.tree.map(jnp.copy, state)
        self._saver.save(folder / "state", args=ocp.args.StandardSave(state))
        self._finished = self._background.submit(self._finish, folder, progress)

    def _finish(self, folder: Path, progress: Progress) -> None:
        self._saver.wait_until_finished()  # in every process: all parts are on disk
        own = digest_files(folder, part=self._processes.index, num_parts=self._processes.num)
        parts = self._processes.gather("checkpoint digests", own)
        if self._processes.is_first:
            digests = {name: digest for part in parts for name, digest in part.items()}
            write_manifest(folder, progress, digests)
            remove_surplus(self._folder, self._config)
        self._processes.wait("checkpoint written")

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Returns the state of a checkpoint, each leaf where `like` (shapes, shardings) wants it.

        Raises:
            IntegrityError: a file is missing or differs from what the manifest says.
        """
        verify(self._folder, step, part=self._processes.index, num_parts=self._processes.num)
        self._processes.wait("checkpoint verified")
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
    """Returns the SHA-256 over sorted paths, shapes, dtypes and little-endian bytes of arrays.

    Every process that holds a part of an array must call it; each gets the same digest.
    """
    total = hashlib.sha256()
    leaves, _ = jax.tree.flatten_with_path(params)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}
    for name, array in sorted(named.items()):
        total.update(f"{name}\0{array.shape}\0{array.dtype.name}\0".encode())
        for piece in on_host(array):
            total.update(piece.astype(piece.dtype.newbyteorder("<")).tobytes())
    return total.hexdigest()


def on_host(array: Any) -> Iterator[np.ndarray]:
    """Yields an array in order: at once where this process holds all of it, else in pieces."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        yield from gather_pieces(array)
    else:
        yield jax.device_get(array)


def gather_pieces(array: jax.Array, piece_bytes: int = 1 << 26) -> Iterator[np.ndarray]:
    """Yields whole rows of an array, each piece from all devices, of at most so many bytes.

    A row is what the first dim counts, such as a layer; a piece has at least one.
    """
    assert isinstance(array.sharding, NamedSharding)
    gather_rows = _row_gatherer(array.sharding.mesh)
    num_rows = array.shape[0] if array.ndim else 1
    num_together = max(1, piece_bytes * num_rows // max(array.nbytes, 1))
    for first in range(0, num_rows, num_together):
        yield np.asarray(gather_rows(array, first, min(num_together, num_rows - first)))


@functools.cache
def _row_gatherer(mesh: jax.sharding.Mesh) -> Any:
    @functools.partial(
        jax.jit, static_argnums=2, out_shardings=NamedSharding(mesh, PartitionSpec())
    )
    def gather_rows(array: jax.Array, first: jax.Array, size: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(array, first, size) if array.ndim else array

    return gather_rows
