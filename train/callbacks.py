"""What the loop does between two steps: evaluate, record, find stragglers, sample, save."""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from configs.errors import Stopped
from sharding.pipeline import pipeline_of
from train.checkpoints.manifest import RunProgress
from train.checkpoints.save import Checkpoints
from train.evaluate import Evaluation, Evaluator
from train.generation.generate import make_generate
from train.health.divergence import Divergence
from train.health.signals import StopRequest
from train.health.stragglers import find_stragglers
from train.record.console import logger
from train.record.metrics_writer import MetricsWriter
from train.record.recorder import Recorder
from train.run_context import RunContext
from train.state import TrainState, in_model_order

_RETRIES_SEC = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0)
"""Waits before the last save of a process is tried again."""


@dataclass(frozen=True)
class StepEnd:
    """The end of a step, as its callbacks see it."""

    state: TrainState
    step: int
    request: StopRequest
    num_steps: int

    def is_due(self, period: int | None) -> bool:
        """Returns whether what is done every `period` steps is due; at the last step all is."""
        return self.step == self.num_steps or (period is not None and self.step % period == 0)

    @property
    def is_last(self) -> bool:
        """Whether the process takes no further step."""
        return self.request.stop is not None or self.step == self.num_steps


class Callbacks:
    """What is done after a step, if anything is due: evaluate, record, sample and save."""

    def __init__(
        self, run: RunContext, checkpoints: Checkpoints, recorder: Recorder, writer: MetricsWriter
    ):
        self._run, self._config, self._checkpoints = run, run.config, checkpoints
        self._recorder, self._writer = recorder, writer
        self._evaluator = Evaluator(run.config, run.data, run.mesh)
        self._generate = make_generate(
            run.config.model,
            run.config.sample,
            run.data.tokenizer,
            run.config.data.sequence_len,
            run.config.data.target_len,
            pipeline_of(run.config, run.mesh),
        )
        self._stragglers: dict[int, str] = {}
        self._warn_if_evaluation_is_costly()

    def _warn_if_evaluation_is_costly(self) -> None:
        """Warns if evaluation costs more than training; a token of it costs a third."""
        config, num_tokens = self._config, self._evaluator.num_tokens
        period = config.eval.every_steps or config.train.num_steps
        num_trained = period * config.train.batch_size * config.data.sequence_len
        if num_tokens > 3 * num_trained:
            logger.warning(
                f"an evaluation of {num_tokens:,} tokens each eval.every_steps="
                f"{config.eval.every_steps} costs more than training on the {num_trained:,} tokens "
                f"between them: pass --eval.max-tokens {max(num_trained // 10, 1)} to evaluate on "
                "a part of it, or a larger --eval.every-steps"
            )

    def begin(self, start: RunProgress) -> None:
        """Starts after a step, that of a checkpoint or 0, whose state is finite."""
        self._save_is_postponed = False
        self._last_finite_step = start.step
        """The newest step whose state is known to be finite: no other is ever saved."""

    def __call__(self, state: TrainState, step: int, request: StopRequest) -> None:
        """Does what is due after a step.

        Raises:
            Stopped: the run ends here, but its state cannot be saved.
        """
        config, spans = self._config, self._run.spans
        end = StepEnd(state, step, request, config.train.num_steps)
        evaluates = end.is_due(config.eval.every_steps) and bool(self._evaluator.sets)
        samples = end.is_due(config.sample.every_steps)
        saves = self._is_periodic_save(end) or request.save or end.is_last
        if not (evaluates or samples or saves):
            return
        with self._recorder.paused():
            evaluation = None
            if evaluates:
                with spans("evaluation"):
                    evaluation = self._evaluator(state.params)
            with spans("record"):
                self._recorder.finish(evaluation and evaluation.record())
            with spans("straggler probe"):
                self._find_stragglers(step)
            if samples:
                with spans("sample"):
                    self._sample(end)
            if saves:
                with spans("stall"):
                    self._save(end, evaluation)

    def _find_stragglers(self, step: int) -> None:
        """Reports processes that slow the others down, once each."""
        recorder, processes = self._recorder, self._run.processes
        waits_sec = processes.gather("data waits", recorder.data_wait_sec)
        stragglers = find_stragglers(waits_sec, recorder.step_sec)
        for process in stragglers.keys() - self._stragglers.keys():
            self._run.emit("slow_process", step=step, process=process, cause=stragglers[process])
        self._stragglers = stragglers

    def _sample(self, end: StepEnd) -> None:
        prompts, seed = self._config.sample.prompts, self._config.train.seed + end.step
        texts = self._generate(end.state.params, prompts, seed)
        text = f"\n{'-' * 72}\n".join(texts) + "\n"
        if not self._run.folder.write_sample(end.step, text):
            logger.warning(f"the sample of step {end.step} could not be written")
        self._writer.write_text("sample", text, end.step, time.time())

    def _is_periodic_save(self, end: StepEnd) -> bool:
        return end.is_due(self._config.checkpoint.every_steps) or self._save_is_postponed

    def _save(self, end: StepEnd, evaluation: Evaluation | None) -> None:
        """Saves every checkpoint.every_steps, on request, at a stop and at the last step.

        A periodic save is postponed while steps are nonfinite or high, until the loss has recovered
        or the run is rolled back.
        """
        recorder, is_suspect = self._recorder, self._recorder.is_suspect
        self._save_is_postponed = self._is_periodic_save(end) and is_suspect and not end.is_last
        if self._save_is_postponed or recorder.divergence is not None:
            return
        if not _is_finite(end.state):
            # Any step since the last state that was checked may be the cause.
            cause = f"the state of step {end.step} is not finite, though its loss was"
            recorder.divergence = Divergence(self._last_finite_step + 1, end.step, cause)
            return
        self._last_finite_step = end.step
        progress = RunProgress(
            step=end.step,
            tokens=recorder.tokens,
            data_sha256=self._run.data.digest,
            step_ranges=recorder.start.step_ranges,
            num_rollbacks=recorder.start.num_rollbacks,
            guard=recorder.guard.memory(),
            ledger=self._run.spans.ledger.snapshot(),
            eval_loss=evaluation and evaluation.loss,
            **self._run.fixed_progress(),
        )
        ordered = in_model_order(end.state, self._config, self._run.mesh)
        self._begin_save(ordered, progress)
        if end.is_last:
            self._complete_save(ordered, progress)

    def _begin_save(self, ordered: TrainState, progress: RunProgress) -> None:
        # A checkpoint is never valid before the metrics up to it are on disk. One of a suspect
        # step, saved because the run ends here, must not replace an older one.
        keep_all = self._recorder.is_suspect
        self._checkpoints.save(ordered, progress, before=self._writer.flush, keep_all=keep_all)

    def _complete_save(self, ordered: TrainState, progress: RunProgress) -> None:
        """Waits until the checkpoint is valid; saves again if that fails."""
        spans, cause = self._run.spans, None
        for wait_sec in (*_RETRIES_SEC, None):
            with spans("save"):
                cause = self._checkpoints.wait()
            if cause is None:
                return
            if wait_sec is not None:
                with spans("wait before another save"):
                    time.sleep(wait_sec)
                self._begin_save(ordered, progress)
        older = self._run.folder.newest_step()
        raise Stopped(
            f"step {progress.step} could not be saved ({cause}); the newest checkpoint is "
            f"{f'that of step {older}' if older else 'none'}"
        )


@jax.jit
def _is_finite(state: TrainState) -> jax.Array:
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in floats]))
