"""What is done between two steps: evaluation, samples, checkpoints."""

import time

import jax
import jax.numpy as jnp

from configs.errors import Stopped
from train.checkpoints.manifest import RunProgress
from train.checkpoints.save import Checkpoints
from train.evaluate import Evaluator
from train.generation.generate import Sampler
from train.health.divergence import Trouble
from train.health.signals import Wish
from train.health.stragglers import Own, slow_processes
from train.record.console import logger
from train.record.metrics import MetricsWriter
from train.record.recorder import Recorder
from train.run_context import Run
from train.state import TrainState, in_model_order

_RETRIES_SEC = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0)
"""Waits before a save is tried again after which nothing would come."""


class Between:
    """Evaluates, samples and saves when a step asks for it; the last step asks for all three."""

    def __init__(
        self, run: Run, checkpoints: Checkpoints, recorder: Recorder, writer: MetricsWriter
    ):
        self._run, self._checkpoints = run, checkpoints
        self._recorder, self._writer = recorder, writer
        self._evaluate = Evaluator(run.config, run.data, run.mesh)
        self._sample = Sampler(run.config, run.data.tokenizer, run.mesh)
        self._slow: dict[int, str] = {}
        self._warn_of_costly_evaluation()

    def _warn_of_costly_evaluation(self) -> None:
        """Says where evaluation takes more than the training between: a token costs a third."""
        config, num_tokens = self._run.config, self._evaluate.num_tokens
        period = config.eval.every_steps or config.train.num_steps
        num_trained = period * config.train.batch_size * config.data.sequence_len
        if num_tokens > 3 * num_trained:
            logger.warning(
                f"an evaluation of {num_tokens:,} tokens each eval.every_steps="
                f"{config.eval.every_steps} costs more than training on the {num_trained:,} tokens "
                f"between them: pass --eval.max_tokens {max(num_trained // 10, 1)} for a part of "
                "it, or a larger --eval.every_steps"
            )

    def begin(self, start: RunProgress) -> None:
        """Begins after a step: that of a checkpoint, or 0."""
        self._is_overdue = False
        self._last_finite_step = start.step
        """The newest step whose state is known to be finite: no other is ever saved."""

    def __call__(self, state: TrainState, step: int, wish: Wish) -> None:
        """Does what is due after a step; a run that stops is saved.

        What would be saved while steps go wrong waits until the guard is calm again, or until the
        run goes back.

        Raises:
            Stopped: the run stops or ends here, but its state cannot be saved.
        """
        config, spans = self._run.config, self._run.spans
        evaluates = self._is_due(step, config.eval.every_steps) and bool(self._evaluate.sets)
        samples = self._is_due(step, config.sample.every_steps)
        saves = self._is_due(step, config.checkpoint.every_steps) or self._is_overdue
        is_last = wish.stop is not None or step == config.train.num_steps
        if not (evaluates or samples or saves or wish.save or is_last):
            return
        with self._recorder.paused():
            evaluation = None
            if evaluates:
                with spans("evaluation"):
                    evaluation = self._evaluate(state.params)
            self._recorder.finish(evaluation and evaluation.record())
            with spans("straggler probe"):
                self._name_slow_processes(step)
            if samples:
                with spans("sample"):
                    self._show(self._sample(state.params, step), step)
            self._is_overdue = saves and self._recorder.is_worried and not is_last
            if (saves or wish.save or is_last) and not self._is_overdue:
                with spans("stall"):
                    self._save(state, step, evaluation and evaluation.loss, is_last=is_last)

    def _name_slow_processes(self, step: int) -> None:
        """Says which processes the others wait for; one that stays slow is said once."""
        processes = self._run.processes
        if processes.num == 1:
            return
        measured = processes.gather("pace", list(self._recorder.pace.look()))
        slow = slow_processes([Own(*own) for own in measured], self._recorder.step_sec)
        for process in slow.keys() - self._slow.keys():
            logger.warning(f"process {process} holds the others up: {slow[process]}")
            self._run.folder.add_event(
                "slow_process", step=step, process=process, cause=slow[process]
            )
        self._slow = slow

    def _show(self, text: str, step: int) -> None:
        if not self._run.folder.write_sample(step, text):
            logger.warning(f"the sample of step {step} could not be written")
        self._writer.write_text("sample", text, step, time.time())

    def _save(
        self, state: TrainState, step: int, eval_loss: float | None, *, is_last: bool
    ) -> None:
        if self._recorder.trouble is not None:
            return
        start = self._recorder.start
        if not _is_finite(state):
            # Any step since the last state that was looked at may have done it.
            cause = f"the state of step {step} is not finite, though its loss was"
            self._recorder.trouble = Trouble(self._last_finite_step + 1, step, cause)
            return
        self._last_finite_step = step
        progress = RunProgress(
            step=step,
            tokens=self._recorder.tokens,
            data_sha256=self._run.data.digest,
            step_ranges=start.step_ranges,
            num_rollbacks=start.num_rollbacks,
            guard=self._recorder.guard.memory(),
            ledger=self._run.spans.ledger.snapshot(),
            eval_loss=eval_loss,
            **self._run.position(),
        )
        ordered = in_model_order(state, self._run.config, self._run.mesh)
        self._begin_save(ordered, progress)
        if is_last:
            self._insist(ordered, progress)

    def _begin_save(self, ordered: TrainState, progress: RunProgress) -> None:
        # A checkpoint never counts before the lines up to it are on disk. One that is saved while
        # steps go wrong, for the run ends here, must not take the place of an older one.
        keep_all = self._recorder.is_worried
        self._checkpoints.save(ordered, progress, before=self._writer.flush, keep_all=keep_all)

    def _insist(self, ordered: TrainState, progress: RunProgress) -> None:
        """Returns when the save that was begun counts, which is tried again where it fails."""
        spans, cause = self._run.spans, None
        for wait_sec in (*_RETRIES_SEC, None):
            with spans("save"):
                cause = self._checkpoints.wait()
            if cause is None:
                return
            if wait_sec is None:
                break
            with spans("wait before another save"):
                time.sleep(wait_sec)
            self._begin_save(ordered, progress)
        older = self._run.folder.newest_step()
        raise Stopped(
            f"step {progress.step} could not be saved ({cause}); the newest checkpoint is "
            f"{f'that of step {older}' if older else 'none'}"
        )

    def _is_due(self, step: int, period: int | None) -> bool:
        is_last = step == self._run.config.train.num_steps
        return is_last or (period is not None and step % period == 0)


@jax.jit
def _is_finite(state: TrainState) -> jax.Array:
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in floats]))
