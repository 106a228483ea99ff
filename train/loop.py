"""A run from its first step, or from where it was left, to its last."""

import contextlib
import time
from dataclasses import dataclass

import jax
from rich.console import Console

from configs.errors import Stopped
from configs.run import RunConfig
from data.batches import train_batches
from data.mixture import Data
from sharding.processes import Processes
from sharding.rules import sharding
from train.between import Between
from train.checkpoint import Checkpoints, params_digest
from train.checkpoint_files import Progress, checkpoint_steps, read_progress
from train.feed import Feed
from train.log import Display, logger
from train.metrics import open_metrics
from train.recorder import Recorder
from train.run_folder import Record, RunFolder, read_metrics
from train.state import TrainState, abstract_state, in_model_order, in_stage_order, init_state
from train.step import compile_train_step
from train.stop import SharedStop, StopSignals


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished run ends with."""

    record: Record
    """The metrics of the last step, evaluation included."""
    params_sha256: str


def train(
    config: RunConfig,
    folder: RunFolder,
    data: Data,
    mesh: jax.sharding.Mesh,
    processes: Processes,
    stop: StopSignals,
    console: Console,
) -> Outcome:
    """Trains to train.num_steps, going on from the newest checkpoint in the folder.

    The caller holds the folder, has set the mesh (jax.set_mesh), and has checked that the newest
    checkpoint continues with these settings and this data. Every process of the run calls it.

    Raises:
        Stopped: a signal came to a process; the state was saved.
        Diverged: too many steps in a row were not finite.
        IntegrityError: a checkpoint is not what its manifest says.
    """
    # The state: as it was left, or new.
    checkpoints = Checkpoints(folder.checkpoints, config.checkpoint, processes)
    state, start = _restore_or_init(config, folder, data, mesh, checkpoints)
    if start.step == config.train.num_steps:
        logger.info(f"nothing is left to do: the run has reached train.num_steps={start.step}")
        return _finish(folder, in_model_order(state, config, mesh))

    # The data: the batches of the steps that are left.
    feed = _train_feed(config, data, mesh, start)

    # The step: compiled once, for these shapes and this layout.
    began = time.perf_counter()
    train_step = compile_train_step(config, state, feed.abstract_batch)
    compile_sec = time.perf_counter() - began
    logger.info(f"compiled the step in {compile_sec:.1f} s")
    folder.add_event("compiled", compile_sec=round(compile_sec, 3))

    # The steps; a signal is acted on between two of them.
    with (
        stop.deferred(),
        open_metrics(folder, first_step=start.step) as writer,
        Display(console, first_step=start.step, num_steps=config.train.num_steps) as display,
        contextlib.closing(checkpoints),
        processes.together(),
    ):
        recorder = Recorder(
            config,
            folder,
            writer,
            display,
            tokens=start.tokens,
            bytes_per_token=data.bytes_per_token(config.data),
        )
        between = Between(config, folder, data, mesh, start, checkpoints, recorder, writer)
        shared_stop = SharedStop(stop, processes, mesh)
        for step in range(start.step + 1, config.train.num_steps + 1):
            state, metrics = train_step(state, next(feed))
            recorder.add(step, metrics, feed.wait_sec)
            wish = shared_stop.look()
            between(state, step, stops=wish is not None)
            if wish and step < config.train.num_steps:
                checkpoints.wait()
                folder.add_event("stopped", step=step, **wish)
                where = f" of process {wish['process']}" if "process" in wish else ""
                raise Stopped(
                    f"stopped by {wish['cause']}{where}; step {step} of "
                    f"{config.train.num_steps} is saved"
                )
    return _finish(folder, in_model_order(state, config, mesh))


def _train_feed(config: RunConfig, data: Data, mesh: jax.sharding.Mesh, start: Progress) -> Feed:
    """Returns the batches of the steps after `start`, of which this process reads its rows."""
    return Feed(
        lambda rows: train_batches(
            data,
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


def _restore_or_init(
    config: RunConfig,
    folder: RunFolder,
    data: Data,
    mesh: jax.sharding.Mesh,
    checkpoints: Checkpoints,
) -> tuple[TrainState, Progress]:
    """Returns the state and progress of the newest checkpoint, or those of step 0."""
    steps = checkpoint_steps(folder.checkpoints)
    if not steps:
        key = jax.random.fold_in(jax.random.key(config.train.seed), 0)
        logger.info("starting at step 0")
        return init_state(config, key, mesh), Progress(step=0, tokens=0, data_sha256=data.digest)
    progress = read_progress(folder.checkpoints, steps[-1])
    saved = checkpoints.restore(progress.step, abstract_state(config, mesh))
    logger.info(f"resuming at step {progress.step} of {config.train.num_steps}")
    folder.add_event("resumed", step=progress.step)
    return in_stage_order(saved, config, mesh), progress


def _finish(folder: RunFolder, state: TrainState) -> Outcome:
    step = int(state.step)
    digest = params_digest(state.params)
    folder.add_event("finished", step=step, params_sha256=digest)
    return Outcome(record=read_metrics(folder.metrics)[step], params_sha256=digest)
