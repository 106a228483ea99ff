"""What the loop does between two steps: evaluate, record, probe for stragglers, sample, save."""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from configs.errors import Stopped
from train.checkpoints.manifest import RunProgress
from train.checkpoints.save import Checkpoints
from train.evaluate import Evaluation, Evaluator
from train.generation.generate import Sampler
from train.health.divergence import Divergence
from train.health.signals import StopRequest
from train.health.stragglers import ProcessTimes, find_stragglers
from train.record.console import logger
from train.record.metrics_writer import MetricsWriter
from train.record.recorder import Recorder
from train.run_context import RunContext
from train.state import TrainState, in_model_order

_RETRIES_SEC = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0)
"""Waits before the last save of a process is tried again."""


@dataclass
class StepEnd:
    """The end of a step, as its callbacks see it."""

    state: TrainState
    step: int
    request: StopRequest
    num_steps: int
    evaluation: Evaluation | None = None
    """The evaluation of this step, once it has run."""

    def is_due(self, period: int | None) -> bool:
        """Returns whether what is done every `period` steps is due; at the last step all is."""
        return self.step == self.num_steps or (period is not None and self.step % period == 0)

    @property
    def is_last(self) -> bool:
        """Whether the process takes no further step."""
        return self.request.stop is not None or self.step == self.num_steps


class Callback:
    """Something that is done between two steps; by default whenever another callback is due."""

    span: str
    """The name of its time in SPANS."""

    def is_due(self, end: StepEnd) -> bool:
        """Returns whether it runs after this step."""
        return True

    def __call__(self, end: StepEnd) -> None:
        raise NotImplementedError


class Callbacks:
    """The callbacks of a run, in the order in which they run after a step."""

    def __init__(
        self, run: RunContext, checkpoints: Checkpoints, recorder: Recorder, writer: MetricsWriter
    ):
        self._run, self._recorder = run, recorder
        evaluate, sample = Evaluate(run), SampleText(run, writer)
        self._save = Save(run, checkpoints, recorder, writer)
        finish, probe = FinishRecord(recorder), ProbeStragglers(run, recorder)
        self._periodic: tuple[Callback, ...] = (evaluate, sample, self._save)
        self._all: tuple[Callback, ...] = (evaluate, finish, probe, sample, self._save)

    def begin(self, start: RunProgress) -> None:
        """Starts after a step: that of a checkpoint, or 0."""
        self._save.begin(start)

    def __call__(self, state: TrainState, step: int, request: StopRequest) -> None:
        """Runs the callbacks that are due after a step; none if none of the periodic ones is.

        Raises:
            Stopped: the run ends here, but its state cannot be saved.
        """
        end = StepEnd(state, step, request, self._run.config.train.num_steps)
        if not any(callback.is_due(end) for callback in self._periodic):
            return
        with self._recorder.paused():
            for callback in self._all:
                if callback.is_due(end):
                    with self._run.spans(callback.span):
                        callback(end)


class Evaluate(Callback):
    """Evaluates on all validation sets, every eval.every_steps and at the last step."""

    span = "evaluation"

    def __init__(self, run: RunContext):
        self._config = run.config
        self._evaluator = Evaluator(run.config, run.data, run.mesh)
        self._warn_if_costly()

    def _warn_if_costly(self) -> None:
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

    def is_due(self, end: StepEnd) -> bool:
        return end.is_due(self._config.eval.every_steps) and bool(self._evaluator.sets)

    def __call__(self, end: StepEnd) -> None:
        end.evaluation = self._evaluator(end.state.params)


class FinishRecord(Callback):
    """Finishes the metrics of the step, with its evaluation."""

    span = "record"

    def __init__(self, recorder: Recorder):
        self._recorder = recorder

    def __call__(self, end: StepEnd) -> None:
        self._recorder.finish(end.evaluation and end.evaluation.record())


class ProbeStragglers(Callback):
    """Reports processes that slow the others down, once each."""

    span = "straggler probe"

    def __init__(self, run: RunContext, recorder: Recorder):
        self._run, self._recorder = run, recorder
        self._stragglers: dict[int, str] = {}

    def __call__(self, end: StepEnd) -> None:
        processes = self._run.processes
        if processes.num == 1:
            return
        measured = processes.gather("process times", list(self._recorder.probe.measure()))
        times = [ProcessTimes(*each) for each in measured]
        stragglers = find_stragglers(times, self._recorder.step_sec)
        for process in stragglers.keys() - self._stragglers.keys():
            cause = stragglers[process]
            logger.warning(f"process {process} slows the others down: {cause}")
            self._run.folder.add_event("slow_process", step=end.step, process=process, cause=cause)
        self._stragglers = stragglers


class SampleText(Callback):
    """Writes sampled texts, every sample.every_steps and at the last step."""

    span = "sample"

    def __init__(self, run: RunContext, writer: MetricsWriter):
        self._run, self._writer = run, writer
        self._sampler = Sampler(run.config, run.data.tokenizer, run.mesh)

    def is_due(self, end: StepEnd) -> bool:
        return end.is_due(self._run.config.sample.every_steps)

    def __call__(self, end: StepEnd) -> None:
        text = self._sampler(end.state.params, end.step)
        if not self._run.folder.write_sample(end.step, text):
            logger.warning(f"the sample of step {end.step} could not be written")
        self._writer.write_text("sample", text, end.step, time.time())


class Save(Callback):
    """Saves every checkpoint.every_steps, on request, at a stop and at the last step.

    A periodic save is postponed while steps are nonfinite or high, until the loss has recovered or
    the run is rolled back.
    """

    span = "stall"

    def __init__(
        self, run: RunContext, checkpoints: Checkpoints, recorder: Recorder, writer: MetricsWriter
    ):
        self._run, self._checkpoints = run, checkpoints
        self._recorder, self._writer = recorder, writer

    def begin(self, start: RunProgress) -> None:
        """Starts after a step, whose state is finite."""
        self._is_postponed = False
        self._last_finite_step = start.step
        """The newest step whose state is known to be finite: no other is ever saved."""

    def is_due(self, end: StepEnd) -> bool:
        return self._is_periodic(end) or end.request.save or end.is_last

    def _is_periodic(self, end: StepEnd) -> bool:
        return end.is_due(self._run.config.checkpoint.every_steps) or self._is_postponed

    def __call__(self, end: StepEnd) -> None:
        is_suspect = self._recorder.is_suspect
        self._is_postponed = self._is_periodic(end) and is_suspect and not end.is_last
        if self._is_postponed or self._recorder.divergence is not None:
            return
        if not _is_finite(end.state):
            # Any step since the last state that was checked may be the cause.
            cause = f"the state of step {end.step} is not finite, though its loss was"
            first = self._last_finite_step + 1
            self._recorder.divergence = Divergence(first, end.step, cause)
            return
        self._last_finite_step = end.step
        progress = self._progress(end)
        ordered = in_model_order(end.state, self._run.config, self._run.mesh)
        self._begin_save(ordered, progress)
        if end.is_last:
            self._complete_save(ordered, progress)

    def _progress(self, end: StepEnd) -> RunProgress:
        recorder = self._recorder
        return RunProgress(
            step=end.step,
            tokens=recorder.tokens,
            data_sha256=self._run.data.digest,
            step_ranges=recorder.start.step_ranges,
            num_rollbacks=recorder.start.num_rollbacks,
            guard=recorder.guard.memory(),
            ledger=self._run.spans.ledger.snapshot(),
            eval_loss=end.evaluation and end.evaluation.loss,
            **self._run.fixed_progress(),
        )

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


@jax.jit
def _is_finite(state: TrainState) -> jax.Array:
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in floats]))
