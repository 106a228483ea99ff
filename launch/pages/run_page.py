"""The page of a run that `./tessera report RUN` writes, the most important first."""

import datetime
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from launch.pages.page import Html, card, cards, chips, join, note, page, table, tag, tiles
from launch.pages.run_curves import run_curves
from launch.reading.event_messages import EventMessage, event_messages, name_of, time_text
from launch.reading.run_report import RunReport, finite
from train.record.events import ISSUES

_CLASSES = {
    "step": ("training steps", "#3a9a6b", "the share of these is the goodput"),
    "set_up": ("startup", "#7b8794", "starting processes, opening data, restoring a checkpoint"),
    "compile": ("compilation", "#8a6fc9", "compiling the training step and the evaluation"),
    "data_wait": ("data wait", "#c98a1f", "steps that waited for their batch"),
    "save_stall": ("checkpoint stall", "#3d86bd", "steps that waited for a checkpoint to be saved"),
    "evaluation": ("evaluation", "#259b9a", "evaluating and sampling"),
    "lost_work": ("lost steps", "#cc5140", "steps repeated after a restart or a rollback"),
    "down_time": ("downtime", "#9a6b52", "between the end of one start and the next"),
}
"""Name, colour and meaning of each class of the time ledger, in the order of the bar."""
_NUM_ISSUES, _NUM_EVENTS = 20, 60
"""So many of the first are shown, and as many of the last."""
_NONE = "-"


def run_page(report: RunReport) -> Html:
    name = report.run.rstrip("/").rsplit("/", 1)[-1]
    messages = event_messages(report.events, report.run)
    return page(
        f"{name}: run",
        tag("h1", name),
        tag("div", *_state(report), style="margin-bottom: 18px"),
        _tiles(report),
        *_section("Where the time went", _ledger(report)),
        *_section("Curves", run_curves(report)),
        *_section("Issues", _issues([message for message in messages if message.is_issue])),
        *_section("Events", _events(messages)),
        *_section("Checkpoints", [_checkpoints(report)]),
        *_section("Samples", _samples(report)),
        *_section("Settings", [_settings(report.settings)]),
        *_section("Environment", [_environment(report)]),
    )


def _section(title: str, content: Sequence[Html | None]) -> list[Html | None]:
    """Returns a heading and its content; nothing if there is no content."""
    return [tag("h2", title), *content] if content else []


def _state(report: RunReport) -> list[Html | None]:
    status, next_step = report.status, report.status["next_step"]
    last = report.events[-1] if report.events else {}
    event = f"{_spaced(name_of(last))} at {time_text(last.get('time'))}" if last else "none"
    counts = Counter(name for name in map(name_of, report.events) if name in ISSUES)
    issues = ", ".join(f"{_spaced(name)} ({num:,})" for name, num in counts.items())
    written = f"{report.written:%Y-%m-%d %H:%M:%S}"
    return [
        tag("p", tag("b", status["state"]), f"; last event: {event}", class_="wide"),
        tag("p", "Issues: ", tag("b", issues) if issues else "none", class_="wide"),
        note(f"{report.run}, read at {written} (all times are UTC)"),
        tag("p", "Next step: ", tag("code", next_step), class_="wide") if next_step else None,
    ]


def _tiles(report: RunReport) -> Html:
    record, ledger = report.last_record, report.ledger
    evaluations = [loss for _, loss in report.curve("eval/loss") if loss is not None]
    numbers = {
        f"of {report.status['num_steps']:,} steps": f"{report.status['step']:,}",
        "loss": _rounded(record.get("loss"), ".4f"),
        "validation loss": _rounded(evaluations[-1] if evaluations else None, ".4f"),
        "tokens": _large(record.get("tokens")),
        "tokens/s": _large(record.get("tokens_per_second")),
        "goodput": _rounded(report.goodput, ".1%"),
        "wall time": _clock(ledger.counted_sec) if ledger.seconds else _NONE,
    }
    return tiles(numbers)


def _ledger(report: RunReport) -> list[Html | None]:
    """Returns where the time went; nothing for a run that keeps no ledger."""
    seconds, passed = report.ledger.seconds, report.ledger.passed_sec
    if not seconds:
        return []
    total = report.ledger.counted_sec or 1.0
    parts: list[Html] = []
    rows: list[Any] = []
    for kind, (name, color, meaning) in _CLASSES.items():
        if kind not in seconds:
            continue
        width = seconds[kind] / total
        share = f"{width:.1%}"
        style = f"background: {color}; width: {width:.2%}"
        label = f"{width:.0%}" if width >= 0.05 else ""  # a smaller part has no room for it
        parts.append(tag("b", label, title=f"{name}: {share}", style=style))
        swatch = tag("span", style=f"background: {color}", class_="swatch")
        meant = join((swatch, tag("b", name), f": {meaning}"))
        rows.append((meant, _clock(seconds[kind]), round(seconds[kind], 1), share))
    rows.append(("total since the first start", _clock(total), round(total, 1), "100.0%"))
    if passed is None:
        moment = f"up to step {report.last_record['step']:,}"
        check = "Not checked against the clock: the run has no .ledger.json."
    else:
        moment = "up to the last update of .ledger.json"
        apart = passed - report.ledger.counted_sec
        check = (
            f"Checked against the clock: {passed:,.1f} s passed since the first start, and the "
            f"classes sum to {report.ledger.counted_sec:,.1f} s "
            f"({abs(apart):.1f} s {'less' if apart > 0 else 'more'})."
        )
    content = (
        tag("div", *parts, class_="stack"),
        note(f"{moment}, all starts of the run together"),
        table(("", "time", "seconds", "share"), rows),
        note(check),
    )
    return [tag("div", *content, class_="card")]


def _issues(messages: Sequence[EventMessage]) -> list[Html]:
    shown, num_hidden = _ends(messages, _NUM_ISSUES)
    parts = [_issue(message) for message in shown]
    if num_hidden:
        parts.insert(_NUM_ISSUES, note(f"{num_hidden:,} in between are in events.jsonl"))
    return parts


def _issue(message: EventMessage) -> Html:
    layers = [(path, norm, path) for path, norm in message.layers.items()]
    command = tag("code", message.command) if message.command else None
    return tag(
        "section",
        tag("h3", _spaced(message.name), tag("span", f"  {message.time}", class_="soft")),
        tag("p", message.text, class_="wide"),
        tag("p", "Inspect the cause: ", command, class_="wide") if command else None,
        join((note("Largest gradient norms:"), chips(layers))) if layers else None,
        _details(message) if message.details else None,
        class_="card issue",
    )


def _details(message: EventMessage) -> Html:
    more = f"and {message.num_more:,} more, which are in events.jsonl"
    lines = "\n".join([*message.details, *([more] if message.num_more else [])])
    return tag("details", tag("summary", "details"), tag("pre", lines), style="margin-top: 12px")


def _events(messages: Sequence[EventMessage]) -> list[Html]:
    """Returns all events as a table, without the middle of a long one."""
    shown, num_hidden = _ends(messages, _NUM_EVENTS)
    rows: list[Any] = [
        (
            tag("span", message.time, style="white-space: nowrap"),
            tag("b" if message.is_issue else "span", _spaced(message.name)),
            message.text,
        )
        for message in shown
    ]
    if num_hidden:
        rows.insert(_NUM_EVENTS, ("…", f"{num_hidden:,} more", "are in events.jsonl"))
    names = ("time", "event", "message")
    return [tag("div", table(names, rows), class_="card")] if messages else []


def _ends(messages: Sequence[EventMessage], num: int) -> tuple[list[EventMessage], int]:
    """Returns so many messages of both ends, and how many are between them."""
    if len(messages) <= 2 * num:
        return list(messages), 0
    return [*messages[:num], *messages[-num:]], len(messages) - 2 * num


def _checkpoints(report: RunReport) -> Html:
    rows = [
        (
            f"{saved.step:,}",
            _large(saved.tokens),
            _NONE if saved.bytes is None else f"{saved.bytes / 1e6:,.1f} MB",
            _rounded(saved.eval_loss, ".4f"),
            "yes" if saved.is_pinned else "",
            saved.damage or "size check passed",
        )
        for saved in report.checkpoints
    ]
    names = ("step", "tokens", "size", "validation loss", "pinned", "check")
    aside = ", ".join(report.set_aside)
    return tag(
        "div",
        table(names, rows) if rows else note("No checkpoint yet."),
        note(f"Not counted as checkpoints: {aside}") if aside else None,
        class_="card",
    )


def _samples(report: RunReport) -> list[Html]:
    return [card(f"step {step:,}", tag("pre", text)) for step, text in report.samples.items()]


def _settings(settings: dict[str, Any]) -> Html:
    groups = {}
    for name, value in settings.items():
        group, _, field = name.partition(".")
        groups.setdefault(group, []).append((field, _value(value)))
    return cards(*(card(group, table(("", ""), rows)) for group, rows in groups.items()))


def _environment(report: RunReport) -> Html:
    """Returns versions, devices and hosts of the first start, and of the last where they differ."""
    first, last = ({**found, **found.get("packages", {})} for found in report.environments)
    names = [name for name in dict.fromkeys((*first, *last)) if name != "packages"]
    starts = [first] if first == last else [first, last]
    rows = [(_spaced(name), *(_value(start.get(name)) for start in starts)) for name in names]
    heads = ("", "first start", "last start") if len(starts) > 1 else ("", "")
    return tag("div", table(heads, rows), class_="card")


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _value(value: Any) -> Html:
    return tag("code", value if isinstance(value, str) else json.dumps(value))


def _rounded(value: Any, how: str) -> str:
    """Returns a number in a format; a dash for None and what is not finite."""
    sound = finite(value)
    return _NONE if sound is None else format(sound, how)


def _clock(seconds: float) -> str:
    """Returns a time as 3:14:03, or 1 day, 3:14:03."""
    return str(datetime.timedelta(seconds=round(seconds)))


def _large(value: Any) -> str:
    """Returns a number in at most seven characters, such as 7,671 or 12.3 M."""
    sound = finite(value)
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if sound is not None and abs(sound) >= size:
            return f"{sound / size:.2f} {letter}"
    return _rounded(value, ",.0f")
