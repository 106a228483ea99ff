"""Saves the state in the background and restores it, through Orbax."""

import errno
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import tensorstore as ts

from configs.errors import TesseraError, Unavailable
from sharding.distributed.processes import EndedElsewhere
from sharding.piecewise import PIECE_BYTES, fill, zeros
from sharding.tree_paths import by_path, nested
from train.checkpoints.manifest import (
    STATE,
    FileEntry,
    Manifest,
    Progress,
    begin_save,
    checkpoint_folders,
    describe_files,
    finish_save,
    list_files,
    read_manifest,
    remove_aside,
    remove_surplus,
    remove_unfinished,
    set_aside,
    write_manifest,
)
from train.checkpoints.mirror import Copies
from train.checkpoints.recovery import Place, words
from train.optimizer import Params
from train.state import TrainState

_SEEN_WITHIN_SEC = 60.0
"""How long a file that one machine has written may take to be seen by another."""


class Checkpoints:
    """Writes the checkpoints of one run in the background.

    Of several processes each writes and digests its part; the first does the rest. A save that
    fails is told as an event and leaves nothing behind; training goes on.
    """

    def __init__(
        self,
        place: Place,
        settings: Mapping[str, Any],
        next_batch: Callable[[Progress], str | None] = lambda progress: None,
        *,
        one_at_a_time: Any = None,
    ):
        """Removes what a killed process left unfinished.

        Args:
            one_at_a_time: a tree of arrays of which no more than the largest is to be on its way
                to the disk at once, and which stay as they are until they are there; None takes
                what memory it takes, to be done sooner.
            settings: of the run, by flat name; they go into every manifest.
            next_batch: the digest of the batch that follows; it is computed in the background.
        """
        self._place, self._processes = place, place.processes
        self._settings = dict(settings)
        self._next_batch = next_batch
        self._stays = one_at_a_time is not None
        limit: dict[str, Any] = {}
        if one_at_a_time is not None:
            # What is compressed would be in memory beside what it is made of.
            limit = {"save_concurrent_gb": _most_gb(one_at_a_time), "use_compression": False}
        self._saver = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(**limit))
        self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._finished: Future[str | None] | None = None
        self._copies = Copies(place)
        if self._processes.is_first:
            remove_unfinished(place.folder)

    def save(
        self,
        state: TrainState,
        progress: Progress,
        before: Callable[[], None] = lambda: None,
        *,
        keeps_all: bool = False,
    ) -> None:
        """Begins to save a state, after waiting for the save before it.

        Args:
            before: called in the first process; the save fails if it raises OSError.
            keeps_all: older checkpoints stay, also those that the settings do not keep.
        """
        began = time.perf_counter()
        self.wait()
        making, cause = None, None
        if self._processes.is_first:
            try:
                before()
                _check_space(self._place.folder, state)
                making = begin_save(self._place.folder, progress.step)
            except OSError as error:
                cause = words(error)
        making, cause = self._processes.from_first("save", [making and str(making), cause])
        if cause is None:
            try:
                if jax.default_backend() == "cpu" and not self._stays:
                    # Orbax writes from a CPU's arrays themselves, which the next step would reuse.
                    state = jax.tree.map(jnp.copy, state)
                self._saver.save(Path(making) / STATE, args=_saving(state, frugal=self._stays))
            except (OSError, ValueError) as error:
                cause = words(error)
        stall_sec = time.perf_counter() - began
        self._finished = self._background.submit(
            self._finish, making and Path(making), progress, stall_sec, cause, keeps_all
        )

    def _finish(
        self,
        making: Path | None,
        progress: Progress,
        stall_sec: float,
        cause: str | None,
        keeps_all: bool,
    ) -> str | None:
        """Makes a save that was begun count; returns why it does not, the same in every process."""
        began = time.perf_counter()
        cause, files = self._describe(making, cause)
        if self._processes.is_first:
            cause = cause or self._make_whole(making, progress, files)
            if cause is None:
                self._place.say(
                    "saved",
                    step=progress.step,
                    bytes=sum(entry.bytes for entry in files.values()),
                    stall_sec=round(stall_sec, 4),
                    write_sec=round(time.perf_counter() - began, 4),
                )
                self._clear_up(progress.step, keeps_all)
            else:
                if making is not None:
                    shutil.rmtree(making, ignore_errors=True)
                self._place.say("save_failed", step=progress.step, cause=cause)
        return self._processes.from_first("saved", cause)

    def _describe(
        self, making: Path | None, cause: str | None
    ) -> tuple[str | None, dict[str, FileEntry]]:
        """Returns, in the first process, why a save failed, or size and digest of all its files.

        Each process says which files it sees, for on a shared file system none may see all of them
        at once; what any of them sees belongs to the checkpoint, and is digested by one of them.
        """
        seen: list[str] = []
        if cause is None:
            assert making is not None
            try:
                self._saver.wait_until_finished()  # in every process: all parts are on disk
                seen = sorted(list_files(making))
            except EndedElsewhere:
                raise
            except Exception as error:  # of whatever stands between Orbax and the disk
                cause = words(error)
        said = self._processes.gather("saved files", [cause, seen])
        names = sorted({name for _, seen in said for name in seen})
        cause = next((cause for cause, _ in said if cause), None)
        cause, names = self._processes.from_first("files of the save", [cause, names])
        entries: dict[str, FileEntry] = {}
        if cause is None:
            assert making is not None
            try:
                part = names[self._processes.index :: self._processes.num]
                entries = _described_once_seen(making, part)
            except (OSError, TesseraError) as error:
                cause = words(error)
        parts = self._processes.gather("saved parts", [cause, entries])
        cause = next((cause for cause, _ in parts if cause), None)
        files = {name: FileEntry(*entry) for _, part in parts for name, entry in part.items()}
        return cause, files

    def _make_whole(
        self, making: Path | None, progress: Progress, files: Mapping[str, FileEntry]
    ) -> str | None:
        """Gives a checkpoint its manifest and its name; returns why that failed."""
        assert making is not None
        try:
            progress = replace(progress, next_batch_sha256=self._next_batch(progress))
            manifest = Manifest(progress=progress, settings=self._settings, files=dict(files))
            finish_save(making, manifest)
        except (OSError, TesseraError) as error:
            return words(error)
        return None

    def _clear_up(self, step: int, keeps_all: bool) -> None:
        """Copies a checkpoint that counts, and removes what is not kept beside it.

        What fails here is told, and does not make the save fail.
        """
        folder = self._place.folder
        if not keeps_all:
            remove_aside(folder)
        self._copies.begin(folder / str(step))
        try:
            if not keeps_all:
                remove_surplus(folder, self._place.config, spared=self._copies.in_progress)
        except (OSError, TesseraError) as error:
            self._place.say("not_removed", step=step, cause=words(error))

    def go_back(self, progress: Progress) -> None:
        """Makes a checkpoint the newest one of the run, here and in durable storage.

        Those of later steps are set aside, and its manifest says what `progress` says.

        Raises:
            Unavailable: the disk or storage does not answer; the run may be started again.
        """
        self.wait()
        cause = None
        if self._processes.is_first:
            try:
                progress = replace(progress, next_batch_sha256=self._next_batch(progress))
                self._go_back(progress)
            except (OSError, TesseraError) as error:
                cause = words(error)
        cause = self._processes.from_first("went back", cause)
        if cause is not None:
            raise Unavailable(f"going back to step {progress.step} failed: {cause}; start again")

    def _go_back(self, progress: Progress) -> None:
        folder, step = self._place.folder, progress.step
        manifest = replace(read_manifest(folder, step), progress=progress)
        # Storage first: a copy that is newer than all that is here would be fetched at a restart.
        self._copies.go_back(manifest)
        for later in reversed(checkpoint_folders(folder)):
            if later > step:
                set_aside(folder, later)
        write_manifest(folder / str(step), manifest)

    def wait(self) -> str | None:
        """Waits for the save that was begun; returns why it failed, None if it counts."""
        if self._finished is None:
            return None
        finished, self._finished = self._finished, None
        return finished.result()

    def complete_copies(self) -> str | None:
        """Returns once durable storage has the newest checkpoint, or why it has not."""
        self.wait()
        cause = self._copies.complete() if self._processes.is_first else None
        return self._processes.from_first("copied", cause)

    def close(self) -> None:
        """Waits for saves and copies, then ends the background threads."""
        try:
            self.wait()
        finally:
            self._copies.close()
            self._background.shutdown()
            self._saver.close()


def _described_once_seen(making: Path, names: Sequence[str]) -> dict[str, FileEntry]:
    """Returns what a manifest says of files that another machine may only just have written."""
    deadline = time.monotonic() + _SEEN_WITHIN_SEC
    while True:
        try:
            return describe_files(making, names)
        except FileNotFoundError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _saving(state: TrainState, *, frugal: bool) -> ocp.args.PyTreeSave:
    """Returns what Orbax is to save, large arrays in pieces that can be read by themselves.

    Args:
        frugal: files are small, because the content of a file is in memory until it is full.
    """
    pieces = jax.tree.map(lambda leaf: ocp.SaveArgs(**_cut(leaf)), state)
    most = PIECE_BYTES if frugal else None
    return ocp.args.PyTreeSave(state, save_args=pieces, ocdbt_target_data_file_size=most)


def _cut(leaf: jax.Array) -> dict[str, Any]:
    """Returns how a large array is cut on disk: into layers first, where it has layers."""
    if leaf.nbytes <= PIECE_BYTES:
        return {}
    return {"chunk_byte_size": PIECE_BYTES, "shard_axes": (0,) if leaf.ndim > 2 else ()}


def _most_gb(tree: Any) -> Any:
    """Returns the size of the largest array and a little more, as Orbax wants it."""
    sizes = [math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)]
    return 1.01 * max(sizes) / 1e9 + 1e-6


def _check_space(folder: Path, state: TrainState) -> None:
    """Raises OSError unless the disk has room for a state, before any of it is written."""
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC, f"{folder} has {free:,} bytes free, but a save needs {needed:,}"
        )


def stored_bytes() -> int:
    """Returns how many bytes of arrays this process has read and written so far."""
    return sum(
        int(value.get("value", 0))
        for metric in ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes")
        for value in metric["values"]
    )


def restore_state(folder: Path, step: int, like: TrainState) -> TrainState:
    """Returns the state of a verified checkpoint, each leaf where `like` wants it.

    Args:
        like: shapes, dtypes and shardings; it may be another layout than that of the save.
    """
    handler = ocp.Checkpointer(ocp.StandardCheckpointHandler())
    path = folder.absolute() / str(step) / STATE
    return handler.restore(path, args=ocp.args.StandardRestore(like))


def restore_params(folder: Path, step: int, like: Params, *, frugal: bool = False) -> Params:
    """Returns the parameters of a verified checkpoint alone; its moments are not read.

    Args:
        frugal: read piece by piece, with little memory beside that of the parameters.
    """
    path = folder.absolute() / str(step) / STATE
    if frugal:
        return nested({name: _read_pieces(path, name, x) for name, x in by_path(like).items()})
    handler = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    wanted = {"params": like}
    return handler.restore(
        path,
        args=ocp.args.PyTreeRestore(
            item=wanted,
            restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
            partial_restore=True,
        ),
    )["params"]


def _read_pieces(path: Path, name: str, like: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns one parameter of a checkpoint that Orbax wrote, read layer by layer if it can be."""
    key = f"params/{name}".replace("/", ".")
    place = {"driver": "ocdbt", "base": path.as_uri(), "path": f"{key}/"}
    stored = ts.open({"driver": "zarr", "kvstore": place}, open=True).result()
    array = zeros(like.shape, like.dtype, like.sharding)
    if (stored.chunk_layout.read_chunk.shape or ())[:1] != (1,):
        return fill(array, stored, like.sharding)
    for layer in range(like.shape[0]):
        array = fill(array, stored[layer], like.sharding, (layer,))
    return array
