"""A run from its first step, or from where it was left, to its last."""

import contextlib
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from rich.console import Console

from configs.check import require
from configs.errors import Diverged, Stopped
from configs.run import RunConfig
from data.batches import train_batches
from data.store import TokenStore
from sharding.rules import sharding
from train.checkpoint import Checkpoints, params_digest
from train.checkpoint_files import Progress, checkpoint_steps, read_progress
from train.evaluate import Evaluator
from train.feed import Feed
from train.generate import Sampler
from train.log import Display, logger
from train.metrics import MetricsWriter
from train.optimizer import make_optimizer
from train.recorder import Recorder
from train.run_folder import Record, RunFolder, read_metrics
from train.state import TrainState, abstract_state, init_state
from train.step import compile_train_step
from train.stop import StopSignals


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished run ends with."""

    record: Record
    """The metrics of the last step, evaluation included."""
    params_sha256: str


def train(
    config: RunConfig,
    folder: RunFolder,
    store: TokenStore,
    mesh: jax.sharding.Mesh,
    stop: StopSignals,
    console: Console,
) -> Outcome:
    """Trains to train.num_steps, going on from the newest checkpoint in the folder.

    The caller holds the folder and has set the mesh (jax.set_mesh).

    Raises:
        Stopped: a signal came; the state was saved.
        Diverged: too many steps in a row were not finite.
        IntegrityError: a checkpoint is not what its manifest says.
    """
    # The state: as it was left, or new.
    checkpoints = Checkpoints(folder.checkpoints, config.checkpoint)
    state, start = _restore_or_init(config, folder, store, mesh, checkpoints)
    num_steps = config.train.num_steps
    if start.step == num_steps:
        logger.info(f"nothing is left to do: the run has reached train.num_steps={num_steps}")
        return _finish(folder, state)

    # The data: the batches of the steps that are left.
    feed = Feed(
        lambda rows: train_batches(
            store,
            config.data,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            rows=rows,
            passed_over=start.passed_over,
        )[start.step :],
        config.data,
        sharding=sharding(mesh, "act_batch", "act_len"),
        batch_size=config.train.batch_size,
    )
    evaluator = Evaluator(config, store, mesh)
    sampler = Sampler(config, store.tokenizer)

    # The step: compiled once, for these shapes and this layout.
    started = time.perf_counter()
    train_step = compile_train_step(config, state, feed.abstract_batch())
    compile_sec = time.perf_counter() - started
    logger.info(f"compiled the step in {compile_sec:.1f} s")
    folder.add_event("compiled", compile_sec=round(compile_sec, 3))

    with contextlib.ExitStack() as stack:
        stack.enter_context(stop.deferred())
        writer = MetricsWriter(folder.metrics, folder.tensorboard, first_step=start.step)
        stack.callback(writer.close)
        display = stack.enter_context(Display(console, first_step=start.step, num_steps=num_steps))
        recorder = Recorder(
            config,
            folder,
            writer,
            display,
            tokens=start.tokens,
            bytes_per_token=store.train.num_bytes / store.train.num_tokens,
        )
        for step in range(start.step + 1, num_steps + 1):
            state, metrics = train_step(state, next(feed))
            recorder.add(step, metrics, feed.wait_sec)

            # What is done besides, with the clock of the speeds stopped.
            evaluates = _is_due(step, config.eval.every_steps, num_steps)
            samples = _is_due(step, config.sample.every_steps, num_steps)
            saves = _is_due(step, config.checkpoint.every_steps, num_steps)
            if not (evaluates or samples or saves or stop.cause):
                continue
            with recorder.paused():
                evaluation = evaluator(state.params) if evaluates else None
                recorder.finish(evaluation and evaluation.record())
                if samples:
                    text = sampler(state.params, step)
                    (folder.samples / f"step-{step:06d}.txt").write_text(text)
                    writer.write_text("sample", text, step, time.time())
                if saves or stop.cause:
                    _check_finite(state, step)
                    writer.flush()
                    progress = Progress(
                        step=step,
                        tokens=recorder.tokens,
                        data_sha256=store.digest,
                        passed_over=start.passed_over,
                        eval_loss=evaluation and evaluation.loss,
                    )
                    checkpoints.save(state, progress)
            if stop.cause and step < num_steps:
                checkpoints.close()
                folder.add_event("stopped", step=step, cause=stop.cause)
                raise Stopped(f"stopped by {stop.cause}; step {step} of {num_steps} is saved")
        checkpoints.close()

    return _finish(folder, state)


def _restore_or_init(
    config: RunConfig,
    folder: RunFolder,
    store: TokenStore,
    mesh: jax.sharding.Mesh,
    checkpoints: Checkpoints,
) -> tuple[TrainState, Progress]:
    """Returns the state and progress of the newest checkpoint, or those of step 0."""
    tx = make_optimizer(config.optim)
    steps = checkpoint_steps(folder.checkpoints)
    if not steps:
        key = jax.random.fold_in(jax.random.key(config.train.seed), 0)
        logger.info("starting at step 0")
        return init_state(config.model, tx, key, mesh), Progress(
            step=0, tokens=0, data_sha256=store.digest
        )
    progress = read_progress(folder.checkpoints, steps[-1])
    require(
        progress.data_sha256 == store.digest,
        f"data.path={config.data.path} is another text than the run was trained on (digest "
        f"{store.digest[:12]}, the run has {progress.data_sha256[:12]}); give the same text, or "
        "another --run-dir",
    )
    require(
        progress.step <= config.train.num_steps,
        f"train.num_steps={config.train.num_steps} must be at least {progress.step}, the step that "
        "the run has reached",
    )
    state = checkpoints.restore(progress.step, abstract_state(config.model, tx, mesh))
    logger.info(f"resuming at step {progress.step} of {config.train.num_steps}")
    folder.add_event("resumed", step=progress.step)
    return state, progress


def _is_due(step: int, period: int | None, num_steps: int) -> bool:
    return step == num_steps or (period is not None and step % period == 0)


@jax.jit
def _is_finite(state: TrainState) -> jax.Array:
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in floats]))


def _check_finite(state: TrainState, step: int) -> None:
    """Raises Diverged rather than let a state be saved that is not finite."""
    if not _is_finite(state):
        raise Diverged(f"the state of step {step} is not finite; the checkpoint before it is kept")


def _finish(folder: RunFolder, state: TrainState) -> Outcome:
    step = int(state.step)
    digest = params_digest(state.params)
    folder.add_event("finished", step=step, params_sha256=digest)
    return Outcome(record=read_metrics(folder.metrics)[step], params_sha256=digest)
