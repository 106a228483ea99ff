"""Copies of checkpoints in durable storage, made in the background from local ones."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from configs.errors import TesseraError
from train.checkpoints.manifest import Manifest, checkpoint_steps, may_be_removed
from train.checkpoints.recovery import Place, words
from train.record.run_folder import RunFolder

_RETRIES_SEC = (1.0, 4.0, 16.0)
"""Waits before the last copy is tried again, after which nothing would come."""


class Copies:
    """Copies checkpoints one at a time; a copy that fails is told of, and training goes on.

    Where `place` has no durable storage nothing is done.
    """

    def __init__(self, place: Place):
        self._place, self._durable = place, place.durable
        self._background = ThreadPoolExecutor(1, thread_name_prefix="durable copy")
        self._copied: Future[str | None] | None = None
        self._begun: int | None = None
        self._is_behind = False
        """Whether the newest checkpoint has not been copied."""

    @property
    def in_progress(self) -> int | None:
        """The step that is being copied, whose files must stay."""
        return self._begun if self._copied is not None and not self._copied.done() else None

    def begin(self, checkpoint: Path) -> None:
        """Begins to copy a checkpoint that was just saved, if due and no copy is in progress."""
        if self._durable is None:
            return
        step, period = int(checkpoint.name), self._place.config.durable_every_steps
        self._is_behind = True
        if self.in_progress is None and (period is None or step % period == 0):
            self._is_behind, self._begun = False, step
            self._copied = self._background.submit(self._copy, checkpoint)

    def _copy(self, checkpoint: Path) -> str | None:
        """Copies a checkpoint; returns why that failed."""
        durable, step = self._durable, int(checkpoint.name)
        assert durable is not None
        # Where nothing is set aside here any more, it was saved after the last rollback.
        is_new = not may_be_removed(self._place.folder)
        try:
            durable.copy_small(RunFolder(self._place.folder.parent))
            durable.copy(checkpoint)
        except (OSError, TesseraError) as error:
            self._is_behind = True
            self._place.say("copy_failed", step=step, cause=words(error))
            return words(error)
        self._place.say("copied", step=step, url=durable.url)
        try:
            if is_new:
                durable.remove_aside()
            durable.keep(self._place.config)
        except (OSError, TesseraError) as error:
            self._place.say("not_removed", step=step, cause=words(error))
        return None

    def go_back(self, manifest: Manifest) -> None:
        """Makes the copy of a checkpoint say what its manifest says now, and be the newest one.

        Those of later steps are set aside, out of the way of every restore.
        """
        self._settle()
        self._is_behind = True
        if self._durable is not None:
            self._durable.go_back(manifest)

    def complete(self) -> str | None:
        """Returns once the newest checkpoint is copied, or why it cannot be, after some tries."""
        self._settle()
        newest = max(checkpoint_steps(self._place.folder), default=None)
        if self._durable is None or newest is None:
            return None
        cause = None
        for wait_sec in (*_RETRIES_SEC, None):
            try:
                if not self._is_behind and newest in self._durable.steps():
                    return None
                cause = self._copy(self._place.folder / str(newest))
            except TesseraError as error:  # it is out of reach
                cause = words(error)
            if cause is None:
                self._is_behind = False
                return None
            if wait_sec is not None:
                time.sleep(wait_sec)
        return cause

    def _settle(self) -> None:
        if self._copied is not None:
            self._copied.result()

    def close(self) -> None:
        """Copies the newest checkpoint though it was not due, and ends when that is done."""
        self._settle()
        newest = max(checkpoint_steps(self._place.folder), default=None)
        if self._durable is not None and self._is_behind and newest is not None:
            self._copy(self._place.folder / str(newest))
            self._is_behind = False
        self._background.shutdown()
