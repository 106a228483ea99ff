"""Faults of processes: killed, stopped, frozen, outliving their run."""

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
"""How the other processes of a job may end when one is killed: the run can be restarted."""
_SURVIVOR_SEC = 60.0
_START_SEC = 8.0
_NUM_HITS = 5


def kill_as_it_starts(trial: Trial) -> Result:
    """SIGKILL at a random moment before the first step."""
    started = trial.start()
    deadline = time.monotonic() + trial.rng.uniform(0, _START_SEC)
    started.wait_until(
        lambda: time.monotonic() > deadline or bool(trial.events("compiled")),
        "random moment of the start",
    )
    started.kill()
    return trial.recover()


def kill_at_a_step(trial: Trial) -> Result:
    """SIGKILL shortly after a random step."""
    _reach(trial, started := trial.start())
    started.kill()
    return trial.recover()


def kill_in_a_save(trial: Trial) -> Result:
    """SIGKILL while a checkpoint is written."""
    for _ in range(_NUM_HITS):  # the save may end between the look and the kill
        started = trial.start()
        least = max(trial.saved(), trial.rng.randrange(0, NUM_STEPS - 3 * SAVE_STEPS))
        started.wait_until(lambda least=least: max(trial.saving(), default=0) > least, "save")
        time.sleep(trial.rng.uniform(0, 0.05))
        started.kill()
        if trial.saving():
            break
    else:
        raise Broken(f"none of {_NUM_HITS} kills hit a save")
    return trial.recover()


def stop(trial: Trial) -> Result:
    """SIGTERM or SIGINT: the step is saved, exit code 75, and no step is lost."""
    _reach(trial, started := trial.start())
    started.send(trial.rng.choice((signal.SIGTERM, signal.SIGINT)))
    started.expect(75)
    return _without_lost_steps(trial.recover())


def stop_one_of_two(trial: Trial) -> Result:
    """SIGTERM to one of two processes: both save the same step, exit code 75."""
    _reach(trial, started := trial.start(num_processes=_PAIR))
    started.send(signal.SIGTERM, trial.rng.randrange(_PAIR))
    started.expect(75)
    return _without_lost_steps(trial.recover())


def kill_one_of_two(trial: Trial) -> Result:
    """SIGKILL to one of two processes: the other ends too, and both resume when restarted."""
    _reach(trial, started := trial.start(num_processes=_PAIR))
    started.kill(trial.rng.randrange(_PAIR))
    started.expect(*_CRASHES, within_sec=_SURVIVOR_SEC)
    return trial.recover()


def freeze_one_of_two(trial: Trial) -> Result:
    """SIGSTOP to one of two processes: its supervisor kills it, and both are restarted."""
    started = trial.start("--supervise", num_processes=_PAIR)
    _reach(trial, started)
    supervisor = started.processes[trial.rng.randrange(_PAIR)]
    trial.signal_child(signal.SIGSTOP, supervisor.pid)
    started.expect(0)
    trial.expect_nobody()
    trial.expect_event("restarted")
    return trial.exact()


def kill_the_supervised(trial: Trial) -> Result:
    """SIGKILL to a supervised run: the supervisor restarts it."""
    started = trial.start("--supervise")
    _reach(trial, started)
    trial.signal_child(signal.SIGKILL, started.processes[0].pid)
    started.expect(0)
    trial.expect_event("restarted", exit_code=137)
    return trial.exact()


def kill_the_supervisor(trial: Trial) -> Result:
    """SIGKILL to a supervisor: its run ends within 10 s and can be restarted."""
    started = trial.start("--supervise")
    _reach(trial, started)
    started.kill()
    trial.expect_nobody(ORPHAN_SEC)
    trial.finish()
    return trial.exact()


def stall(trial: Trial) -> Result:
    """The data of a step never arrives: stack traces are written, exit code 124."""
    limits = ("--guard.hang_limit_sec", "60")
    item = trial.rng.randrange(SAVE_STEPS, NUM_STEPS - SAVE_STEPS)
    trial.start(*limits, fault=f"stalled_data {item} {item}").expect(124, within_sec=LIMIT_SEC)
    trial.expect_nobody()
    stacks = trial.place.folder / trial.expect_event("hung", phase="step")["stacks"]
    if "_stalled" not in stacks.read_text():
        raise Broken(f"{stacks} does not show where the run hangs")
    trial.finish()
    return trial.exact()


def _reach(trial: Trial, started: Started) -> None:
    """Waits until shortly after a random step."""
    started.wait_for_step(trial.rng.randrange(1, NUM_STEPS - SAVE_STEPS))
    time.sleep(trial.rng.uniform(0, 0.02))


def _without_lost_steps(result: Result) -> Result:
    if any(result.steps_lost):
        raise Broken(f"steps {result.steps_lost} were lost although a signal stopped the run")
    return result
