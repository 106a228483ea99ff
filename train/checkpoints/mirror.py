"""Mirrors checkpoints to durable storage, in the background."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from configs.errors import TesseraError
from train.checkpoints.context import CheckpointContext, error_line
from train.checkpoints.folders import checkpoint_steps, removable_aside
from train.checkpoints.manifest import Manifest
from train.record.run_folder import RunFolder

_RETRIES_SEC = (1.0, 4.0, 16.0)
"""Waits before the last copy is tried again, since no later one follows."""


class Mirror:
    """Copies checkpoints one at a time; a copy that fails is an event, and training continues.

    Does nothing if `context` has no durable storage.
    """

    def __init__(self, context: CheckpointContext):
        self._context, self._durable = context, context.durable
        self._background = ThreadPoolExecutor(1, thread_name_prefix="durable copy")
        self._copied: Future[str | None] | None = None
        self._copied_step: int | None = None
        self._is_behind = False
        """Whether the newest checkpoint has not been copied."""

    @property
    def in_progress(self) -> int | None:
        """The step that is being copied, whose files must stay."""
        is_running = self._copied is not None and not self._copied.done()
        return self._copied_step if is_running else None

    def begin(self, checkpoint: Path) -> None:
        """Begins to copy a checkpoint that was just saved, if due and no copy is in progress."""
        if self._durable is None:
            return
        step, period = int(checkpoint.name), self._context.config.durable_every_steps
        self._is_behind = True
        if self.in_progress is None and (period is None or step % period == 0):
            self._is_behind, self._copied_step = False, step
            self._copied = self._background.submit(self._copy, checkpoint)

    def _copy(self, checkpoint: Path) -> str | None:
        durable, step = self._durable, int(checkpoint.name)
        assert durable is not None
        # If nothing is set aside here any more, it was saved after the last rollback.
        is_new = not removable_aside(self._context.folder)
        try:
            durable.copy_small(RunFolder(self._context.folder.parent))
            durable.copy(checkpoint)
        except (OSError, TesseraError) as error:
            self._is_behind = True
            self._context.emit("copy_failed", step=step, cause=error_line(error))
            return error_line(error)
        self._context.emit("copied", step=step, url=durable.url)
        try:
            if is_new:
                durable.remove_aside()
            durable.remove_surplus(self._context.config)
        except (OSError, TesseraError) as error:
            self._context.emit("not_removed", step=step, cause=error_line(error))
        return None

    def rollback(self, manifest: Manifest) -> None:
        """Makes the copy of a checkpoint the newest one, with its manifest as it is now.

        Those of later steps are set aside, so that they are never restored.
        """
        self._settle()
        self._is_behind = True
        if self._durable is not None:
            self._durable.rollback(manifest)

    def complete(self) -> str | None:
        """Returns once the newest checkpoint is copied, or, after several tries, why it is not."""
        newest, cause = self._newest(), None
        if self._durable is None or newest is None:
            return None
        for wait_sec in (*_RETRIES_SEC, None):
            try:
                if not self._is_behind and int(newest.name) in self._durable.steps():
                    return None
                cause = self._copy(newest)
            except TesseraError as error:  # the storage is out of reach
                cause = error_line(error)
            if cause is None:
                self._is_behind = False
                return None
            if wait_sec is not None:
                time.sleep(wait_sec)
        return cause

    def close(self) -> None:
        """Copies the newest checkpoint even if it was not due, and returns when that is done."""
        newest = self._newest()
        if self._durable is not None and self._is_behind and newest is not None:
            self._copy(newest)
            self._is_behind = False
        self._background.shutdown()

    def _newest(self) -> Path | None:
        """Returns the newest local checkpoint, once no copy is in progress."""
        self._settle()
        newest = max(checkpoint_steps(self._context.folder), default=None)
        return None if newest is None else self._context.folder / str(newest)

    def _settle(self) -> None:
        if self._copied is not None:
            self._copied.result()
