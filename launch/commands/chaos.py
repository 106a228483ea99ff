"""`./tessera chaos PRESET`: which faults a run survives, tried on real runs, as a table."""

import contextlib
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

import launch.faults.disks as disks
import launch.faults.killed as killed
import launch.faults.numbers as numbers
import launch.faults.unanswered as unanswered
from configs.errors import CheckFailed, Stopped
from configs.require import require, require_at_least
from launch.absolute_paths import RUNS
from launch.arguments import did_you_mean, parse_arguments
from launch.faults.trial import Broken, Result, Trial, Workplace
from launch.progress_bar import Progress, Tracker
from launch.train_settings import require_preset

_PROOF = 100
"""From so many --times on, storage refuses writes for a whole minute."""
_REFUSED_SEC, _REFUSED_IN_PROOF_SEC = 8.0, 60.0


@dataclass(frozen=True, kw_only=True)
class ChaosArguments:
    """Injects faults into small real runs and checks that each ends as promised (else exit 1).

    The exit code is 1 where one does not. Settings after -- are given to every run. Ctrl-C or
    SIGTERM stops all of them (exit code 75).
    """

    preset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET")]
    """The preset whose model is trained, scaled down."""
    times: int = 10
    """Times that a run is killed with SIGKILL; other faults are tried less often."""
    only: tuple[str, ...] = ()
    """Faults to try, by a part of their names; without it all of them."""
    jobs: int | None = None
    """Trials at a time; None is one for each CPU."""
    seed: int | None = None
    """Seed of all random choices; None takes a new one each time and prints it."""
    work_dir: Path | None = None
    """Folder of the runs, kept afterwards; None is a folder below runs/ that is removed unless a
    promise was broken."""
    json: bool = False
    """Print the result as one JSON object, on the last line."""


@dataclass(frozen=True)
class Fault:
    """A fault that a run survives, tried several times."""

    name: str
    harm: Callable[[Trial], Result]
    """Injects the fault, lets the run resume, and raises Broken if the promise is not kept."""
    share: float = 0.0
    """Tries as a fraction of --times, at least one; 0 for a fault that takes minutes."""
    missing: Callable[[], str | None] = lambda: None
    """Returns why it cannot be tried here, None if it can."""

    @property
    def promise(self) -> str:
        """What happens and how the run ends, in a sentence."""
        return (self.harm.__doc__ or "").strip()


FAULTS = (
    Fault("SIGKILL at the start", killed.kill_as_it_starts, 0.2),
    Fault("SIGKILL at a step", killed.kill_at_a_step, 0.5),
    Fault("SIGKILL in a save", killed.kill_in_a_save, 0.3),
    Fault("SIGTERM or Ctrl-C", killed.stop, 0.2),
    Fault("SIGTERM, one of two", killed.stop_one_of_two, 0.2),
    Fault("SIGKILL, one of two", killed.kill_one_of_two, 0.2),
    Fault("frozen, one of two", killed.freeze_one_of_two, 0.2),
    Fault("SIGKILL, supervised", killed.kill_the_supervised, 0.1),
    Fault("SIGKILL, supervisor", killed.kill_the_supervisor, 0.1),
    Fault("data stalls", killed.stall, 0.05),
    Fault("byte flipped", disks.flip_a_byte, 0.1),
    Fault("file truncated", disks.truncate_a_file, 0.1),
    Fault("manifest missing", disks.lose_the_manifest, 0.1),
    Fault("disk full", disks.fill_the_disk, 0.1, disks.needs_unshare),
    Fault("writes refused", disks.refuse_writes, 0.03),
    Fault("copies refused", disks.refuse_copies, 0.05),
    Fault("last copy refused", disks.refuse_the_last_copy, 0.05),
    Fault("last copy slow", unanswered.copy_slowly, missing=unanswered.needs_compiler),
    Fault("save slow", unanswered.save_slowly, missing=unanswered.needs_compiler),
    Fault("manifest unreadable", unanswered.fail_to_read, 0.05, unanswered.needs_compiler),
    Fault("stale listing", unanswered.list_stale_files, 0.05),
    Fault("process late, one of two", unanswered.come_late),
    Fault("two runs in one folder", disks.start_twice, 0.05),
    Fault("clock set back", disks.set_the_clock_back, 0.1, disks.needs_faketime),
    Fault("other layouts", disks.change_the_layout, 0.05),
    Fault("NaN in a gradient", numbers.nan_in_a_gradient, 0.05),
    Fault("infinite loss", numbers.infinite_loss, 0.05),
    Fault("nonfinite steps", numbers.steps_that_are_not_finite, 0.05),
    Fault("optimizer not finite", numbers.infinite_moment, 0.05),
    Fault("burst of bad batches", numbers.burst_of_bad_batches, 0.05),
    Fault("spike", numbers.spike, 0.05),
    Fault("endless bad batches", numbers.no_end_of_bad_batches, 0.05),
    Fault("bit flipped in a device", numbers.flip_a_bit_in_a_device, 0.05),
)
"""In the order of the table."""


@dataclass(kw_only=True)
class Row:
    """The results of one fault; a line of the table."""

    fault: str
    promise: str
    tried: int = 0
    kept: int = 0
    steps_lost: list[int] = field(default_factory=list)
    """Over all tries, one for each time that a run went back."""
    exact: int | None = None
    """Tries that recovered bit for bit; None if the results may differ."""
    missing: str | None = None
    """Why it was not tried."""
    broken: list[str] = field(default_factory=list)
    """The broken promises, with the folder of the run."""


def main(arguments: Sequence[str]) -> int:
    own, more = list(arguments), []
    if "--" in own:
        own, more = own[: own.index("--")], own[own.index("--") + 1 :]
    parsed = parse_arguments(ChaosArguments, own, command="./tessera chaos")
    require_preset(parsed.preset)
    require_at_least("--times", parsed.times, 1)
    require_at_least("--jobs", parsed.jobs or 1, 1)
    names = [fault.name for fault in FAULTS]
    for part in parsed.only:
        require(
            any(part in name for name in names),
            f"--only={part} names no fault{did_you_mean(part, names)}; there are: "
            f"{', '.join(names)}",
        )
    only = parsed.only or ("",)
    chosen = [fault for fault in FAULTS if any(part in fault.name for part in only)]
    refused_sec = _REFUSED_IN_PROOF_SEC if parsed.times >= _PROOF else _REFUSED_SEC
    place = Workplace(_work_folder(parsed.work_dir), parsed.preset, more, refused_sec)
    rows = [Row(fault=f.name, promise=f.promise, missing=f.missing()) for f in chosen]
    return _try_all(chosen, rows, place, parsed)


def _work_folder(wanted: Path | None) -> Path:
    if wanted is None:
        RUNS.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="chaos-", dir=RUNS)).absolute()
    require(
        not wanted.exists() or not any(wanted.iterdir()),
        f"--work-dir={wanted} must be an empty folder, or one that is not there yet",
    )
    return wanted.absolute()


def _try_all(
    chosen: Sequence[Fault], rows: Sequence[Row], place: Workplace, parsed: ChaosArguments
) -> int:
    """Tries the faults, fills their rows, and returns the exit code."""
    console = Console(highlight=False, markup=False, soft_wrap=True, stderr=parsed.json)
    seed = time.time_ns() % 10**9 if parsed.seed is None else parsed.seed
    began = time.monotonic()
    console.print(f"preset {parsed.preset}, seed {seed}, runs in {place.folder}")
    planned = [
        (fault, row, number)
        for fault, row in zip(chosen, rows, strict=True)
        if row.missing is None
        for number in range(max(1, round(fault.share * parsed.times)))
    ]
    with (
        _stopped_by_signals(place),
        contextlib.closing(Progress(console, "tries")) as progress,
        ThreadPoolExecutor(parsed.jobs or os.cpu_count() or 1) as pool,
    ):
        tracker = Tracker(progress, len(planned))
        tries = [
            (row, pool.submit(tracker.track, fault.name, _try_once, fault, place, seed, number))
            for fault, row, number in planned
        ]
        for row in rows:
            for ended in [tried.result() for other, tried in tries if other is row]:
                _count(row, ended)
            if row.tried or row.missing or not place.stopped.is_set():
                console.print(_line(row))
    broken = [why for row in rows for why in row.broken]
    seconds, num_tried = time.monotonic() - began, sum(row.tried for row in rows)
    verdict = f"{len(broken)} not as promised" if broken else "all as promised"
    console.print(f"{num_tried} tries in {seconds / 60:.1f} min: {verdict}")
    is_stopped, is_kept = place.stopped.is_set(), bool(broken or parsed.work_dir)
    if is_stopped:
        console.print(
            f"stopped by a signal before all {len(tries)} tries were done; no process is left, and "
            f"the runs are {f'kept in {place.folder}' if is_kept else 'removed'}"
        )
    if not is_kept:
        shutil.rmtree(place.folder, ignore_errors=True)
    if parsed.json:
        result = {
            "preset": parsed.preset,
            "seed": seed,
            "ok": not broken and not is_stopped,
            "stopped": is_stopped,
            "seconds": round(seconds, 1),
            "rows": [asdict(row) for row in rows],
        }
        print(json.dumps(result))
    if is_stopped:
        return Stopped.exit_code
    return CheckFailed.exit_code if broken else 0


@contextlib.contextmanager
def _stopped_by_signals(place: Workplace) -> Iterator[None]:
    """Lets a signal stop all trials, of which those that have not begun end at once."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: place.stop()) for number in numbers}
    try:
        yield
    finally:
        for number, act in before.items():
            signal.signal(number, act)


def _try_once(fault: Fault, place: Workplace, seed: int, number: int) -> Result | str | None:
    """Returns how a try ended, or what was not as promised; None if it was stopped."""
    if place.stopped.is_set():
        return None
    name = f"{fault.name.replace(',', '').replace(' ', '-').lower()}-{number}"
    trial = Trial(place, name, random.Random(f"{seed} {name}"))
    try:
        ended = fault.harm(trial)
    except Broken as broken:
        ended = f"{name}: {broken}"
    except Exception as error:  # a fault of the trial is a broken promise until it is looked into
        ended = f"{name}: {type(error).__name__}: {error}"
    finally:
        trial.end()
    return None if place.stopped.is_set() else ended


def _count(row: Row, ended: Result | str | None) -> None:
    if ended is None:
        return
    row.tried += 1
    if isinstance(ended, str):
        row.broken.append(ended)
        return
    row.kept += 1
    row.steps_lost += ended.steps_lost
    if ended.is_exact is not None:
        row.exact = (row.exact or 0) + ended.is_exact


def _line(row: Row) -> str:
    """Returns a line of the table, and one more for each promise that was broken."""
    if row.missing is not None:
        return f"  {row.fault:<24} not tried: {row.missing}"
    lost = f"{max(row.steps_lost, default=0)} at most"
    exact = "" if row.exact is None else f"bit for bit {row.exact}/{row.tried}"
    kept = f"{row.fault:<24} {row.kept}/{row.tried} as promised"
    line = f"  {kept:<44} {f'steps lost {lost}':<24} {exact:<20} {row.promise}"
    return "\n".join([line, *(f"    {why}" for why in row.broken)])
