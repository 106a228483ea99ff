"""Faults of processes: killed, asked to stop, frozen, and what is left of them."""

import os
import signal
import time

from launch.faults.trial import (
    LIMIT_SEC,
    NUM_STEPS,
    ORPHAN_SEC,
    SAVE_STEPS,
    Broken,
    Result,
    Started,
    Trial,
)

_PAIR = 2
_CRASHES = (75, 124, 134, 137)
"""How the others of a job may end when one was killed: each of them says, start me again."""
_SURVIVOR_SEC = 60.0
_START_SEC = 8.0
_NUM_HITS = 5
_SUPERVISED = ("--supervise", "--restart-wait-sec", "0.5", "--frozen-limit-sec", "5")


def kill_as_it_starts(trial: Trial) -> Result:
    """SIGKILL at any moment before the first step."""
    started = trial.start()
    deadline = time.monotonic() + trial.draw.uniform(0, _START_SEC)
    started.wait_until(
        lambda: time.monotonic() > deadline or bool(trial.events("compiled")),
        "moment of the start",
    )
    started.kill()
    trial.expect_nobody()
    trial.finish()
    return trial.exact()


def kill_at_a_step(trial: Trial) -> Result:
    """SIGKILL somewhere after a random step."""
    _reach(trial, started := trial.start())
    started.kill()
    trial.expect_nobody()
    trial.finish()
    return trial.exact()


def kill_in_a_save(trial: Trial) -> Result:
    """SIGKILL while a checkpoint is being written."""
    for _ in range(_NUM_HITS):  # the save may end between the look and the kill
        started = trial.start()
        least = max(trial.saved(), trial.draw.randrange(0, NUM_STEPS - 3 * SAVE_STEPS))
        started.wait_until(lambda least=least: max(trial.saving(), default=0) > least, "save")
        time.sleep(trial.draw.uniform(0, 0.05))
        started.kill()
        if trial.saving():
            break
    else:
        raise Broken(f"none of {_NUM_HITS} kills hit a save")
    trial.expect_nobody()
    trial.finish()
    return trial.exact()


def stop(trial: Trial) -> Result:
    """SIGTERM or SIGINT: the step is saved, exit code 75, and not one step is lost."""
    _reach(trial, started := trial.start())
    started.send(trial.draw.choice((signal.SIGTERM, signal.SIGINT)))
    started.expect(75)
    trial.expect_nobody()
    trial.finish()
    return _without_loss(trial.exact())


def stop_one_of_two(trial: Trial) -> Result:
    """SIGTERM to one process: both stop at the same step, saved, exit code 75."""
    _reach(trial, started := trial.start(num_processes=_PAIR))
    started.send(signal.SIGTERM, trial.draw.randrange(_PAIR))
    started.expect(75)
    trial.expect_nobody()
    trial.finish(num_processes=_PAIR)
    return _without_loss(trial.exact(_PAIR))


def kill_one_of_two(trial: Trial) -> Result:
    """SIGKILL to one process: the other ends by itself, and both go on when started again."""
    _reach(trial, started := trial.start(num_processes=_PAIR))
    started.kill(trial.draw.randrange(_PAIR))
    started.expect(*_CRASHES, within_sec=_SURVIVOR_SEC)
    trial.expect_nobody()
    trial.finish(num_processes=_PAIR)
    return trial.exact(_PAIR)


def freeze_one_of_two(trial: Trial) -> Result:
    """SIGSTOP to one process for ever: its supervisor kills it, and both go on by themselves."""
    started = trial.start(*_SUPERVISED, num_processes=_PAIR)
    _reach(trial, started)
    which = trial.draw.randrange(_PAIR)
    child = trial.child_of(started.processes[which].pid)
    if child is None:
        raise Broken("a supervisor has no process")
    os.kill(child, signal.SIGSTOP)
    started.expect(0)
    trial.expect_nobody()
    trial.expect_event("restarted")
    return trial.exact(_PAIR)


def kill_the_supervised(trial: Trial) -> Result:
    """SIGKILL to a supervised run: it is started again by itself."""
    started = trial.start(*_SUPERVISED)
    _reach(trial, started)
    child = trial.child_of(started.processes[0].pid)
    if child is None:
        raise Broken("the supervisor has no process")
    os.kill(child, signal.SIGKILL)
    started.expect(0)
    trial.expect_event("restarted", exit_code=137)
    return trial.exact()


def kill_the_supervisor(trial: Trial) -> Result:
    """SIGKILL to a supervisor: its run ends too, within 10 s, and can be started again."""
    started = trial.start(*_SUPERVISED)
    _reach(trial, started)
    started.kill()
    trial.expect_nobody(ORPHAN_SEC)
    trial.finish()
    return trial.exact()


def stall(trial: Trial) -> Result:
    """The data of a step never comes: stacks are written, exit code 124."""
    limits = ("--guard.hang_limit_sec", "60")
    item = trial.draw.randrange(SAVE_STEPS, NUM_STEPS - SAVE_STEPS)
    trial.start(*limits, fault=f"stalled_data {item} {item}").expect(124, within_sec=LIMIT_SEC)
    trial.expect_nobody()
    stacks = trial.place.folder / trial.expect_event("hung", phase="step")["stacks"]
    if "_stalled" not in stacks.read_text():
        raise Broken(f"{stacks} does not show where the run hung")
    trial.finish()
    return trial.exact()


def _reach(trial: Trial, started: Started) -> None:
    """Returns a moment after a random step."""
    step = trial.draw.randrange(1, NUM_STEPS - SAVE_STEPS)
    started.wait_until(lambda: trial.reached() >= step, f"step {step}")
    time.sleep(trial.draw.uniform(0, 0.02))


def _without_loss(result: Result) -> Result:
    if any(result.steps_lost):
        raise Broken(f"steps {result.steps_lost} were lost though the run was asked to stop")
    return result
