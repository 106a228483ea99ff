"""The training loop: a run from its first step, or the one it resumes at, to its last."""

import contextlib
from dataclasses import dataclass, replace

from rich.console import Console

from configs.errors import Stopped
from configs.flat_settings import flatten
from sharding.rules import sharding
from train.callbacks import Callbacks
from train.checkpoints.context import CheckpointContext
from train.checkpoints.manifest import RunProgress
from train.checkpoints.parameter_digest import DIGEST_VERSION, params_digest
from train.checkpoints.save import Checkpoints
from train.health.replay import step_twice
from train.health.rollback import rollback
from train.health.signals import SharedSignals, Signals
from train.loader import Loader, abstract_batch
from train.record.console import Display, logger
from train.record.metrics_writer import open_metrics
from train.record.recorder import Recorder
from train.record.run_folder import Record, read_metrics
from train.run_context import RunContext
from train.start import restore_or_init
from train.state import TrainState, in_model_order
from train.step import TrainStep, compile_train_step


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a finished run."""

    record: Record
    """The metrics of the last step, evaluation included; only its number and tokens if it was not
    logged."""
    params_sha256: str
    was_finished: bool = False
    """Whether nothing was left to do when the run was started."""


def train(run: RunContext, signals: Signals, console: Console) -> Outcome:
    """Trains to train.num_steps, resuming at the newest valid checkpoint of the run.

    The caller holds the folder and has set the mesh (jax.set_mesh). Every process calls it.

    Raises:
        Stopped: a process received a signal, and the state was saved; or the last save failed.
        Diverged: steps were nonfinite or losses too high, and rollbacks did not help.
        Corrupted: a device computed two results for one step.
        IntegrityError: no checkpoint is valid, or the data gives another batch than before.
        SettingsError: a checkpoint is of another model or format, or the state would not fit.
    """
    config, folder, spans = run.config, run.folder, run.spans

    # Restore or initialize the state.
    context = CheckpointContext(
        folder.checkpoints.absolute(),
        config.checkpoint,
        run.processes,
        run.durable,
        emit=run.emit,
        span=spans,
    )
    checkpoints = Checkpoints(context, flatten(config), run.next_batch_digest)
    state, start = restore_or_init(run, checkpoints)
    if start.step == config.train.num_steps:
        logger.info(f"nothing is left to do: the run has reached train.num_steps={start.step}")
        with contextlib.closing(checkpoints):
            outcome = _finish(run, state, start.tokens, checkpoints)
        return replace(outcome, was_finished=True)

    # Compile the step once, for these shapes and this layout.
    logger.info("compiling the training step")
    with spans("compilation"):
        layout = sharding(run.mesh, "act_batch", "act_len")
        batch = abstract_batch(layout, config.train.batch_size, config.data)
        train_step = compile_train_step(config, state, batch)
    compile_sec = spans.durations["compilation"][-1]
    logger.info(f"compiled the training step in {compile_sec:.1f} s")
    folder.add_event("compiled", compile_sec=round(compile_sec, 3))
    run.processes.wait("compiled")  # a first collective waits for the others for only half a minute

    # Train. Each rollback starts another attempt; signals are handled between two steps.
    with signals.deferred(), contextlib.closing(checkpoints), run.processes.together():
        with (
            contextlib.closing(open_metrics(folder)) as writer,
            Display(console, config, spans, first_step=start.step) as display,
            spans("loop"),
        ):
            recorder = Recorder(run, writer, display)
            callbacks = Callbacks(run, checkpoints, recorder, writer)
            shared_signals = SharedSignals(signals, run.processes, run.mesh)
            while True:
                writer.begin(start.step)
                recorder.begin(start)
                callbacks.begin(start)
                state = _attempt(run, state, start, train_step, shared_signals, recorder, callbacks)
                if recorder.divergence is None:
                    break
                del state  # before another is made: there may be no memory for two
                with spans("rollback"):
                    state, start = rollback(run, recorder.divergence, start, checkpoints)
        return _finish(run, state, recorder.tokens, checkpoints)


def _attempt(
    run: RunContext,
    state: TrainState,
    start: RunProgress,
    train_step: TrainStep,
    signals: SharedSignals,
    recorder: Recorder,
    callbacks: Callbacks,
) -> TrainState:
    """Trains until the last step, or until the recorder finds that the run diverges."""
    config, spans = run.config, run.spans
    num_steps, replay_period = config.train.num_steps, config.guard.replay_every_steps
    loader = Loader(
        lambda rows: run.batches(start, rows),
        config.data,
        sharding=sharding(run.mesh, "act_batch", "act_len"),
        batch_size=config.train.batch_size,
    )
    for step in range(start.step + 1, num_steps + 1):
        is_replayed = replay_period is not None and step % replay_period == 0
        with spans("replay" if is_replayed else "step"):
            with spans("data wait"):
                batch = next(loader)
            if is_replayed:
                state, metrics = step_twice(
                    train_step, state, batch, step=step, processes=run.processes, emit=run.emit
                )
            else:
                state, metrics = train_step(state, batch)
            recorder.add(step, metrics, loader.wait_sec)
            request = signals.poll()
        callbacks(state, step, request)
        if recorder.divergence is not None:
            break
        if request.stop is not None and step < num_steps:
            run.folder.add_event("stopped", step=step, **request.stop)
            where = f" of process {request.stop['process']}" if "process" in request.stop else ""
            raise Stopped(
                f"stopped by {request.stop['cause']}{where}; step {step} of {num_steps} is saved"
            )
    return state


def _finish(run: RunContext, state: TrainState, tokens: int, checkpoints: Checkpoints) -> Outcome:
    """Returns the outcome, once durable storage has the last checkpoint."""
    with run.spans("upload"):
        cause = checkpoints.complete_mirror()
    if cause is not None:
        raise Stopped(
            "the run is finished, but its last checkpoint is not in checkpoint.durable_dir="
            f"{run.config.checkpoint.durable_dir}: {cause}; start again to copy it"
        )
    with run.spans("digest"):
        step = int(state.step)
        digest = params_digest(in_model_order(state, run.config, run.mesh).params)
    run.folder.add_event("finished", step=step, params_sha256=digest, digest_version=DIGEST_VERSION)
    record = read_metrics(run.folder.metrics).get(step, {"step": step, "tokens": tokens})
    return Outcome(record=record, params_sha256=digest)
