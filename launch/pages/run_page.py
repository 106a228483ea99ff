"""The page of a run that `./tessera report RUN` writes, the most important first."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from launch.pages.charts import Part, stacked_bar
from launch.pages.page import Html, card, cards, join, page, table, tag, tiles
from launch.pages.run_curves import run_curves
from launch.reading.event_messages import EventMessage, event_messages, name_of, time_text
from launch.reading.run_report import RunReport, finite
from train.record.events import ISSUES

_ISSUE_COLOR = "#cc5140"
_CLASSES = {
    "step": ("training steps", "#3a9a6b", "the share of these is the goodput"),
    "set_up": ("startup", "#7b8794", "starting processes, opening data, restoring a checkpoint"),
    "compile": ("compilation", "#8a6fc9", "compiling the training step and the evaluation"),
    "data_wait": ("data wait", "#c98a1f", "steps that waited for their batch"),
    "save_stall": ("checkpoint stall", "#3d86bd", "steps that waited for a checkpoint to be saved"),
    "evaluation": ("evaluation", "#259b9a", "evaluating and sampling"),
    "lost_work": ("lost steps", _ISSUE_COLOR, "steps repeated after a restart or a rollback"),
    "down_time": ("downtime", "#9a6b52", "between the end of one start and the next"),
}
"""Name, colour and meaning of each class of the time ledger, in the order of the bar."""
_NUM_ISSUES, _NUM_EVENTS = 20, 60
"""So many of the first are shown, and as many of the last."""
_NONE = "-"
_WHOLE = "break-inside: avoid"  # on paper


def run_page(report: RunReport) -> Html:
    """Returns the page of a run."""
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
        *_section("Events", [tag("div", _events(messages), class_="card")] if messages else []),
        *_section("Checkpoints", [_checkpoints(report)]),
        *_section("Samples", _samples(report)),
        *_section("Settings", [_settings(report.settings)]),
        *_section("Environment", [_environment(report)]),
    )


def _section(title: str, content: Iterable[Html]) -> list[Html]:
    """Returns a heading and its content; nothing if there is no content."""
    parts = list(content)
    return [tag("h2", title, style="break-after: avoid"), *parts] if parts else []


def _state(report: RunReport) -> list[Html]:
    status, next_step = report.status, report.status["next_step"]
    last = report.events[-1] if report.events else {}
    event = f"{_spaced(name_of(last))} at {time_text(last.get('time'))}" if last else "none"
    state = [tag("b", status["state"]), f"; last event: {event}"]
    written = f"{report.written:%Y-%m-%d %H:%M:%S}"
    return [
        tag("p", *state, class_="wide"),
        tag("p", *_summary(report), class_="wide"),
        tag("p", f"{report.run}, read at {written} (all times are UTC)", class_="soft wide"),
        *([tag("p", "Next step: ", tag("code", next_step), class_="wide")] if next_step else []),
    ]


def _summary(report: RunReport) -> list[Html]:
    """Returns the number of issues of each kind."""
    counts = Counter(name for name in map(name_of, report.events) if name in ISSUES)
    issues = ", ".join(f"{_spaced(name)} ({num:,})" for name, num in counts.items())
    return [tag("span", "Issues: "), tag("b" if issues else "span", issues or "none")]


def _tiles(report: RunReport) -> Html:
    record, ledger = report.last_record, report.ledger
    evaluations = [loss for _, loss in report.curve("eval/loss") if loss is not None]
    speed = finite(record.get("tokens_per_second"))
    numbers = {
        f"of {report.status['num_steps']:,} steps": f"{report.status['step']:,}",
        "loss": _rounded(record.get("loss"), ".4f"),
        "validation loss": _rounded(evaluations[-1] if evaluations else None, ".4f"),
        "tokens": _large(finite(record.get("tokens"))),
        "tokens/s": _large(speed),
        "goodput": _rounded(report.goodput, ".1%"),
        "wall time": _clock(ledger.counted_sec) if ledger.seconds else _NONE,
    }
    return tiles(numbers)


def _ledger(report: RunReport) -> list[Html]:
    """Returns where the time went; nothing for a run that keeps no ledger."""
    ledger = report.ledger.seconds
    if not ledger:
        return []
    total = report.ledger.counted_sec or 1.0
    kinds = [kind for kind in _CLASSES if kind in ledger]

    def part(kind: str) -> Part:
        shown = f"{_duration(ledger[kind])}, {ledger[kind] / total:.1%}"
        return Part(_CLASSES[kind][0], ledger[kind], shown, _CLASSES[kind][1])

    rows: list[Any] = [
        (
            join((_swatch(color), tag("b", name), f": {meaning}")),
            tag("span", _duration(ledger[kind]), style="white-space: nowrap"),
            _seconds(ledger[kind]),
            f"{ledger[kind] / total:.1%}",
        )
        for kind in kinds
        for name, color, meaning in [_CLASSES[kind]]
    ]
    rows.append(("total since the first start", _duration(total), _seconds(total), "100.0%"))
    content = (
        stacked_bar([part(kind) for kind in kinds], title="wall time by class"),
        tag("p", f"{_moment(report)}, all starts of the run together", class_="soft"),
        table(("", "time", "seconds", "share"), rows),
        tag("p", _clock_check(report), class_="soft", style="margin-top: 12px"),
    )
    return [tag("div", *content, class_="card", style=_WHOLE)]


def _moment(report: RunReport) -> str:
    if report.ledger.passed_sec is None:
        return f"up to step {report.last_record['step']:,}"
    return "up to the last update of .ledger.json"


def _clock_check(report: RunReport) -> str:
    passed, apart = report.ledger.passed_sec, report.ledger.unaccounted_sec
    if passed is None or apart is None:
        return "Not checked against the clock: the run has no .ledger.json."
    return (
        f"Checked against the clock: {passed:,.1f} s passed since the first start, and the classes "
        f"sum to {report.ledger.counted_sec:,.1f} s "
        f"({abs(apart):.1f} s {'less' if apart > 0 else 'more'})."
    )


def _issues(messages: Sequence[EventMessage]) -> list[Html]:
    shown, num_hidden = _ends(messages, _NUM_ISSUES)
    parts = [_issue(message) for message in shown]
    if num_hidden:
        more = f"{num_hidden:,} in between are in events.jsonl"
        parts.insert(_NUM_ISSUES, tag("p", more, class_="soft"))
    return parts


def _issue(message: EventMessage) -> Html:
    layers = [
        tag("div", tag("code", path, title=path), tag("span", norm), class_="chip")
        for path, norm in message.layers.items()
    ]
    command = ["Inspect the cause: ", tag("code", message.command)] if message.command else []
    return tag(
        "section",
        tag("h3", _spaced(message.name), tag("span", f"  {message.time}", class_="soft")),
        tag("p", message.text, class_="wide"),
        *([tag("p", *command, class_="wide")] if command else []),
        *([tag("p", "Largest gradient norms:", class_="soft")] if layers else []),
        *([tag("div", *layers, class_="chips")] if layers else []),
        *([_details(message)] if message.details else []),
        class_="card",
        style=f"{_WHOLE}; border-left: 4px solid {_ISSUE_COLOR}",
    )


def _details(message: EventMessage) -> Html:
    more = f"and {message.num_more:,} more, which are in events.jsonl"
    return tag(
        "details",
        tag("summary", "details"),
        *(tag("p", text, class_="wide", style="margin: 0") for text in message.details),
        *([tag("p", more, class_="soft")] if message.num_more else []),
        style="margin-top: 12px",
    )


def _events(messages: Sequence[EventMessage]) -> Html:
    """Returns all events as a table, without the middle of a long one."""
    shown, num_hidden = _ends(messages, _NUM_EVENTS)
    rows: list[Any] = [
        (
            tag("span", message.time, style="white-space: nowrap"),
            tag("b" if message.is_issue else "span", _spaced(message.name)),
            _folded(message.text),
        )
        for message in shown
    ]
    if num_hidden:
        rows.insert(_NUM_EVENTS, ("…", f"{num_hidden:,} more", "are in events.jsonl"))
    return table(("time", "event", "message"), rows)


def _folded(text: str, length: int = 160) -> Html:
    """Returns a text that shows only its beginning until it is opened."""
    if len(text) <= length:
        return tag("span", text)
    return tag("details", tag("summary", f"{text[:length]}…"), tag("span", text))


def _ends(messages: Sequence[EventMessage], num: int) -> tuple[list[EventMessage], int]:
    """Returns so many messages of both ends, and how many are between them."""
    if len(messages) <= 2 * num:
        return list(messages), 0
    return [*messages[:num], *messages[-num:]], len(messages) - 2 * num


def _checkpoints(report: RunReport) -> Html:
    rows = [
        (
            f"{saved.step:,}",
            _large(finite(saved.tokens)),
            _NONE if saved.bytes is None else f"{saved.bytes / 1e6:,.1f} MB",
            _rounded(saved.eval_loss, ".4f"),
            "yes" if saved.is_pinned else "",
            saved.damage or "size check passed",
        )
        for saved in report.checkpoints
    ]
    aside = f"Not counted as checkpoints: {', '.join(report.set_aside)}" if report.set_aside else ""
    names = ("step", "tokens", "size", "validation loss", "pinned", "check")
    return tag(
        "div",
        table(names, rows) if rows else tag("p", "No checkpoint yet.", class_="soft"),
        *([tag("p", aside, class_="soft wide", style="margin-top: 12px")] if aside else []),
        class_="card",
    )


def _samples(report: RunReport) -> list[Html]:
    return [
        tag("section", tag("h3", f"step {step:,}"), tag("pre", text), class_="card")
        for step, text in report.samples.items()
    ]


def _settings(settings: dict[str, Any]) -> Html:
    groups = itertools.groupby(settings.items(), lambda item: item[0].partition(".")[0])
    return cards(
        *(
            card(
                group,
                table(("", ""), [(name.partition(".")[2], _value(v)) for name, v in items]),
            )
            for group, items in groups
        )
    )


def _environment(report: RunReport) -> Html:
    """Returns versions, devices and hosts of the first start, and of the last where they differ."""
    first, last = map(_with_packages, report.environments)
    if first == last:
        rows = [(_spaced(name), _value(value)) for name, value in last.items()]
        return tag("div", table(("", ""), rows), class_="card")
    rows = [
        (_spaced(name), _value(first.get(name)), _value(last.get(name)))
        for name in dict.fromkeys((*first, *last))
    ]
    return tag("div", table(("", "first start", "last start"), rows), class_="card")


def _with_packages(environment: dict[str, Any]) -> dict[str, Any]:
    """Returns an environment with its package versions among its other entries."""
    rest = {name: value for name, value in environment.items() if name != "packages"}
    return {**rest, **environment.get("packages", {})}


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _value(value: Any) -> Html:
    return tag("code", value if isinstance(value, str) else json.dumps(value))


def _swatch(color: str) -> Html:
    # A border, for browsers print no backgrounds.
    return tag(
        "span",
        style=f"display: inline-block; border: 5px solid {color}; border-radius: 3px; "
        "margin-right: 8px",
    )


def _rounded(value: Any, how: str) -> str:
    """Returns a number in a format; a dash for None and what is not finite."""
    sound = finite(value)
    return _NONE if sound is None else format(sound, how)


def _seconds(seconds: float) -> float | int:
    """Returns seconds rounded for a table."""
    return round(seconds) if seconds >= 100 else round(seconds, 1)


def _clock(seconds: float) -> str:
    """Returns a time as 27:14:03."""
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes // 60:,}:{minutes % 60:02}:{left:02}"


def _large(value: float | None) -> str:
    """Returns a number in at most seven characters, such as 7,671 or 12.3 M."""
    if value is None:
        return _NONE
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.2f} {letter}"
    return f"{value:,.0f}"


def _duration(seconds: float) -> str:
    """Returns a time in one or two units: 12.3 s, 4 min 10 s, 3 h 5 min or 2 d 7 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    whole = round(seconds)
    first = next(i for i, (_, size) in enumerate(units) if whole >= size)
    parts = []
    for name, size in units[first : first + 2]:
        parts.append(f"{whole // size} {name}")
        whole %= size
    return " ".join(parts)
