"""`./tessera train PRESET`: from the words that were typed to the loop."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from configs.errors import Hung, SettingsError, Stopped
from configs.flat_settings import flatten
from configs.require import require
from configs.run import RunConfig
from configs.suggested_commands import tessera
from data.atomic_files import BYTES_MOVED
from launch.absolute_paths import RUNS
from launch.cli import guarded
from launch.config_file import to_toml
from launch.jax_setup import (
    describe_devices,
    describe_environment,
    describe_software,
    environment_changes,
    prepare_jax,
)
from launch.next_commands import new_run_hint
from launch.progress_bar import Progress
from launch.supervise import supervise
from launch.supervisor_pipe import start_heartbeat
from launch.train_settings import (
    TrainArguments,
    parse,
    prepared_before,
    resolve,
    run_dir_of,
)
from launch.train_summary import closing_summary, opening_summary
from sharding.distributed.job import find_job
from train.health.watchdog import Hang, Watchdog, write_stacks
from train.record.run_folder import RunFolder
from train.record.spans import Spans

if TYPE_CHECKING:
    from data.mixture import Data
    from sharding.distributed.processes import Processes
    from train.checkpoints.durable_storage import DurableTier
    from train.checkpoints.init_from import InitFrom
    from train.health.signals import Signals

_SHARED_WITHIN_SEC = 15.0
"""How long a file may take to show up in another machine that shares the file system."""
_DEVICES_WITHIN_SEC = 600.0
"""How much later than another process one may have found its devices."""


def main(arguments: Sequence[str]) -> int:
    if {"--print-config", "--print_config"} & {*arguments}:
        _, parsed = parse(arguments)
        print(to_toml(parsed.config))
        return 0
    if "--supervise" in arguments and not start_heartbeat():
        return _supervise(arguments)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until there is something to save
    with contextlib.closing(Spans()) as spans:
        return _join_and_train(arguments, spans)


def _join_and_train(arguments: Sequence[str], spans: Spans) -> int:
    job = find_job(arguments)
    if job is None:
        preset, parsed = _prepare(arguments)
        from sharding.distributed.processes import ALONE

        return _train(arguments, preset, parsed, ALONE, spans)

    from sharding.distributed.processes import join

    processes = join(job)  # before anything else can fail, so that the others hear of it

    def run() -> int:
        with processes.together():
            preset, parsed = _prepare(arguments)
            same = {**describe_software(), **_flat(preset, parsed)}
            processes.agree("settings", same, job.rendezvous_timeout_sec)
            processes.agree("devices", describe_devices(), _DEVICES_WITHIN_SEC)
            return _train(arguments, preset, parsed, processes, spans)

    return processes.end(guarded(run))


def _supervise(arguments: Sequence[str]) -> int:
    """Runs the same command in a process that is started again where that is of use."""
    preset, parsed = parse(arguments)
    job = find_job(arguments)
    folder = RunFolder(run_dir_of(preset, parsed), is_writer=job is None or job.process_id == 0)
    return supervise([sys.executable, "-m", "launch", "train", *arguments], folder)


def _prepare(arguments: Sequence[str]) -> tuple[str, TrainArguments]:
    preset, parsed = parse(arguments)
    prepare_jax(
        virtual_devices=parsed.virtual_devices, deterministic=parsed.config.train.deterministic
    )
    return preset, parsed


def _flat(preset: str, parsed: TrainArguments) -> dict[str, Any]:
    return {
        "preset": preset,
        "--run-dir": str(run_dir_of(preset, parsed)),
        "--allow-changes": parsed.allow_changes,
        "--init-from": parsed.init_from,
        "--with-optimizer": parsed.with_optimizer,
        "--virtual-devices": parsed.virtual_devices,
        **flatten(parsed.config),
    }


def _train(
    arguments: Sequence[str],
    preset: str,
    parsed: TrainArguments,
    processes: "Processes",
    spans: Spans,
) -> int:
    started = time.perf_counter()
    command = tessera("train", *arguments)

    import jax

    from train.checkpoints.init_from import check_hf_model, check_source, find_init_from
    from train.loop import train
    from train.record.console import log_to_console, log_to_file, logger
    from train.run_context import RunContext

    folder = RunFolder(run_dir_of(preset, parsed), is_writer=processes.is_first)
    log_to_console(Console(highlight=False), process=processes.index)
    console = Console(highlight=False, quiet=not processes.is_first)  # for what is live
    signals = _watched(parsed.config, folder, processes, spans)
    durable = _open_durable(parsed.config, folder, processes)

    # Everything that can be refused is refused here, before anything is compiled.
    source = find_init_from(parsed.init_from, folder, with_optimizer=parsed.with_optimizer)
    processes.agree("init from", source.described() if source else {}, limit_sec=None)
    new_run = new_run_hint(arguments, folder.path)
    config, data, mesh, changed = _checked(
        parsed, folder, source, processes, spans, console, new_run
    )
    if source is not None:
        (check_source if source.step is not None else check_hf_model)(source, config)

    with folder.held(), durable.held(folder) if durable else contextlib.nullcontext():
        _check_shared(folder, processes)
        environment = describe_environment(processes)
        changes = environment_changes(folder.last_environment() or environment, environment)
        replaced = folder.replaced_settings() if folder.exists else []
        folder.begin(config, environment)
        processes.wait("folder")
        log_to_file(folder.logs / f"process-{processes.index}.log")
        processes.resume_command = command
        folder.add_event("started", command=command, cwd=os.getcwd(), environment=environment)
        if replaced:
            earlier = ", ".join(replaced)
            logger.warning(f"{folder.config} had settings of an earlier version: {earlier}")
        if changed:
            logger.warning(f"resuming with other settings: {', '.join(changed)}")
            folder.add_event("changed", settings=changed)
        if changes:
            logger.warning(f"resuming in another environment: {', '.join(changes)}")
            folder.add_event("environment_changed", changes=changes)
        if processes.is_first:
            set_back_sec = spans.ledger.resume(folder.ledger)
            if set_back_sec > 1:
                logger.warning(
                    f"the clock was set back by {set_back_sec:.0f} s since the run's last start"
                )
                folder.add_event("clock_set_back", seconds=round(set_back_sec, 1))
            spans.start_writing()
        logger.info(opening_summary(folder, config, data, mesh))
        run = RunContext(
            config=config,
            folder=folder,
            data=data,
            mesh=mesh,
            processes=processes,
            spans=spans,
            durable=durable,
            init_from=source,
        )

        def go() -> int:
            with processes.together(), jax.set_mesh(mesh):
                outcome = train(run, signals, console)
            spans.ledger.is_finished = True
            seconds = time.perf_counter() - started
            logger.info(closing_summary(folder, config, preset, outcome, seconds))
            return 0

        code = guarded(go, go_on=command)
        if code not in (0, Stopped.exit_code):
            folder.add_event("failed", exit_code=code)
        signals.close()
        spans.close()  # here, for of several processes none comes back from its end
        return code


def _watched(
    config: RunConfig, folder: RunFolder, processes: "Processes", spans: Spans
) -> "Signals":
    """Returns the signals of this process, which are caught from now on, as hangs are."""
    from train.checkpoints.restore import stored_bytes
    from train.health.signals import Signals

    def on_hang(hang: Hang) -> None:
        stacks = write_stacks(folder.logs, processes.index)
        details = {"phase": hang.span, "limit_sec": hang.limit_sec, "stacks": stacks}
        folder.add_event("hung", seconds=round(hang.seconds, 1), **details)
        processes.abandon(Hung(f"hung: {hang.cause}; the stacks of all threads are in {stacks}"))

    def progress() -> int:
        # A process that waits for another one is well: that one has a watchdog of its own.
        return BYTES_MOVED.total + stored_bytes() + processes.num_polls

    def on_notice_over(cause: str) -> None:
        newest = folder.newest_step()
        folder.add_event("stopped", step=newest, cause=cause, saved=False)
        message = (
            f"stopped by {cause}; checkpoint.notice_sec={config.checkpoint.notice_sec} was too "
            "short to save, and the newest complete checkpoint is "
            f"{f'that of step {newest}' if newest else 'none'}"
        )
        processes.abandon(Stopped(message))

    signals = Signals()
    signals.install(config.checkpoint.notice_sec, on_notice_over)
    Watchdog(spans, config.guard, progress).start(on_hang)
    return signals


def _open_durable(
    config: RunConfig, folder: RunFolder, processes: "Processes"
) -> "DurableTier | None":
    """Returns where copies are, in the first process alone; a new machine gets its run from there.

    Raises SettingsError if it cannot be read or written.
    """
    from train.checkpoints.durable_storage import DurableTier

    if config.checkpoint.durable_dir is None:
        return None
    durable = DurableTier(config.checkpoint.durable_dir) if processes.is_first else None
    if durable is not None:
        durable.check_writable()
        folder.check_free()
        if not folder.exists:
            durable.fetch_small(folder)
    processes.wait("durable folder")
    return durable


def _checked(
    parsed: TrainArguments,
    folder: RunFolder,
    source: "InitFrom | None",
    processes: "Processes",
    spans: Spans,
    console: Console,
    new_run: str,
) -> tuple[RunConfig, "Data", Any, dict[str, tuple]]:
    """Returns settings, data and mesh that fit together, and which settings were changed."""
    import jax

    from data.open_data import open_data
    from sharding.layout_check import check_fit, check_platform
    from sharding.mesh import make_mesh
    from train.checkpoints.folders import newest_progress
    from train.health.replay import check_can_replay
    from train.record.console import logger

    require(
        jax.process_count() == processes.num,
        f"JAX finds devices of {jax.process_count()} processes, but {processes.num} were started "
        f"as one run: give --coordinator, --num-processes and --process-id in each of them",
    )
    folder.check_free()
    mesh = make_mesh(parsed.config.mesh)
    platform = mesh.devices.flat[0].platform
    check_platform(parsed.config, platform)
    check_can_replay(parsed.config, platform)
    check_fit(parsed.config, dict(mesh.shape))
    progress = newest_progress(folder.checkpoints)
    begun = source.folder if source is not None and source.with_optimizer else folder
    with spans("preparation of the data"), contextlib.closing(Progress(console)) as watch:
        moved = prepared_before(parsed.config, begun)
        if not processes.is_first:  # the first one prepares it, and the others open it then
            processes.from_first("data is prepared", None)
        data = open_data(
            parsed.config.data,
            RUNS / ".data",
            logger.info,
            on_progress=watch,
            known_folders=moved,
            process=processes.index,  # each checks a part of the files
            num_processes=processes.num,
        )
        if processes.is_first:
            processes.from_first("data is prepared", None)
    config = resolve(parsed.config, data)
    check_fit(config, dict(mesh.shape))  # again, now that the vocabulary is known
    changed = {}
    if folder.exists:
        allows = parsed.allow_changes
        changed = folder.check_settings(config, allow_changes=allows, new_run=new_run)
    if progress is not None:
        try:
            progress.check_continues(config, data.digest)
        except SettingsError as error:
            raise SettingsError(f"{error}: {new_run}") from None
    same = {"data (sha256)": data.digest, "newest checkpoint": progress and progress.step}
    processes.agree("data", {**same, **flatten(config)}, limit_sec=None)
    return config, data, mesh, changed


def _check_shared(folder: RunFolder, processes: "Processes") -> None:
    """Raises SettingsError unless this process sees the run folder that the first one holds."""
    mark = processes.from_first("mark of the run folder", folder.mark())
    deadline = time.monotonic() + _SHARED_WITHIN_SEC
    while folder.mark() != mark:
        require(
            time.monotonic() < deadline,
            f"--run-dir {folder.path.absolute()} is another folder in process {processes.index} "
            "than in process 0: give one that is on a file system which all of them share",
        )
        time.sleep(0.1)
    processes.wait("shared folder")
