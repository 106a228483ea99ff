"""The events of a run in words: what happened, how bad it is, and what to look at."""

import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard

from configs.command_line import tessera
from data.step_ranges import merged
from launch.printable import shortened

Event = dict[str, Any]
"""A line of events.jsonl; old runs lack some of its keys."""

TROUBLES = (
    *("skipped", "rolled_back", "save_failed", "copy_failed", "quarantined", "hung", "corrupted"),
    *("failed", "restarted", "clock_set_back", "slow_process", "not_removed"),
)
"""Events that somebody should know of."""

_GROUPED = ("skipped", "save_failed", "copy_failed", "saved", "copied", "restarted")
"""Events that come by the thousand: those in a row are told together."""
_ROUTINE = (*_GROUPED, "resumed", "compiled", "started", "fetched")
"""Events that do not end such a row."""
_NEAR_STEPS = 100
"""Skipped steps further apart are not told together."""
_NUM_DETAILS = 20
_NUM_CHARACTERS = 400
_EXIT_CODES = {
    1: "a check failed",
    2: "settings that cannot work",
    65: "data or checkpoints are damaged",
    70: "an error of Tessera",
    71: "out of device memory",
    75: "stopped from outside",
    76: "diverged",
    124: "hung",
}
_WORDS = {
    "started": "a process was started: {command}",
    "resumed": "went on from the checkpoint of step {step}",
    "compiled": "compiled in {compile_sec} s",
    "branched": "began with the state of {run} at step {step}; its optimizer too: {with_optimizer}",
    "skipped": "step {step} was skipped: loss {loss}, gradient norm {grad_norm}, {rows}",
    "rolled_back": "went back from step {step} to step {to_step} and skipped {rows}: {cause}",
    "data_changed": "batches change after step {step} ({settings}), from row {first_row} of the "
    "data on; tokens of a broken-off epoch that were not seen: {unseen_tokens}",
    "saved": "saved step {step}: {bytes} bytes; training stood still for {stall_sec} s",
    "save_failed": "step {step} could not be saved: {cause}",
    "not_removed": "an older checkpoint could not be removed after step {step} was saved: {cause}",
    "quarantined": "the checkpoint of step {step} is damaged, and now in {path}: {cause}",
    "copied": "copied step {step} to {url}",
    "copy_failed": "step {step} could not be copied: {cause}",
    "fetched": "fetched step {step} from {url}",
    "hung": "{phase} took {seconds} s, {limit_sec} s are allowed; stacks are in {stacks}",
    "corrupted": "step {step} computed twice was not the same: devices {devices}, arrays {arrays}",
    "stopped": "stopped at step {step} by {cause}",
    "failed": "ended with exit code {exit_code}",
    "finished": "finished at step {step}; sha256 of the parameters {params_sha256}",
    "slow_process": "process {process} holds the others up: {cause}",
    "clock_set_back": "the clock of the machine was set back by {seconds} s",
    "restarted": "started again after exit code {exit_code} and a wait of {wait_sec} s "
    "(restart {restarts} without a new checkpoint)",
}


@dataclass(frozen=True)
class Told:
    """An event in words, or several of a kind in a row."""

    name: str
    time: str
    """Of the first one."""
    words: str
    kind: Literal["trouble", "usual"]
    look: str | None = None
    """A command that shows the culprit."""
    layers: dict[str, str] = field(default_factory=dict)
    """Norms of gradients that stand out, of the first one."""
    details: tuple[str, ...] = ()
    """Words of the first ones, where there are several."""
    num_more: int = 0
    """How many are not among the details."""


def tell(events: Iterable[Event], run: str) -> list[Told]:
    """Returns what happened in words, oldest first.

    Args:
        run: its folder, as a command names it.
    """
    rows: list[list[Event]] = []
    open_rows: dict[str, list[Event]] = {}
    for event in events:
        name = name_of(event)
        if name not in _ROUTINE:
            open_rows.clear()
        row = open_rows.get(name, [])
        if row and name in _GROUPED and _is_near(row[-1], event):
            row.append(event)
        else:
            open_rows[name] = [event]
            rows.append(open_rows[name])
    return [_told(row, run) for row in rows]


def name_of(event: Event) -> str:
    """Returns which event it is."""
    return str(event.get("event", "unknown"))


def exit_words(code: Any) -> str:
    """Returns an exit code and what it means: 137 (SIGKILL)."""
    meaning = _EXIT_CODES.get(code) if isinstance(code, int) else None
    if isinstance(code, int) and 128 < code < 128 + signal.NSIG:
        try:
            meaning = signal.Signals(code - 128).name
        except ValueError:
            meaning = f"signal {code - 128}"
    return f"{_shown(code)} ({meaning})" if meaning else _shown(code)


def time_words(time: Any) -> str:
    """Returns a time in UTC without its fractions: 2026-11-26 12:17:53."""
    return str(time)[:19].replace("T", " ")


def _is_near(one: Event, next: Event) -> bool:
    """Says whether two events of a kind belong together: always, but for skips far apart."""
    before, after = one.get("step"), next.get("step")
    if name_of(one) != "skipped" or not isinstance(before, int) or not isinstance(after, int):
        return True
    return abs(after - before) <= _NEAR_STEPS


def _told(row: Sequence[Event], run: str) -> Told:
    first = row[0]
    name, layers = name_of(first), first.get("layers")
    told = [_words(event) for event in row[:_NUM_DETAILS]] if len(row) > 1 else []
    return Told(
        name=name,
        time=time_words(first.get("time", "unknown")),
        words=_together(row) if len(row) > 1 else _words(first),
        kind="trouble" if name in TROUBLES else "usual",
        look=_look(first, run),
        layers={str(k): str(v) for k, v in layers.items()} if isinstance(layers, dict) else {},
        details=tuple(told),
        num_more=len(row) - len(told) if told else 0,
    )


def _words(event: Event) -> str:
    """Returns what one event says; one that is not known is shown as it is."""
    name = name_of(event)
    if name in ("changed", "environment_changed"):
        return _changes(event)
    if name not in _WORDS:
        rest = {key: value for key, value in event.items() if key not in ("time", "event")}
        return shortened(", ".join(f"{key} {_shown(v)}" for key, v in rest.items()), 400)
    words = _WORDS[name].format_map(_Shown(event))
    if name == "stopped" and "process" in event:
        words += f", which came to process {_shown(event['process'])}"
    if name == "stopped" and event.get("saved") is False:
        words += "; there was no time to save"
    return shortened(words, _NUM_CHARACTERS)


def _changes(event: Event) -> str:
    """Returns the settings, or the parts of the environment, that are others now."""
    said = event.get("settings", event.get("changes"))
    if not isinstance(said, dict):
        return _shown(said)
    pairs = [
        f"{name}: {_shown(pair[0])} → {_shown(pair[1])}"
        if isinstance(pair, list) and len(pair) == 2
        else f"{name}: {_shown(pair)}"
        for name, pair in said.items()
    ]
    return "; ".join(pairs)


def _together(row: Sequence[Event]) -> str:
    """Returns what several events of a kind in a row have in common."""
    name, num = name_of(row[0]), len(row)
    last = time_words(row[-1].get("time", "unknown"))
    steps = [event["step"] for event in row if isinstance(event.get("step"), int)]
    span = f"steps {min(steps):,} to {max(steps):,}" if steps else "steps unknown"
    if name == "restarted":
        codes = dict.fromkeys(exit_words(event.get("exit_code")) for event in row)
        return f"started again {num:,} times until {last}, after exit codes {', '.join(codes)}"
    if name == "skipped":
        return f"{num:,} steps were skipped, {span}, until {last}"
    if name == "saved":
        stalls = [e["stall_sec"] for e in row if isinstance(e.get("stall_sec"), int | float)]
        stood = (
            f"; training stood still for {sum(stalls) / len(stalls):.3g} s each time on average, "
            f"{max(stalls):.3g} s at most"
            if stalls
            else ""
        )
        return f"saved {num:,} times, {span}, until {last}{stood}"
    verb = {"copied": "copied", "save_failed": "could not be saved"}.get(
        name, "could not be copied"
    )
    return f"{num:,} checkpoints {verb}, {span}, until {last}"


def _look(event: Event, run: str) -> str | None:
    """Returns the command that shows what the culprit was, where the event names one."""
    name, rows = name_of(event), event.get("skipped_rows") or event.get("rows")
    if name in ("skipped", "rolled_back") and rows and _is_rows(rows):
        step = ("--step", str(event["step"])) if isinstance(event.get("step"), int) else ()
        return tessera("inspect", Path(run), "--first-row", str(rows[0][0]), *step)
    if name in ("skipped", "corrupted") and isinstance(event.get("step"), int):
        return tessera("inspect", Path(run), "--step", str(event["step"]))
    if name == "quarantined":
        return tessera("checkpoints", Path(run), "--verify")
    return None


class _Shown:
    """The values of an event as text; one that is not there is "unknown"."""

    def __init__(self, event: Event):
        self._event = event

    def __getitem__(self, key: str) -> str:
        value = self._event.get(key, "unknown")
        if key == "exit_code":
            return exit_words(value)
        if key == "settings":
            return _changes(self._event)
        return _rows(self._event) if key == "rows" else _shown(value)


def _rows(event: Event) -> str:
    """Returns rows as people list them, "rows 3, 7 to 12"; old runs know whole batches alone."""
    rows, name = event.get("skipped_rows", event.get("rows")), "rows"
    if rows is None:
        items, name = event.get("passed_over", event.get("batch")), "batches"
        items = items if isinstance(items, list) else [items]
        known = [item for item in items if isinstance(item, int)]
        rows = merged((item, item + 1) for item in known) if len(known) == len(items) else None
    if not _is_rows(rows):
        return f"{name} unknown"
    ends = [(start, stop - 1) for start, stop in rows]
    return f"{name} {', '.join(f'{a:,}' if a == b else f'{a:,} to {b:,}' for a, b in ends)}"


def _is_rows(rows: Any) -> TypeGuard[list[tuple[int, int]]]:
    """Says whether these are rows (start, stop), and not what a damaged line has in their place."""
    return isinstance(rows, list) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(x, int) for x in pair)
        for pair in rows
    )


def _shown(value: Any) -> str:
    render: dict[type, Callable[[Any], str]] = {
        bool: lambda said: "yes" if said else "no",
        int: lambda said: f"{said:,}",
        float: lambda said: f"{said:,.6g}",
        list: lambda said: ", ".join(map(_shown, said)) or "none",
        type(None): lambda said: "none",
    }
    return render.get(type(value), str)(value)
