"""A run from its first step, or from where it was left, to its last."""

import contextlib
from dataclasses import dataclass, replace

import jax
from rich.console import Console

from configs.command_line import seen, tessera
from configs.errors import Diverged, IntegrityError, Stopped
from configs.settings import flatten
from data.batches import batch_digest, continued, is_one_sequence, train_batches
from data.step_ranges import StepRange, merged, range_of, steps_from
from sharding.rules import sharding
from train.callbacks import Between
from train.checkpoints.digest import params_digest
from train.checkpoints.init_from import InitFrom, branched_progress, check_published, check_source
from train.checkpoints.manifest import Manifest, Progress, verify
from train.checkpoints.recovery import Place, newest_whole
from train.checkpoints.save_restore import Checkpoints, restore_params, restore_state
from train.health.divergence import Trouble
from train.health.replay import step_twice
from train.health.signals import SharedSignals, Signals
from train.loader import Feed, abstract_batch
from train.memory_check import check_memory
from train.record.console import Display, logger
from train.record.metrics import open_metrics
from train.record.recorder import Recorder
from train.record.run_folder import Record, read_metrics
from train.run_context import Run, generator_key
from train.state import (
    TrainState,
    abstract_state,
    in_model_order,
    in_stage_order,
    init_state,
    state_layout,
)
from train.step import TrainStep, compile_train_step


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished run ends with."""

    record: Record
    """The metrics of the last step, evaluation included; its number and tokens alone where it was
    not logged."""
    params_sha256: str
    was_finished: bool = False
    """Whether nothing was left to do when the run was started."""


def train(run: Run, signals: Signals, console: Console) -> Outcome:
    """Trains to train.num_steps, going on from the newest whole checkpoint of the run.

    The caller holds the folder and has set the mesh (jax.set_mesh). Every process calls it.

    Raises:
        Stopped: a signal came to a process, and the state was saved; or its last save failed.
        Diverged: steps were not finite or losses too high, and going back did not help.
        Corrupted: a device computed a step in two ways.
        IntegrityError: no checkpoint is whole, or the data gives another batch than before.
        SettingsError: a checkpoint is of another model or format, or the state would not fit.
    """
    config, folder, spans = run.config, run.folder, run.spans

    # The state: as it was left, or new.
    place = Place(folder.checkpoints.absolute(), config.checkpoint, run.processes, run.durable)
    place = replace(place, say=run.say, span=spans)
    checkpoints = Checkpoints(place, flatten(config), lambda at: _next_batch_digest(run, at))
    state, start = _restore_or_init(run, place, checkpoints)
    if start.step == config.train.num_steps:
        logger.info(f"nothing is left to do: the run has reached train.num_steps={start.step}")
        with contextlib.closing(checkpoints):
            outcome = _finish(run, state, start.tokens, checkpoints)
        return replace(outcome, was_finished=True)

    # The step: compiled once, for these shapes and this layout.
    logger.info("compiling the training step")
    with spans("compilation"):
        train_step = compile_train_step(config, state, _abstract_batch(run))
    compile_sec = spans.last_sec("compilation")
    logger.info(f"compiled the training step in {compile_sec:.1f} s")
    folder.add_event("compiled", compile_sec=round(compile_sec, 3))
    run.processes.wait("compiled")  # a first collective would wait for one half a minute at most

    # The steps, in one leg, or in several where the run goes back; a signal is acted on between
    # two of them.
    with signals.deferred(), contextlib.closing(checkpoints), run.processes.together():
        with (
            open_metrics(folder) as writer,
            Display(console, config, spans, first_step=start.step) as display,
            spans("loop"),
        ):
            recorder = Recorder(run, writer, display)
            between = Between(run, checkpoints, recorder, writer)
            shared = SharedSignals(signals, run.processes, run.mesh)
            while True:
                writer.begin(start.step)
                recorder.begin(start)
                between.begin(start)
                state = _leg(run, state, start, train_step, shared, recorder, between)
                if recorder.trouble is None:
                    break
                del state  # before another is made: there may be no room for two
                with spans("rollback"):
                    state, start = _go_back(run, recorder.trouble, start, place, checkpoints)
        return _finish(run, state, recorder.tokens, checkpoints)


def _leg(
    run: Run,
    state: TrainState,
    start: Progress,
    train_step: TrainStep,
    shared: SharedSignals,
    recorder: Recorder,
    between: Between,
) -> TrainState:
    """Takes steps until the last one is done, or until the recorder finds that they go wrong."""
    config, spans = run.config, run.spans
    num_steps, period = config.train.num_steps, config.guard.replay_every_steps
    feed = _train_feed(run, start)
    for step in range(start.step + 1, num_steps + 1):
        is_replayed = period is not None and step % period == 0
        with spans("replay" if is_replayed else "step"):
            with spans("data wait"):
                batch = next(feed)
            if is_replayed:
                state, metrics = step_twice(
                    train_step, state, batch, step=step, processes=run.processes, say=run.say
                )
            else:
                state, metrics = train_step(state, batch)
            recorder.add(step, metrics, feed.wait_sec)
            wish = shared.look()
        between(state, step, wish)
        if recorder.trouble is not None:
            break
        if wish.stop is not None and step < num_steps:
            run.folder.add_event("stopped", step=step, **wish.stop)
            where = f" of process {wish.stop['process']}" if "process" in wish.stop else ""
            raise Stopped(
                f"stopped by {wish.stop['cause']}{where}; step {step} of {num_steps} is saved"
            )
    return state


def _go_back(
    run: Run, trouble: Trouble, start: Progress, place: Place, checkpoints: Checkpoints
) -> tuple[TrainState, Progress]:
    """Returns an older state, and its progress without the rows of the steps that did it.

    Checkpoints of later steps are set aside. Where no checkpoint was ever made the run begins anew;
    one that has had a checkpoint never does.

    Raises:
        Diverged: the run went back guard.max_rollbacks times already, or there is nothing to go
            back to.
    """
    allowed, first, last = run.config.guard.max_rollbacks, trouble.first_step, trouble.last_step
    where = f"step {first}" if first == last else f"steps {first} to {last}"
    if start.num_rollbacks >= allowed:
        raise Diverged(
            f"{trouble.cause} ({where}), after {start.num_rollbacks} rollbacks, as many as "
            f"guard.max_rollbacks={allowed} allows: try a lower optim.peak_lr in a new run, or "
            f"look at the text: {tessera('inspect', run.folder.path, '--step', str(last))}"
        )
    checkpoints.wait()
    # Where nothing is older than the first of them, one that is a little younger must do.
    manifest = newest_whole(place, at_most=first - 1) or newest_whole(place, at_most=last - 1)
    if manifest is None and run.has_had_checkpoints():
        source = f"{seen(run.folder.path)}@STEP"
        begin_anew = tessera("train", "PRESET", "--init-from", source, "--run-dir", "ANOTHER")
        raise Diverged(
            f"{trouble.cause} ({where}), and no checkpoint is older, to go back to; nothing was "
            "removed: begin a new run from a checkpoint that you trust, with a lower "
            f"optim.peak_lr: {begin_anew}"
        )
    state, left = None, start.step_ranges[-1]
    if manifest is None:
        state, progress = _init(run)
    else:
        progress = _continued(run, manifest.progress, left)
    *older, steps = progress.step_ranges
    rows = _rows_of(run, start, steps, range(max(first, progress.step + 1), last + 1))
    # What earlier rollbacks have skipped stays so, though the checkpoint may be older than they.
    skipped = left.skipped if is_one_sequence(left, steps, run.config.data) else ()
    progress = replace(
        progress,
        step_ranges=(*older, steps.skipping([*skipped, *rows])),
        num_rollbacks=start.num_rollbacks + 1,
    )
    if state is not None:
        checkpoints.save(in_model_order(state, run.config, run.mesh), progress)
    else:
        checkpoints.go_back(progress)
        state = _restore(run, progress.step)
    run.spans.ledger.lose_since(progress.ledger)
    at = ("--first-row", str(rows[0][0] if rows else 0), "--step", str(last))
    look = tessera("inspect", run.folder.path, *at)
    logger.warning(
        f"{trouble.cause} ({where}): going back to step {progress.step} and skipping "
        f"{sum(stop - start for start, stop in rows)} sequences of its data (rollback "
        f"{progress.num_rollbacks} of {allowed}); to see the first: {look}"
    )
    run.folder.add_event(
        "rolled_back",
        step=last,
        to_step=progress.step,
        cause=trouble.cause,
        batches=[first, last],
        skipped_rows=rows,
        rollbacks=progress.num_rollbacks,
        layers=trouble.layers,
    )
    return state, progress


def _rows_of(run: Run, start: Progress, steps: StepRange, wrong: range) -> list[tuple[int, int]]:
    """Returns the rows of steps that went wrong which a range would read again."""
    found = []
    for step in wrong:
        taken = range_of(start.step_ranges, step - 1)
        if is_one_sequence(taken, steps, run.config.data):
            found += taken.rows(step - 1)
    return merged(found)


def _restore_or_init(
    run: Run, place: Place, checkpoints: Checkpoints
) -> tuple[TrainState, Progress]:
    """Returns the state and progress of the newest whole checkpoint, or those of step 0."""
    check_memory(run.config, run.mesh)
    manifest = newest_whole(place)
    if manifest is None:
        if run.has_had_checkpoints():
            raise IntegrityError(
                f"{run.folder.events} names checkpoints that were saved, but {place.folder} has "
                "none: bring one back, or give another --run-dir to begin at step 0"
            )
        run.spans.ledger.lose_since({})
        if run.init_from is not None:
            return _branch(run, run.init_from, checkpoints)
        logger.info("starting at step 0")
        return _init(run)
    progress = manifest.progress
    manifest.check_model(place.folder / str(progress.step), run.config)
    progress.check_continues(run.config, run.data.digest)
    _check_next_batch(run, manifest)
    progress = _continued(run, progress)
    state = _restore(run, progress.step)
    logger.info(f"resuming at step {progress.step} of {run.config.train.num_steps}")
    run.folder.add_event("resumed", step=progress.step)
    run.spans.ledger.lose_since(progress.ledger)
    return state, progress


def _branch(run: Run, source: InitFrom, checkpoints: Checkpoints) -> tuple[TrainState, Progress]:
    """Returns the state that a new run takes over from another one, saved as its own by then."""
    config, like = run.config, abstract_state(run.config, run.mesh)
    if source.step is None:
        return _begin_with_published(run, source, checkpoints)
    manifest = check_source(source, config)
    verify(source.checkpoints, source.step, config.checkpoint.verify)
    state, progress = _init(run)
    if source.with_optimizer:
        del state  # there may be no room for two
        state = restore_state(source.checkpoints, source.step, like)
        progress = replace(progress, **branched_progress(manifest, config, run.data))
        progress = _continued(run, progress)
    else:
        state = state._replace(params=restore_params(source.checkpoints, source.step, like.params))
    checkpoints.save(state, progress)
    what = "weights and moments" if source.with_optimizer else "weights"
    if source.with_optimizer and manifest.progress.data_sha256 == run.data.digest:
        what = "weights, moments and place"
    logger.info(f"starting at step {progress.step} with the {what} of {source.run}@{source.step}")
    run.folder.add_event("branched", **source.described())
    return in_stage_order(state, config, run.mesh), progress


def _begin_with_published(
    run: Run, source: InitFrom, checkpoints: Checkpoints
) -> tuple[TrainState, Progress]:
    """Returns the state of a new run with the weights of a Hugging Face model."""
    config = run.config
    found = check_published(source, config)
    state, progress = _init(run)
    like, layout = abstract_state(config, run.mesh).params, state_layout(config, run.mesh).params
    state = state._replace(params=None)  # there may be no room for two
    state = state._replace(params=found.read(like, layout))
    checkpoints.save(state, progress)
    logger.info(f"starting at step 0 with the weights of {source.run} ({found.family.model_type})")
    run.folder.add_event("branched", **source.described())
    return in_stage_order(state, config, run.mesh), progress


def _init(run: Run) -> tuple[TrainState, Progress]:
    key = jax.random.fold_in(jax.random.key(run.config.train.seed), 0)
    progress = Progress(
        step=0,
        tokens=0,
        data_sha256=run.data.digest,
        step_ranges=(steps_from(run.config),),
        **run.position(),
    )
    return init_state(run.config, key, run.mesh), progress


def _continued(run: Run, progress: Progress, left: StepRange | None = None) -> Progress:
    """Returns the progress with the rows that the next steps take, and tells where they changed."""
    new = steps_from(run.config, progress.step)
    found = continued(progress.step_ranges, new, run.data, run.config.data, left)
    if found.changed:
        logger.warning(found.message())
        run.folder.add_event(
            "data_changed",
            step=progress.step,
            settings=found.changed,
            first_row=found.ranges[-1].first_row,
            unseen_tokens=found.num_unseen,
        )
    return replace(progress, step_ranges=found.ranges, **run.position())


def _restore(run: Run, step: int) -> TrainState:
    folder, like = run.folder.checkpoints, abstract_state(run.config, run.mesh)
    with run.spans("restore"):
        return in_stage_order(restore_state(folder, step, like), run.config, run.mesh)


def _check_next_batch(run: Run, manifest: Manifest) -> None:
    """Raises IntegrityError unless the next batch and generator are those that the run would have.

    That batch is made by the settings of the checkpoint, which may have been changed since.
    """
    progress, cause = manifest.progress, None
    if not progress.step_ranges:
        return
    key = generator_key(progress.step_ranges[-1].seed)
    if progress.generator_key not in (None, key):
        raise IntegrityError(
            f"the generator of random numbers is {key}, the run has {progress.generator_key}: "
            "start with the environment (JAX_DEFAULT_PRNG_IMPL, JAX_THREEFRY_PARTITIONABLE) and "
            "the JAX of the run, or give another --run-dir"
        )
    if run.processes.is_first and progress.next_batch_sha256 is not None:
        found = _next_batch_digest(run, progress)
        if found != progress.next_batch_sha256:
            cause = (
                f"the batch of step {progress.step + 1} has sha256 {found[:12]}, but the run "
                f"would have taken {progress.next_batch_sha256[:12]}: its data or the order of it "
                "is another one; restore the prepared data and the version of Tessera and Grain, "
                "or give another --run-dir"
            )
    cause = run.processes.from_first("next batch", cause)
    if cause is not None:
        raise IntegrityError(cause)


def _batches(run: Run, start: Progress, rows: list[int] | None):
    """Returns the batches of the steps after `start`, or just some rows of them."""
    return train_batches(run.data, run.config.data, start.step_ranges[-1], rows=rows)[start.step :]


def _next_batch_digest(run: Run, at: Progress) -> str:
    batch = _batches(run, at, rows=None)[0]
    assert batch is not None  # the dataset goes on for ever
    return batch_digest(batch)


def _train_feed(run: Run, start: Progress) -> Feed:
    """Returns the batches of the steps after `start`, of which this process reads its rows."""
    return Feed(
        lambda rows: _batches(run, start, rows),
        run.config.data,
        sharding=sharding(run.mesh, "act_batch", "act_len"),
        batch_size=run.config.train.batch_size,
    )


def _abstract_batch(run: Run):
    config = run.config
    layout = sharding(run.mesh, "act_batch", "act_len")
    return abstract_batch(layout, config.train.batch_size, config.data)


def _finish(run: Run, state: TrainState, tokens: int, checkpoints: Checkpoints) -> Outcome:
    """Returns what the run ends with, once durable storage has its last checkpoint."""
    with run.spans("upload"):
        cause = checkpoints.complete_copies()
    if cause is not None:
        raise Stopped(
            f"the run is finished, but its last checkpoint is not in checkpoint.durable_dir="
            f"{run.config.checkpoint.durable_dir}: {cause}; start again to copy it"
        )
    with run.spans("digest"):
        step = int(state.step)
        digest = params_digest(in_model_order(state, run.config, run.mesh).params)
    run.folder.add_event("finished", step=step, params_sha256=digest)
    record = read_metrics(run.folder.metrics).get(step, {"step": step, "tokens": tokens})
    return Outcome(record=record, params_sha256=digest)
