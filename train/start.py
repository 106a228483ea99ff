"""How a run starts: restored from its newest checkpoint, initialized, or from another model."""

from dataclasses import replace

import jax

from configs.errors import IntegrityError
from data.batches import continue_ranges
from data.step_ranges import StepRange, steps_from
from train.checkpoints.init_from import InitFrom, check_hf_model, check_source
from train.checkpoints.manifest import Manifest, RunProgress
from train.checkpoints.recovery import newest_valid
from train.checkpoints.restore import restore_params, restore_state
from train.checkpoints.save import Checkpoints
from train.checkpoints.verify import verify
from train.memory_check import check_memory
from train.record.console import logger
from train.run_context import RunContext, describe_rng
from train.state import TrainState, abstract_state, in_stage_order, init_state, state_layout


def restore_or_init(run: RunContext, checkpoints: Checkpoints) -> tuple[TrainState, RunProgress]:
    """Returns the state and progress of the newest valid checkpoint, or those of a new run.

    Raises:
        IntegrityError: there were checkpoints and none is valid, or the next batch is another one.
        SettingsError: a checkpoint is of another model or format, or the state would not fit.
    """
    check_memory(run.config, run.mesh)
    manifest = newest_valid(checkpoints.context)
    if manifest is not None:
        return _resume(run, manifest)
    if run.has_had_checkpoints():
        raise IntegrityError(
            f"{run.folder.events} lists saved checkpoints, but {run.folder.checkpoints.absolute()} "
            "contains none: put one back, or give another --run-dir to start at step 0"
        )
    run.spans.ledger.lose_work_since({})
    if run.init_from is None:
        logger.info("starting at step 0")
        return init(run)
    if run.init_from.step is None:
        return _init_from_hf(run, run.init_from, checkpoints)
    return _init_from_run(run, run.init_from, checkpoints)


def _resume(run: RunContext, manifest: Manifest) -> tuple[TrainState, RunProgress]:
    progress = manifest.progress
    manifest.check_model(run.folder.checkpoints.absolute() / str(progress.step), run.config)
    progress.check_continues(run.config, run.data.digest)
    _check_next_batch(run, progress)
    progress = with_current_data(run, progress)
    state = restore(run, progress.step)
    logger.info(f"resuming at step {progress.step} of {run.config.train.num_steps}")
    run.folder.add_event("resumed", step=progress.step)
    run.spans.ledger.lose_work_since(progress.ledger)
    return state, progress


def _init_from_run(
    run: RunContext, source: InitFrom, checkpoints: Checkpoints
) -> tuple[TrainState, RunProgress]:
    """Returns the state of a new run from a checkpoint of another one, saved as its own."""
    config, like = run.config, abstract_state(run.config, run.mesh)
    assert source.step is not None
    manifest = check_source(source, config)
    verify(source.checkpoints, source.step, config.checkpoint.verify)
    state, progress = init(run)
    if source.with_optimizer:
        del state  # there may be no memory for two
        state = restore_state(source.checkpoints, source.step, like)
        # Other data starts at its first row. The guard is about the losses of the other run.
        step, same_data = source.step, manifest.progress.data_sha256 == run.data.digest
        ranges = manifest.progress.step_ranges if same_data else (steps_from(config, step),)
        tokens = manifest.progress.tokens
        progress = replace(progress, step=step, tokens=tokens, step_ranges=ranges)
        progress = with_current_data(run, progress)
        what = "weights and optimizer state"
        if same_data:
            what = "weights, optimizer state and data position"
    else:
        state = state._replace(params=restore_params(source.checkpoints, source.step, like.params))
        what = "weights"
    checkpoints.save(state, progress)
    logger.info(f"starting at step {progress.step} with the {what} of {source.run}@{source.step}")
    run.folder.add_event("branched", **source.described())
    return in_stage_order(state, config, run.mesh), progress


def _init_from_hf(
    run: RunContext, source: InitFrom, checkpoints: Checkpoints
) -> tuple[TrainState, RunProgress]:
    """Returns the state of a new run with the weights of a Hugging Face model, saved as its own."""
    config = run.config
    hf_model = check_hf_model(source, config)
    state, progress = init(run)
    like, layout = abstract_state(config, run.mesh).params, state_layout(config, run.mesh).params
    state = state._replace(params=None)  # there may be no memory for two
    state = state._replace(params=hf_model.read_params(like, layout))
    checkpoints.save(state, progress)
    model_type = hf_model.family.model_type
    logger.info(f"starting at step 0 with the weights of {source.run} ({model_type})")
    run.folder.add_event("branched", **source.described())
    return in_stage_order(state, config, run.mesh), progress


def init(run: RunContext) -> tuple[TrainState, RunProgress]:
    key = jax.random.fold_in(jax.random.key(run.config.train.seed), 0)
    progress = RunProgress(
        step=0,
        tokens=0,
        data_sha256=run.data.digest,
        step_ranges=(steps_from(run.config),),
        **run.fixed_progress(),
    )
    return init_state(run.config, key, run.mesh), progress


def restore(run: RunContext, step: int) -> TrainState:
    folder, like = run.folder.checkpoints, abstract_state(run.config, run.mesh)
    with run.spans("restore"):
        return in_stage_order(restore_state(folder, step, like), run.config, run.mesh)


def with_current_data(
    run: RunContext, progress: RunProgress, left: StepRange | None = None
) -> RunProgress:
    """Returns the progress with the batches of the next steps by the current settings.

    Logs a warning if they differ from those of the checkpoint. Args: `left` as `continue_ranges`.
    """
    new = steps_from(run.config, progress.step)
    found = continue_ranges(progress.step_ranges, new, run.data, run.config.data, left)
    if found.changed:
        logger.warning(found.message())
        run.folder.add_event(
            "data_changed",
            step=progress.step,
            settings=found.changed,
            first_row=found.ranges[-1].first_row,
            unseen_tokens=found.num_unseen,
        )
    return replace(progress, step_ranges=found.ranges, **run.fixed_progress())


def _check_next_batch(run: RunContext, progress: RunProgress) -> None:
    """Raises IntegrityError unless the PRNG key and the next batch are those of the checkpoint.

    The batch is made with the settings of the checkpoint, which may differ from the current ones.
    """
    cause = None
    if not progress.step_ranges:
        return
    key = describe_rng(progress.step_ranges[-1].seed)
    if progress.generator_key not in (None, key):
        raise IntegrityError(
            f"the PRNG key is {key}, but the run was started with {progress.generator_key}: use "
            "the environment (JAX_DEFAULT_PRNG_IMPL, JAX_THREEFRY_PARTITIONABLE) and the JAX of "
            "the run, or give another --run-dir"
        )
    if run.processes.is_first and progress.next_batch_sha256 is not None:
        found = run.next_batch_digest(progress)
        if found != progress.next_batch_sha256:
            cause = (
                f"the batch of step {progress.step + 1} has sha256 {found[:12]}, but the "
                f"checkpoint expects {progress.next_batch_sha256[:12]}: the data or its order has "
                "changed; restore the prepared data and the versions of Tessera and Grain, or give "
                "another --run-dir"
            )
    cause = run.processes.from_first("next batch", cause)
    if cause is not None:
        raise IntegrityError(cause)
