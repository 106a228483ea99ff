"""What is done between two steps: evaluation, samples, checkpoints."""

import time

import jax
import jax.numpy as jnp

from configs.errors import Diverged
from configs.run import RunConfig
from data.mixture import Data
from train.checkpoint import Checkpoints
from train.checkpoint_files import Progress
from train.evaluate import Evaluator
from train.generate import Sampler
from train.metrics import MetricsWriter
from train.recorder import Recorder
from train.run_folder import RunFolder
from train.state import TrainState, in_model_order


class Between:
    """Evaluates, samples and saves when a step asks for it; the last step asks for all three."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        data: Data,
        mesh: jax.sharding.Mesh,
        start: Progress,
        checkpoints: Checkpoints,
        recorder: Recorder,
        writer: MetricsWriter,
    ):
        self._config, self._folder, self._data = config, folder, data
        self._mesh, self._start = mesh, start
        self._checkpoints, self._recorder, self._writer = checkpoints, recorder, writer
        self._evaluate = Evaluator(config, data, mesh)
        self._sample = Sampler(config, data.tokenizer, mesh)

    def __call__(self, state: TrainState, step: int, *, stops: bool) -> None:
        """Does what is due after a step; a run that stops is saved.

        Raises:
            Diverged: the state that should be saved is not finite.
        """
        config = self._config
        evaluates = self._is_due(step, config.eval.every_steps)
        samples = self._is_due(step, config.sample.every_steps)
        saves = self._is_due(step, config.checkpoint.every_steps) or stops
        if not (evaluates or samples or saves):
            return
        with self._recorder.paused():
            evaluation = self._evaluate(state.params) if evaluates and self._evaluate.sets else None
            self._recorder.finish(evaluation and evaluation.record())
            if samples:
                text = self._sample(state.params, step)
                self._folder.write_sample(step, text)
                self._writer.write_text("sample", text, step, time.time())
            if saves:
                self._save(state, step, evaluation and evaluation.loss)

    def _save(self, state: TrainState, step: int, eval_loss: float | None) -> None:
        if not _is_finite(state):
            raise Diverged(
                f"the state of step {step} is not finite; the checkpoint before it is kept"
            )
        self._writer.flush()  # a checkpoint never counts before the lines up to it are on disk
        progress = Progress(
            step=step,
            tokens=self._recorder.tokens,
            data_sha256=self._data.digest,
            data_folders=self._data.folders,
            passed_over=self._start.passed_over,
            eval_loss=eval_loss,
        )
        self._checkpoints.save(in_model_order(state, self._config, self._mesh), progress)

    def _is_due(self, step: int, period: int | None) -> bool:
        is_last = step == self._config.train.num_steps
        return is_last or (period is not None and step % period == 0)


@jax.jit
def _is_finite(state: TrainState) -> jax.Array:
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in floats]))
