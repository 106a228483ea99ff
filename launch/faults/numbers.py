"""Faults of numbers: nonfinite values, bad batches, a spike, a device that computes wrongly."""

import json
import warnings

from launch.faults.disks import expect_last_copy
from launch.faults.trial import NUM_STEPS, SAVE_STEPS, Broken, Result, Trial

_GUARD = ("--guard.num_window_steps", "16", "--guard.max_nonfinite_steps", "4")
_SPIKING = (
    *("--optim.optimizer", "sgd", "--optim.max_grad_norm", "None", "--optim.peak_lr", "0.1"),
    *("--guard.num_spike_steps", "3"),
)
_REPLAY_STEPS = 5
_LATE = NUM_STEPS * 6 // 10
"""From here on losses fall slowly, so that a window of them is narrow."""


def nan_in_a_gradient(trial: Trial) -> Result:
    """The gradient of one array is NaN at one step: no update, and the array is named."""
    event = _nonfinite_step(trial, "nan_gradient")
    if list(event["layers"]) != ["norm/scale"] or event["loss"] == "nan":
        raise Broken(f"the event says {event}")
    return Result()


def infinite_loss(trial: Trial) -> Result:
    """The loss of one step is infinite: no update."""
    event = _nonfinite_step(trial, "infinite_loss")
    if event["loss"] != "inf":
        raise Broken(f"the event says {event}")
    return Result()


def _nonfinite_step(trial: Trial, fault: str) -> dict:
    item = trial.rng.randrange(SAVE_STEPS, NUM_STEPS - SAVE_STEPS)
    trial.start(*_GUARD, fault=f"{fault} {item} {item}").expect(0)
    first, size = _rows_of(trial, item)
    event = trial.expect_event("nonfinite_step", step=item + 1, rows=[[first, first + size]])
    if trial.events("rolled_back"):
        raise Broken("the run rolled back for a single step")
    _expect_text(trial, first)
    _expect_finite(trial)
    return event


def steps_that_are_not_finite(trial: Trial) -> Result:
    """Several successive steps are not finite: the run rolls back and skips their batches."""
    return _roll_back(trial, "nan_gradient", 4)


def burst_of_bad_batches(trial: Trial) -> Result:
    """Several successive batches are noise: the run rolls back and skips them."""
    return _roll_back(trial, "bad_batches", 5)


def spike(trial: Trial) -> Result:
    """A huge update raises the losses after it: the run rolls back to before it."""
    return _roll_back(trial, "spike", 1, *_SPIKING)


def _roll_back(trial: Trial, fault: str, num_batches: int, *more: str) -> Result:
    first = trial.rng.randrange(_LATE, NUM_STEPS - 2 * SAVE_STEPS)
    last = first + num_batches - 1
    trial.start(*_GUARD, *more, fault=f"{fault} {first} {last}").expect(0)
    event = trial.expect_event("rolled_back", rollbacks=1)
    row, size = _rows_of(trial, first)
    rows = [row for start, stop in event["skipped_rows"] for row in range(start, stop, size)]
    if not (event["to_step"] <= first and row in rows and event["layers"]):
        raise Broken(f"the event says {event}")
    for row in rows:
        _expect_text(trial, row)
    _expect_finite(trial)
    return Result(steps_lost=trial.steps_lost())


def infinite_moment(trial: Trial) -> Result:
    """The optimizer state is infinite, no loss is: rollback to the last save, not to step 0."""
    step = trial.rng.randrange(_LATE, NUM_STEPS - SAVE_STEPS)
    more = ("--checkpoint.durable_dir", str(trial.durable))
    trial.start(*_GUARD, *more, fault=f"infinite_moment {step} {step}").expect(0)
    newest = (step - 1) // SAVE_STEPS * SAVE_STEPS
    trial.expect_event("rolled_back", rollbacks=1, to_step=newest)
    _expect_finite(trial)
    expect_last_copy(trial)
    return Result(steps_lost=trial.steps_lost())


def no_end_of_bad_batches(trial: Trial) -> Result:
    """All batches from one on are bad: after 2 rollbacks exit code 76, with a finite state."""
    first = trial.rng.randrange(SAVE_STEPS, NUM_STEPS // 2)
    more = ("--guard.max_rollbacks", "2")
    trial.start(*_GUARD, *more, fault=f"nan_gradient {first} {10 * NUM_STEPS}").expect(76)
    if len(trial.events("rolled_back")) != 2:
        raise Broken(f"the run rolled back {len(trial.events('rolled_back'))} times, not twice")
    _expect_finite(trial)
    return Result(steps_lost=trial.steps_lost())


def flip_a_bit_in_a_device(trial: Trial) -> Result:
    """A device computes one step wrongly: the replay finds and names it, exit code 1."""
    more = ("--guard.replay_every_steps", str(_REPLAY_STEPS))
    step = trial.rng.randrange(1, NUM_STEPS // _REPLAY_STEPS) * _REPLAY_STEPS
    call = step + step // _REPLAY_STEPS  # the second of this step
    started = trial.start(*more, fault=f"flipped_bit {call} {call}")
    started.expect(1)
    if not trial.expect_event("corrupted", step=step)["devices"]:
        raise Broken(f"the event names no device: {started.last_output()}")
    trial.finish(*more)
    return trial.exact()


def _rows_of(trial: Trial, item: int) -> tuple[int, int]:
    """Returns the first row of a batch in the data order, from 0, and its number of rows."""
    size = trial.run.read_config().train.batch_size
    return item * size, size


def _expect_text(trial: Trial, first: int) -> None:
    """Raises Broken unless inspect shows the text of a batch, which is part of the corpus."""
    shown = json.loads(trial.call("inspect", trial.name, "--first-row", str(first), "--json"))
    texts = [piece["text"] for row in shown["rows"] for piece in row["pieces"]]
    if shown["first_row"] != first or not texts or any(t not in trial.place.text for t in texts):
        raise Broken(f"inspect shows the text from row {first} on as {texts[:2]}")


def _expect_finite(trial: Trial) -> None:
    """Raises Broken unless everything in the newest checkpoint is finite."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    import numpy as np
    import orbax.checkpoint as ocp

    warnings.filterwarnings("ignore", message="Sharding info not provided")  # not needed here
    path = trial.run.checkpoints.absolute() / str(trial.saved()) / "state"
    state = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(path)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state)):
        raise Broken(f"the checkpoint of step {trial.saved()} is not finite")
