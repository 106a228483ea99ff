"""Rolls a diverged run back to an older checkpoint and skips the batches of the diverged steps."""

from dataclasses import replace

from configs.errors import Diverged
from configs.suggested_commands import seen, tessera
from data.batches import is_one_sequence
from data.step_ranges import StepRange, merge_intervals, range_of
from train.checkpoints.manifest import Manifest, RunProgress
from train.checkpoints.recovery import newest_valid
from train.checkpoints.save import Checkpoints
from train.health.divergence import Divergence
from train.record.console import logger
from train.run_context import RunContext
from train.start import init, restore, with_current_data
from train.state import TrainState, in_model_order


def rollback(
    run: RunContext,
    divergence: Divergence,
    start: RunProgress,
    checkpoints: Checkpoints,
) -> tuple[TrainState, RunProgress]:
    """Returns an older state, and its progress without the rows of the diverged steps.

    Checkpoints of later steps are set aside. A run that never had a checkpoint is initialized
    again; one that had is not. `start` is where the attempt that diverged started.

    Raises:
        Diverged: guard.max_rollbacks rollbacks were made already, or no checkpoint is older.
    """
    first, last = divergence.first_step, divergence.last_step
    manifest = _checkpoint_before(run, divergence, start, checkpoints)
    state, left = None, start.step_ranges[-1]
    if manifest is None:
        state, progress = init(run)
    else:
        progress = with_current_data(run, manifest.progress, left)
    *older, steps = progress.step_ranges
    rows = _rows_of(run, start, steps, range(max(first, progress.step + 1), last + 1))
    # Batches of earlier rollbacks stay skipped, though the checkpoint may be older than they are.
    skipped = left.skipped if is_one_sequence(left, steps, run.config.data) else ()
    progress = replace(
        progress,
        step_ranges=(*older, steps.without_rows([*skipped, *rows])),
        num_rollbacks=start.num_rollbacks + 1,
    )
    if state is not None:
        checkpoints.save(in_model_order(state, run.config, run.mesh), progress)
    else:
        checkpoints.rollback(progress)
        state = restore(run, progress.step)
    run.spans.ledger.lose_work_since(progress.ledger)
    at = ("--first-row", str(rows[0][0] if rows else 0), "--step", str(last))
    logger.warning(
        f"{divergence.message()}: rolling back to step {progress.step} and skipping "
        f"{sum(stop - start for start, stop in rows)} sequences of its data (rollback "
        f"{progress.num_rollbacks} of {run.config.guard.max_rollbacks}); to see the first: "
        f"{tessera('inspect', run.folder.path, *at)}"
    )
    run.folder.add_event(
        "rolled_back",
        step=last,
        to_step=progress.step,
        cause=divergence.cause,
        batches=[first, last],
        skipped_rows=rows,
        rollbacks=progress.num_rollbacks,
        layers=divergence.layers,
    )
    return state, progress


def _checkpoint_before(
    run: RunContext, divergence: Divergence, start: RunProgress, checkpoints: Checkpoints
) -> Manifest | None:
    """Returns the checkpoint to roll back to; None for a run that never had one."""
    allowed = run.config.guard.max_rollbacks
    if start.num_rollbacks >= allowed:
        raise Diverged(
            f"{divergence.message()}, after {start.num_rollbacks} rollbacks, and "
            f"guard.max_rollbacks={allowed} allows no more: start a new run with a lower "
            "optim.peak_lr, or look at the data: "
            f"{tessera('inspect', run.folder.path, '--step', str(divergence.last_step))}"
        )
    checkpoints.wait()
    # If none is older than the first diverged step, one that is older than the last must do.
    context = checkpoints.context
    manifest = newest_valid(context, at_most=divergence.first_step - 1)
    manifest = manifest or newest_valid(context, at_most=divergence.last_step - 1)
    if manifest is None and run.has_had_checkpoints():
        source = f"{seen(run.folder.path)}@STEP"
        new_run = tessera("train", "PRESET", "--init-from", source, "--run-dir", "ANOTHER")
        raise Diverged(
            f"{divergence.message()}, and there is no older checkpoint to roll back to; nothing "
            "was removed: start a new run from a checkpoint that you trust, with a lower "
            f"optim.peak_lr: {new_run}"
        )
    return manifest


def _rows_of(
    run: RunContext, start: RunProgress, steps: StepRange, diverged: range
) -> list[tuple[int, int]]:
    """Returns the rows of the diverged steps, as far as `steps` would read them again."""
    found = []
    for step in diverged:
        taken = range_of(start.step_ranges, step - 1)
        if is_one_sequence(taken, steps, run.config.data):
            found += taken.rows(step - 1)
    return merge_intervals(found)
