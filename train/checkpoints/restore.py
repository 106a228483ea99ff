"""Restores a state or its parameters through Orbax, from checkpoints of earlier versions too."""

from pathlib import Path

import jax
import orbax.checkpoint as ocp
import tensorstore as ts

from sharding.fill_sharded import fill, zeros
from sharding.tree_paths import by_path, nested
from train.checkpoints.manifest import STATE
from train.checkpoints.renamed_arrays import earlier_names, inverse, renamed
from train.optimizer import Params
from train.state import TrainState


def restore_state(folder: Path, step: int, like: TrainState) -> TrainState:
    """Returns the state of a verified checkpoint in the layout of `like`, perhaps another one."""
    path = folder.absolute() / str(step) / STATE
    names = earlier_names(path, like)
    handler = ocp.Checkpointer(ocp.StandardCheckpointHandler())
    state = handler.restore(path, args=ocp.args.StandardRestore(renamed(like, names)))
    return renamed(state, inverse(names))


def restore_params(folder: Path, step: int, like: Params, *, frugal: bool = False) -> Params:
    """Returns the parameters of a verified checkpoint, without reading its optimizer state.

    `frugal` reads them piece by piece, with little memory beside theirs.
    """
    path = folder.absolute() / str(step) / STATE
    names = earlier_names(path, like)
    wanted = {"params": renamed(like, names)}
    if frugal:
        state = nested({name: _read_pieces(path, name, x) for name, x in by_path(wanted).items()})
    else:
        state = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(
            path,
            args=ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                partial_restore=True,
            ),
        )
    return renamed(state["params"], inverse(names))


def _read_pieces(path: Path, name: str, like: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns one array of a checkpoint that Orbax wrote, read layer by layer if it can be."""
    store = {"driver": "ocdbt", "base": path.as_uri(), "path": f"{name.replace('/', '.')}/"}
    saved = ts.open({"driver": "zarr", "kvstore": store}, open=True).result()
    array = zeros(like.shape, like.dtype, like.sharding)
    if (saved.chunk_layout.read_chunk.shape or ())[:1] != (1,):
        return fill(array, saved, like.sharding)
    for layer in range(like.shape[0]):
        array = fill(array, saved[layer], like.sharding, (layer,))
    return array


def stored_bytes() -> int:
    """Returns how many bytes of arrays this process has read and written so far."""
    return sum(
        int(value.get("value", 0))
        for metric in ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes")
        for value in metric["values"]
    )
