"""The events of a run as messages: what happened, whether it is an issue, what to look at."""

import signal
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from configs.suggested_commands import tessera
from data.step_ranges import merge_intervals
from launch.printable import shortened
from train.record.events import ISSUES, MESSAGES

Event = dict[str, Any]
"""A line of events.jsonl; old runs lack some of its keys."""

_OLD_NAMES = {"skipped": "nonfinite_step"}
"""{kind in run folders written before: kind}."""
_GROUPED = ("nonfinite_step", "save_failed", "copy_failed", "saved", "copied", "restarted")
"""Kinds that occur by the thousand: successive ones become one message."""
_ROUTINE = (*_GROUPED, "resumed", "compiled", "started", "fetched")
"""Kinds that do not end such a group."""
_NEAR_STEPS = 100
"""Nonfinite steps further apart are not grouped."""
_NUM_DETAILS = 20
_NUM_CHARACTERS = 400
_EXIT_CODES = {
    1: "a check failed",
    2: "invalid settings or input",
    65: "damaged data or checkpoint",
    70: "internal error",
    71: "out of device memory",
    75: "interrupted",
    76: "diverged",
    124: "hung",
}


@dataclass(frozen=True)
class EventMessage:
    """What one event says, or several successive ones of a kind."""

    name: str
    time: str
    """Of the first one."""
    text: str
    is_issue: bool
    command: str | None = None
    """Shows the cause."""
    layers: dict[str, str] = field(default_factory=dict)
    """The largest gradient norms, of the first one."""
    details: tuple[str, ...] = ()
    """Texts of the first ones, if there are several."""
    num_more: int = 0
    """How many are not among the details."""


def event_messages(events: Iterable[Event], run: str) -> list[EventMessage]:
    """Returns what happened, oldest first; `run` is its folder as a command names it."""
    groups: list[list[Event]] = []
    open_groups: dict[str, list[Event]] = {}
    for event in events:
        name = name_of(event)
        if name not in _ROUTINE:
            open_groups.clear()
        group = open_groups.get(name, [])
        if group and name in _GROUPED and _is_near(group[-1], event):
            group.append(event)
        else:
            open_groups[name] = [event]
            groups.append(open_groups[name])
    return [_message(group, run) for group in groups]


def name_of(event: Event) -> str:
    """Returns the kind of an event, the same whether the run is old or new."""
    name = str(event.get("event", "unknown"))
    return _OLD_NAMES.get(name, name)


def exit_code_text(code: Any) -> str:
    """Returns an exit code with its meaning: 137 (SIGKILL)."""
    meaning = _EXIT_CODES.get(code) if isinstance(code, int) else None
    if isinstance(code, int) and 128 < code < 128 + signal.NSIG:
        try:
            meaning = signal.Signals(code - 128).name
        except ValueError:
            meaning = f"signal {code - 128}"
    return f"{_shown(code)} ({meaning})" if meaning else _shown(code)


def time_text(time: Any) -> str:
    """Returns a time in UTC without fractions of a second: 2026-11-26 12:17:53."""
    return str(time)[:19].replace("T", " ")


def _is_near(one: Event, next: Event) -> bool:
    """Returns whether two events of a kind form a group; nonfinite steps far apart do not."""
    steps = [event["step"] for event in (one, next) if isinstance(event.get("step"), int)]
    distance = max(steps, default=0) - min(steps, default=0)
    return name_of(one) != "nonfinite_step" or distance <= _NEAR_STEPS


def _message(group: Sequence[Event], run: str) -> EventMessage:
    first, is_one = group[0], len(group) == 1
    name, layers = name_of(first), first.get("layers")
    details = [] if is_one else [_text(event) for event in group[:_NUM_DETAILS]]
    return EventMessage(
        name=name,
        time=time_text(first.get("time", "unknown")),
        text=_text(first) if is_one else _group_text(group),
        is_issue=name in ISSUES,
        command=_command(first, run),
        layers={str(k): str(v) for k, v in layers.items()} if isinstance(layers, dict) else {},
        details=tuple(details),
        num_more=len(group) - len(details) if details else 0,
    )


def _text(event: Event) -> str:
    """Returns the text of one event; of an unknown kind its keys and values."""
    name = name_of(event)
    if name in ("changed", "environment_changed"):
        return _changes(event)
    values = defaultdict(lambda: "unknown", {key: _shown(value) for key, value in event.items()})
    if name in MESSAGES:
        values["rows"], values["settings"] = _sequences(event), _changes(event)
        values["exit_code"] = exit_code_text(event.get("exit_code", "unknown"))
        text = MESSAGES[name].format_map(values)
    else:
        rest = [f"{key} {value}" for key, value in values.items() if key not in ("time", "event")]
        text = ", ".join(rest)
    if name == "stopped" and "process" in event:
        text += f", received by process {_shown(event['process'])}"
    if name == "stopped" and event.get("saved") is False:
        text += "; there was no time to save"
    return shortened(text, _NUM_CHARACTERS)


def _changes(event: Event) -> str:
    """Returns the settings, or the parts of the environment, that have changed."""
    changes = event.get("settings", event.get("changes"))
    if not isinstance(changes, dict):
        return _shown(changes)
    pairs = [
        f"{name}: {_shown(pair[0])} → {_shown(pair[1])}"
        if isinstance(pair, list) and len(pair) == 2
        else f"{name}: {_shown(pair)}"
        for name, pair in changes.items()
    ]
    return "; ".join(pairs)


def _group_text(group: Sequence[Event]) -> str:
    name, num = name_of(group[0]), len(group)
    last = time_text(group[-1].get("time", "unknown"))
    steps = [event["step"] for event in group if isinstance(event.get("step"), int)]
    span = f"steps {min(steps):,} to {max(steps):,}" if steps else "steps unknown"
    if name == "restarted":
        codes = dict.fromkeys(exit_code_text(event.get("exit_code")) for event in group)
        return f"restarted {num:,} times until {last}, after exit codes {', '.join(codes)}"
    if name == "nonfinite_step":
        return f"{num:,} nonfinite steps, {span}, until {last}; their updates were not applied"
    if name == "saved":
        stalls = [e["stall_sec"] for e in group if isinstance(e.get("stall_sec"), int | float)]
        text = f"saved {num:,} checkpoints, {span}, until {last}"
        if stalls:
            text += f"; training paused for {sum(stalls) / len(stalls):.3g} s on average, "
            text += f"{max(stalls):.3g} s at most"
        return text
    failed = {"save_failed": "could not be saved", "copy_failed": "could not be copied"}
    return f"{num:,} checkpoints {failed.get(name, name)}, {span}, until {last}"


def _command(event: Event, run: str) -> str | None:
    name, rows = name_of(event), event.get("skipped_rows") or event.get("rows")
    if name in ("nonfinite_step", "rolled_back") and rows and _is_rows(rows):
        step = ("--step", str(event["step"])) if isinstance(event.get("step"), int) else ()
        return tessera("inspect", Path(run), "--first-row", str(rows[0][0]), *step)
    if name in ("nonfinite_step", "corrupted") and isinstance(event.get("step"), int):
        return tessera("inspect", Path(run), "--step", str(event["step"]))
    if name == "quarantined":
        return tessera("checkpoints", Path(run), "--verify")
    return None


def _sequences(event: Event) -> str:
    """Returns "sequences 3, 7 to 12" of the data order; old runs have whole batches only."""
    rows, name = event.get("skipped_rows", event.get("rows")), "sequences"
    if rows is None:
        items, name = event.get("passed_over", event.get("batch")), "batches"
        items = items if isinstance(items, list) else [items]
        numbers = [item for item in items if isinstance(item, int)]
        if len(numbers) == len(items):
            rows = merge_intervals((number, number + 1) for number in numbers)
    if not _is_rows(rows):
        return f"{name} unknown"
    ends = [(start, stop - 1) for start, stop in rows]
    return f"{name} {', '.join(f'{a:,}' if a == b else f'{a:,} to {b:,}' for a, b in ends)}"


def _is_rows(rows: Any) -> TypeGuard[list[tuple[int, int]]]:
    """Returns whether these are rows (start, stop); a damaged line may hold anything."""
    return isinstance(rows, list) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(x, int) for x in pair)
        for pair in rows
    )


def _shown(value: Any) -> str:
    render: dict[type, Callable[[Any], str]] = {
        bool: lambda shown: "yes" if shown else "no",
        int: lambda shown: f"{shown:,}",
        float: lambda shown: f"{shown:,.6g}",
        list: lambda shown: ", ".join(map(_shown, shown)) or "none",
        type(None): lambda shown: "none",
    }
    return render.get(type(value), str)(value)
