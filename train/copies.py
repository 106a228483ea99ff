"""Copies of checkpoints in durable storage, made in the background from local ones."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from configs.errors import TesseraError
from train.recovery import Place, words
from train.run_folder import RunFolder


class Copies:
    """Copies checkpoints one at a time; a copy that fails is told of, and training goes on.

    Where `place` has no durable storage nothing is done.
    """

    def __init__(self, place: Place):
        self._place = place
        self._background = ThreadPoolExecutor(1, thread_name_prefix="durable copy")
        self._copied: Future[None] | None = None
        self._begun: int | None = None
        self._newest: Path | None = None
        """The newest checkpoint, where it was not due."""

    @property
    def in_progress(self) -> int | None:
        """The step that is being copied, whose files must stay."""
        return self._begun if self._copied is not None and not self._copied.done() else None

    def begin(self, checkpoint: Path) -> None:
        """Begins to copy a checkpoint if that is due and no copy is in progress."""
        if self._place.durable is None:
            return
        step, period = int(checkpoint.name), self._place.config.durable_every_steps
        self._newest = checkpoint
        if self.in_progress is None and (period is None or step % period == 0):
            self._newest, self._begun = None, step
            self._copied = self._background.submit(self._copy, checkpoint)

    def _copy(self, checkpoint: Path) -> None:
        durable, step = self._place.durable, int(checkpoint.name)
        assert durable is not None
        try:
            durable.copy_small(RunFolder(self._place.folder.parent))
            durable.copy(checkpoint)
            durable.keep(self._place.config)
        except (OSError, TesseraError) as error:
            self._place.say("copy_failed", step=step, cause=words(error))
        else:
            self._place.say("copied", step=step, url=durable.url)

    def forget_after(self, step: int) -> None:
        """Removes the copies of steps that the run has gone back from."""
        if self._copied is not None:
            self._copied.result()
        self._newest = None
        if self._place.durable is not None:
            for later in self._place.durable.steps():
                if later > step:
                    self._place.durable.remove(later)

    def close(self) -> None:
        """Copies the newest checkpoint though it was not due, and ends when that is done."""
        if self._copied is not None:
            self._copied.result()
        if self._newest is not None and self._newest.is_dir():
            self._copy(self._newest)
        self._background.shutdown()
