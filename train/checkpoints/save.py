"""Saves the state in the background, through Orbax."""

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

from configs.errors import TesseraError, Unavailable
from sharding.fill_sharded import PIECE_BYTES
from train.checkpoints.context import CheckpointContext, error_line
from train.checkpoints.folders import (
    begin_save,
    checkpoint_folders,
    finish_save,
    remove_aside,
    remove_surplus,
    remove_unfinished,
    set_aside,
)
from train.checkpoints.manifest import (
    STATE,
    FileEntry,
    Manifest,
    RunProgress,
    read_manifest,
    write_manifest,
)
from train.checkpoints.mirror import Mirror
from train.checkpoints.verify import describe_files, list_files
from train.state import TrainState

_SEEN_WITHIN_SEC = 60.0
"""How long a file that one machine has written may take to be seen by another."""


class Checkpoints:
    """Writes the checkpoints of one run in the background.

    Each process writes and checksums its part; the first does the rest. A save that fails is
    recorded as an event and leaves nothing behind; training continues.
    """

    def __init__(
        self,
        context: CheckpointContext,
        settings: Mapping[str, Any],
        next_batch: Callable[[RunProgress], str | None] = lambda progress: None,
        *,
        one_at_a_time: Any = None,
    ):
        """Removes what a killed process left unfinished.

        Args:
            settings: of the run, by flat name; they go into every manifest.
            next_batch: returns the digest of the next batch; called in the background.
            one_at_a_time: a tree of arrays that do not change until they are saved, and of which no
                more bytes than the largest has are in flight at once; None is faster, and takes
                more memory.
        """
        self.context, self._processes = context, context.processes
        self._settings = dict(settings)
        self._next_batch = next_batch
        self._is_frugal = one_at_a_time is not None
        limit: dict[str, Any] = {}
        if one_at_a_time is not None:
            # A compressed copy would be in memory beside the array.
            limit = {"save_concurrent_gb": _largest_gb(one_at_a_time), "use_compression": False}
        self._saver = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(**limit))
        self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._finished: Future[str | None] | None = None
        self._mirror = Mirror(context)
        if self._processes.is_first:
            remove_unfinished(context.folder)

    def save(
        self,
        state: TrainState,
        progress: RunProgress,
        before: Callable[[], None] = lambda: None,
        *,
        keep_all: bool = False,
    ) -> None:
        """Begins to save a state, after waiting for the save before it.

        Args:
            before: called in the first process; the save fails if it raises OSError.
            keep_all: also keep older checkpoints that the settings would remove.
        """
        began = time.perf_counter()
        self.wait()

        def begin() -> str:
            before()
            _check_space(self.context.folder, state)
            return str(begin_save(self.context.folder, progress.step))

        cause, saving = self.context.in_first("save", begin)
        if cause is None:
            try:
                copied = state
                if jax.default_backend() == "cpu" and not self._is_frugal:
                    # Orbax writes from a CPU's arrays themselves, which the next step would reuse.
                    copied = jax.tree.map(jnp.copy, state)
                self._saver.save(
                    Path(saving) / STATE, args=_save_args(copied, frugal=self._is_frugal)
                )
            except (OSError, ValueError) as error:
                cause = error_line(error)
        stall_sec = time.perf_counter() - began
        self._finished = self._background.submit(
            self._finish, saving and Path(saving), progress, stall_sec, cause, keep_all
        )

    def _finish(
        self,
        saving: Path | None,
        progress: RunProgress,
        stall_sec: float,
        cause: str | None,
        keep_all: bool,
    ) -> str | None:
        """Completes a save; returns why it failed, the same in every process."""
        began = time.perf_counter()
        cause, files = self._describe(saving, cause)

        def complete() -> None:
            assert saving is not None
            digest = self._next_batch(progress)
            whole = replace(progress, next_batch_sha256=digest)
            finish_save(saving, Manifest(progress=whole, settings=self._settings, files=files))

        if cause is None:
            cause, _ = self.context.in_first("saved", complete)
        if self._processes.is_first and cause is None:
            self.context.emit(
                "saved",
                step=progress.step,
                bytes=sum(entry.bytes for entry in files.values()),
                stall_sec=round(stall_sec, 4),
                write_sec=round(time.perf_counter() - began, 4),
            )
            self._mirror_and_remove(progress.step, keep_all)
        elif self._processes.is_first:
            if saving is not None:
                shutil.rmtree(saving, ignore_errors=True)
            self.context.emit("save_failed", step=progress.step, cause=cause)
        return cause

    def _describe(
        self, saving: Path | None, cause: str | None
    ) -> tuple[str | None, dict[str, FileEntry]]:
        """Returns why a save failed in any process, or in the first the entries of all its files.

        Each process lists the files that it sees, since on a shared file system none may see all of
        them at once; a file that any of them sees is in the checkpoint, and one process checksums
        it.
        """

        def list_seen() -> list[str]:
            if cause is not None or saving is None:
                raise OSError(cause)
            self._saver.wait_until_finished()  # in every process: all parts are on disk
            return sorted(list_files(saving))

        # Any error may come from between Orbax and the disk.
        failed, lists = self.context.everywhere("saved files", list_seen, (Exception,))
        if failed is not None:
            return failed, {}
        assert saving is not None
        names = sorted({name for seen in lists for name in seen})
        names = self._processes.from_first("files of the save", names)
        part = names[self._processes.index :: self._processes.num]
        failed, parts = self.context.everywhere(
            "saved parts", lambda: _describe_once_seen(saving, part)
        )
        if failed is not None:
            return failed, {}
        return None, {name: FileEntry(*entry) for own in parts for name, entry in own.items()}

    def _mirror_and_remove(self, step: int, keep_all: bool) -> None:
        """Mirrors a completed checkpoint, and removes those that are not kept.

        A failure here is an event, and does not make the save fail.
        """
        folder = self.context.folder
        if not keep_all:
            remove_aside(folder)
        self._mirror.begin(folder / str(step))
        try:
            if not keep_all:
                remove_surplus(folder, self.context.config, spared=self._mirror.in_progress)
        except (OSError, TesseraError) as error:
            self.context.emit("not_removed", step=step, cause=error_line(error))

    def rollback(self, progress: RunProgress) -> None:
        """Makes a checkpoint the newest one of the run, here and in durable storage.

        Those of later steps are set aside, and `progress` takes the place of that in its manifest.

        Raises:
            Unavailable: the disk or storage does not answer; the run may be started again.
        """
        self.wait()
        cause, _ = self.context.in_first("rollback", lambda: self._rollback(progress))
        if cause is not None:
            raise Unavailable(f"rollback to step {progress.step} failed: {cause}; start again")

    def _rollback(self, progress: RunProgress) -> None:
        folder, step = self.context.folder, progress.step
        progress = replace(progress, next_batch_sha256=self._next_batch(progress))
        manifest = replace(read_manifest(folder, step), progress=progress)
        # Storage first: a restart would fetch a copy that is newer than all local checkpoints.
        self._mirror.rollback(manifest)
        for later in reversed(checkpoint_folders(folder)):
            if later > step:
                set_aside(folder, later)
        write_manifest(folder / str(step), manifest)

    def wait(self) -> str | None:
        """Waits for the save in progress; returns why it failed, None if it succeeded."""
        if self._finished is None:
            return None
        finished, self._finished = self._finished, None
        return finished.result()

    def complete_mirror(self) -> str | None:
        """Returns once durable storage has the newest checkpoint, or why it has not."""
        self.wait()
        cause = self._mirror.complete() if self._processes.is_first else None
        return self._processes.from_first("copied", cause)

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._mirror.close()
            self._background.shutdown()
            self._saver.close()


def _describe_once_seen(saving: Path, names: Sequence[str]) -> dict[str, FileEntry]:
    """Returns the entries of files that another machine may only just have written."""
    deadline = time.monotonic() + _SEEN_WITHIN_SEC
    while True:
        try:
            return describe_files(saving, names)
        except FileNotFoundError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _save_args(state: TrainState, *, frugal: bool) -> ocp.args.PyTreeSave:
    """Returns what Orbax saves, large arrays in chunks that can be read one by one."""
    chunks = jax.tree.map(lambda leaf: ocp.SaveArgs(**_chunks(leaf)), state)
    file_bytes = PIECE_BYTES if frugal else None  # a file is in memory until it is full
    return ocp.args.PyTreeSave(state, save_args=chunks, ocdbt_target_data_file_size=file_bytes)


def _chunks(leaf: jax.Array) -> dict[str, Any]:
    """Returns how a large array is chunked on disk: by layer first, if it has layers."""
    if leaf.nbytes <= PIECE_BYTES:
        return {}
    return {"chunk_byte_size": PIECE_BYTES, "shard_axes": (0,) if leaf.ndim > 2 else ()}


def _largest_gb(tree: Any) -> Any:
    """Returns the size of the largest array and a little more, in GB."""
    sizes = [math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)]
    return 1.01 * max(sizes) / 1e9 + 1e-6


def _check_space(folder: Path, state: TrainState) -> None:
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC, f"{folder} has {free:,} bytes free, but a save needs {needed:,}"
        )
