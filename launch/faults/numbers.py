"""Faults of numbers: not finite, bad batches, a spike, a device that computes wrongly."""

import json
import warnings

from launch.faults.disks import expect_last_copy
from launch.faults.trial import NUM_STEPS, SAVE_STEPS, Broken, Result, Trial

_GUARD = ("--guard.num_window_steps", "16", "--guard.max_skipped_steps", "4")
_SPIKING = (
    *("--optim.optimizer", "sgd", "--optim.max_grad_norm", "None", "--optim.peak_lr", "0.1"),
    *("--guard.num_spike_steps", "3"),
)
_REPLAY_STEPS = 5
_LATE = NUM_STEPS * 6 // 10
"""Where losses fall no longer so fast that a window of them is wide."""


def nan_in_a_gradient(trial: Trial) -> Result:
    """The gradient of one array is NaN in one step: skipped, and the array is named."""
    event = _skip(trial, "nan_gradient")
    if list(event["layers"]) != ["norm/scale"] or event["loss"] == "nan":
        raise Broken(f"the event says {event}")
    return Result()


def infinite_loss(trial: Trial) -> Result:
    """The loss of one step is infinite: skipped."""
    event = _skip(trial, "infinite_loss")
    if event["loss"] != "inf":
        raise Broken(f"the event says {event}")
    return Result()


def _skip(trial: Trial, fault: str) -> dict:
    item = trial.draw.randrange(SAVE_STEPS, NUM_STEPS - SAVE_STEPS)
    trial.start(*_GUARD, fault=f"{fault} {item} {item}").expect(0)
    first, size = _rows_of(trial, item)
    event = trial.expect_event("nonfinite_step", step=item + 1, rows=[[first, first + size]])
    if trial.events("rolled_back"):
        raise Broken("the run went back for a single step")
    _expect_text(trial, first)
    _expect_finite(trial)
    return event


def steps_that_are_not_finite(trial: Trial) -> Result:
    """Several steps in a row are not finite: the run goes back and passes their batches over."""
    return _go_back(trial, "nan_gradient", 4)


def burst_of_bad_batches(trial: Trial) -> Result:
    """Some batches in a row are noise: the run goes back and passes them over."""
    return _go_back(trial, "bad_batches", 5)


def spike(trial: Trial) -> Result:
    """One huge update, and the losses after it are far too high: the run goes back before it."""
    return _go_back(trial, "spike", 1, *_SPIKING)


def _go_back(trial: Trial, fault: str, num_batches: int, *more: str) -> Result:
    first = trial.draw.randrange(_LATE, NUM_STEPS - 2 * SAVE_STEPS)
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
    """A moment is infinite late in the run, no loss is: back to the save before, not to step 0."""
    step = trial.draw.randrange(_LATE, NUM_STEPS - SAVE_STEPS)
    durable = trial.place.folder / f"{trial.name}-durable"
    more = ("--checkpoint.durable_dir", str(durable))
    trial.start(*_GUARD, *more, fault=f"infinite_moment {step} {step}").expect(0)
    newest = (step - 1) // SAVE_STEPS * SAVE_STEPS
    trial.expect_event("rolled_back", rollbacks=1, to_step=newest)
    _expect_finite(trial)
    expect_last_copy(durable)
    return Result(steps_lost=trial.steps_lost())


def no_end_of_bad_batches(trial: Trial) -> Result:
    """All batches from one on are bad: after its budget the run ends with 76, its state finite."""
    first = trial.draw.randrange(SAVE_STEPS, NUM_STEPS // 2)
    more = ("--guard.max_rollbacks", "2")
    trial.start(*_GUARD, *more, fault=f"nan_gradient {first} {10 * NUM_STEPS}").expect(76)
    if len(trial.events("rolled_back")) != 2:
        raise Broken(f"the run went back {len(trial.events('rolled_back'))} times, not twice")
    _expect_finite(trial)
    return Result(steps_lost=trial.steps_lost())


def flip_a_bit_in_a_device(trial: Trial) -> Result:
    """A device computes one step wrongly: found by the replay (1), named, and nothing is kept."""
    more = ("--guard.replay_every_steps", str(_REPLAY_STEPS))
    step = trial.draw.randrange(1, NUM_STEPS // _REPLAY_STEPS) * _REPLAY_STEPS
    call = step + step // _REPLAY_STEPS  # the second of this step
    started = trial.start(*more, fault=f"flipped_bit {call} {call}")
    started.expect(1)
    if not trial.expect_event("corrupted", step=step)["devices"]:
        raise Broken(f"no device is named: {started.said()}")
    trial.finish(*more)
    return trial.exact()


def _rows_of(trial: Trial, item: int) -> tuple[int, int]:
    """Returns the first row of a batch of the sequence, from 0, and how many it has."""
    size = trial.run.read_config().train.batch_size
    return item * size, size


def _expect_text(trial: Trial, first: int) -> None:
    """Raises Broken unless the text of rows is shown, a part of what was trained on."""
    said = json.loads(trial.call("inspect", trial.name, "--first_row", str(first), "--json"))
    texts = [piece["text"] for row in said["rows"] for piece in row["pieces"]]
    if said["first_row"] != first or not texts or any(t not in trial.place.text for t in texts):
        raise Broken(f"the text from row {first} on is shown as {texts[:2]}")


def _expect_finite(trial: Trial) -> None:
    """Raises Broken unless everything in the newest checkpoint is finite."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    import numpy as np
    import orbax.checkpoint as ocp

    warnings.filterwarnings("ignore", message="Sharding info not provided")  # it is not needed
    path = trial.run.checkpoints.absolute() / str(trial.saved()) / "state"
    state = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(path)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state)):
        raise Broken(f"the checkpoint of step {trial.saved()} is not finite")
