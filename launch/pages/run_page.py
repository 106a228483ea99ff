"""The page of a run: what `./tessera report RUN` writes, in the order in which a reader asks."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from launch.commands.report import RunReport, finite
from launch.pages.charts import Part, stacked_bar
from launch.pages.page import Html, card, cards, join, page, table, tag, tiles
from launch.pages.run_curves import run_curves
from launch.reading.event_messages import TROUBLES, Told, name_of, tell, time_words

_CLASSES = {
    "step": ("#3a9a6b", "training, which is what goodput counts"),
    "set_up": ("#7b8794", "starting processes, opening data, restoring"),
    "compile": ("#8a6fc9", "compiling the step and the evaluation"),
    "data_wait": ("#c98a1f", "steps that waited for their batch"),
    "save_stall": ("#3d86bd", "steps that waited for a checkpoint"),
    "evaluation": ("#259b9a", "evaluation and samples"),
    "lost_work": ("#cc5140", "work that was done again after a restart or a rollback"),
    "down_time": ("#9a6b52", "time between two starts"),
}
"""Colour and meaning of each class of the ledger, in the order of the bar."""
_NUM_TROUBLES, _NUM_ROWS = 20, 60
"""Of those at the beginning that are shown, and as many at the end."""
_NONE = "-"
_WHOLE = "break-inside: avoid"  # on paper


def run_page(report: RunReport) -> Html:
    """Returns the page of a run."""
    name = report.run.rstrip("/").rsplit("/", 1)[-1]
    told = tell(report.events, report.run)
    return page(
        f"{name}: run",
        tag("h1", name),
        tag("div", *_state(report), style="margin-bottom: 18px"),
        _tiles(report),
        *_section("Where the time went", _ledger(report)),
        *_section("Curves", run_curves(report)),
        *_section("Troubles", _troubles([row for row in told if row.kind == "trouble"])),
        *_section("Events", [tag("div", _events(told), class_="card")] if told else []),
        *_section("Checkpoints", [_checkpoints(report)]),
        *_section("Samples", _samples(report)),
        *_section("Settings", [_settings(report.settings)]),
        *_section("Environment", [_environment(report)]),
    )


def _section(title: str, content: Iterable[Html]) -> list[Html]:
    """Returns a heading and what is below it; nothing where there is nothing below it."""
    parts = list(content)
    return [tag("h2", title, style="break-after: avoid"), *parts] if parts else []


def _state(report: RunReport) -> list[Html]:
    status, way_on = report.status, report.status["next_step"]
    last = report.events[-1] if report.events else {}
    said = f"{_spaced(name_of(last))} at {time_words(last.get('time'))}" if last else "none"
    state = [tag("b", status["state"]), f"; last event: {said}"]
    written = f"{report.written:%Y-%m-%d %H:%M:%S}"
    return [
        tag("p", *state, class_="wide"),
        tag("p", *_summary(report), class_="wide"),
        tag("p", f"{report.run}, as it was on {written} (all times are UTC)", class_="soft wide"),
        *([tag("p", "To go on: ", tag("code", way_on), class_="wide")] if way_on else []),
    ]


def _summary(report: RunReport) -> list[Html]:
    """Returns how often there was trouble of each kind."""
    counts = Counter(name for name in map(name_of, report.events) if name in TROUBLES)
    words = ", ".join(f"{_spaced(name)} {num:,}" for name, num in counts.items())
    return [tag("span", "Troubles: "), tag("b" if words else "span", words or "none")]


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
        "h:min:s of its life": _clock(ledger.counted_sec) if ledger.seconds else _NONE,
    }
    return tiles(numbers)


def _ledger(report: RunReport) -> list[Html]:
    """Returns nothing for a run that keeps no ledger."""
    ledger = report.ledger.seconds
    if not ledger:
        return []
    total = report.ledger.counted_sec or 1.0
    kinds = [kind for kind in _CLASSES if kind in ledger]

    def part(kind: str) -> Part:
        shown = f"{_duration(ledger[kind])}, {ledger[kind] / total:.1%}"
        return Part(_spaced(kind), ledger[kind], shown, _CLASSES[kind][0])

    rows: list[Any] = [
        (
            join((_swatch(_CLASSES[kind][0]), tag("b", _spaced(kind)), f": {_CLASSES[kind][1]}")),
            tag("span", _duration(ledger[kind]), style="white-space: nowrap"),
            _seconds(ledger[kind]),
            f"{ledger[kind] / total:.1%}",
        )
        for kind in kinds
    ]
    rows.append(("all since the first start", _duration(total), _seconds(total), "100.0%"))
    words = f"{_moment_words(report)}, over all starts of the run"
    content = (
        stacked_bar([part(kind) for kind in kinds], title="seconds of the run's life by class"),
        tag("p", words, class_="soft"),
        table(("", "time", "seconds", "share"), rows),
        tag("p", _clock_words(report), class_="soft", style="margin-top: 12px"),
    )
    return [tag("div", *content, class_="card", style=_WHOLE)]


def _moment_words(report: RunReport) -> str:
    if report.ledger.passed_sec is None:
        return f"up to step {report.last_record['step']:,}"
    return "up to when the ledger was last written"


def _clock_words(report: RunReport) -> str:
    passed, apart = report.ledger.passed_sec, report.ledger.unaccounted_sec
    if passed is None or apart is None:
        return "The clock cannot be checked: the run has left no .ledger.json."
    return (
        f"Checked against the clock: from the first start to then {passed:,.1f} s have passed, and "
        f"{report.ledger.counted_sec:,.1f} s are accounted for "
        f"({abs(apart):.1f} s {'fewer' if apart > 0 else 'more'})."
    )


def _troubles(rows: Sequence[Told]) -> list[Html]:
    shown, num_hidden = _ends(rows, _NUM_TROUBLES)
    parts = [_trouble(row) for row in shown]
    if num_hidden:
        more = f"{num_hidden:,} in between are in events.jsonl"
        parts.insert(_NUM_TROUBLES, tag("p", more, class_="soft"))
    return parts


def _trouble(row: Told) -> Html:
    layers = [
        tag("div", tag("code", path, title=path), tag("span", norm), class_="chip")
        for path, norm in row.layers.items()
    ]
    return tag(
        "section",
        tag("h3", _spaced(row.name), tag("span", f"  {row.time}", class_="soft")),
        tag("p", row.words, class_="wide"),
        *([tag("p", tag("code", row.look), class_="wide")] if row.look else []),
        *([tag("p", "Gradient norms that stand out:", class_="soft")] if layers else []),
        *([tag("div", *layers, class_="chips")] if layers else []),
        *([_details(row)] if row.details else []),
        class_="card",
        style=f"{_WHOLE}; border-left: 4px solid {_CLASSES['lost_work'][0]}",
    )


def _details(row: Told) -> Html:
    more = f"and {row.num_more:,} more, which are in events.jsonl"
    return tag(
        "details",
        tag("summary", "one by one"),
        *(tag("p", words, class_="wide", style="margin: 0") for words in row.details),
        *([tag("p", more, class_="soft")] if row.num_more else []),
        style="margin-top: 12px",
    )


def _events(told: Sequence[Told]) -> Html:
    """Returns all that happened as a table, without the middle of a long one."""
    shown, num_hidden = _ends(told, _NUM_ROWS)
    rows: list[Any] = [
        (
            tag("span", row.time, style="white-space: nowrap"),
            tag("b" if row.kind == "trouble" else "span", _spaced(row.name)),
            _folded(row.words),
        )
        for row in shown
    ]
    if num_hidden:
        rows.insert(_NUM_ROWS, ("…", f"{num_hidden:,} more", "are in events.jsonl"))
    return table(("time", "event", "what it says"), rows)


def _folded(words: str, length: int = 160) -> Html:
    """Returns words of which only the beginning is seen until one asks for the rest."""
    if len(words) <= length:
        return tag("span", words)
    return tag("details", tag("summary", f"{words[:length]}…"), tag("span", words))


def _ends(rows: Sequence[Told], num: int) -> tuple[list[Told], int]:
    """Returns so many rows of both ends, and how many are between them."""
    if len(rows) <= 2 * num:
        return list(rows), 0
    return [*rows[:num], *rows[-num:]], len(rows) - 2 * num


def _checkpoints(report: RunReport) -> Html:
    rows = [
        (
            f"{saved.step:,}",
            _large(finite(saved.tokens)),
            _NONE if saved.bytes is None else f"{saved.bytes / 1e6:,.1f} MB",
            _rounded(saved.eval_loss, ".4f"),
            "pinned" if saved.is_pinned else "",
            saved.damage or "whole by the sizes of its files",
        )
        for saved in report.checkpoints
    ]
    aside = f"Not counted: {', '.join(report.set_aside)}" if report.set_aside else ""
    names = ("step", "tokens", "size", "validation loss", "", "")
    return tag(
        "div",
        table(names, rows) if rows else tag("p", "There is none yet.", class_="soft"),
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
    """Returns what the run was started on, and what the last start had instead."""
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
    """Returns an environment with the version of each package beside all else."""
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
    """Returns a number in a format, or a dash where there is none."""
    sound = finite(value)
    return _NONE if sound is None else format(sound, how)


def _seconds(seconds: float) -> float | int:
    """Returns as much of a number of seconds as a table has room for."""
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
    """Returns a time as a person says it: 12.3 s, 4 min 10 s, 3 h 5 min or 2 d 7 h."""
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
