"""The curves of a run, a card each, with lines where it was resumed or went back."""

from collections.abc import Sequence
from typing import NamedTuple

from launch.commands.report import RunReport
from launch.pages.curves import ACCENT, Curve, Mark, Point, line_chart, thinned
from launch.pages.page import Html, card, cards, tag

_NUM_POINTS = 1000
_NUM_OTHERS = 24
_NUM_FOR_TAIL = 20
_SECOND, _MANY = "#c98a1f", "#c4ccd4"
_RESUMED, _WENT_BACK = "#8b95a1", "#cc5140"
_OWN = "goodput/"
"""The namespace that the page shows in another way."""
_WHOLE = (
    "display: grid; min-width: 0; break-inside: avoid"  # as tall as its row; on paper one piece
)


class _Chart(NamedTuple):
    title: str
    names: Sequence[str]
    """Keys of metrics.jsonl; those that the run does not have are left out."""
    y_title: str
    log_y: bool = False
    from_zero: bool = False
    many: str = "\0"
    """Keys that begin with this are drawn pale and behind, one for each expert or the like."""
    each: str = ""
    """What they are called."""


_CHARTS = (
    _Chart("Loss", ("loss", "eval/loss"), "nats per token"),
    _Chart("Gradient norm", ("grad_norm",), "norm before clipping", log_y=True),
    _Chart("Learning rate", ("learning_rate",), "learning rate", from_zero=True),
    _Chart("Speed", ("tokens_per_second",), "tokens/s", from_zero=True),
    _Chart("Time of a step", ("step_sec", "data_wait_sec"), "seconds", from_zero=True),
    _Chart("Bits per byte", ("bits_per_byte", "eval/bits_per_byte"), "bits per byte"),
    _Chart("Use of the device", ("mfu_causal", "mfu_full"), "part of its peak", from_zero=True),
    _Chart("Device memory", ("device_memory_bytes",), "bytes at its peak", from_zero=True),
    _Chart("Goodput", ("goodput/fraction",), "part of the run's life", from_zero=True),
    _Chart(
        "Tokens of an expert",
        ("moe/load_most", "moe/load_least"),
        "times the mean",
        from_zero=True,
        many="moe/load/",
        each="each expert",
    ),
    _Chart("Next sentence, loss", ("next_sentence/loss",), "nats"),
    _Chart("Next sentence, right answers", ("next_sentence/accuracy",), "part of all"),
)
_TAIL = _CHARTS[0]._replace(title="Loss, last half")
"""Its changes are dwarfed by those of the first steps."""


def run_curves(report: RunReport) -> list[Html]:
    """Returns a card for each chart that has something to show."""
    steps = list(report.records)
    if not steps:
        return [tag("p", "No step was logged yet.", class_="soft")]
    marks = [mark for mark in _marks(report) if steps[0] <= mark.x <= steps[-1]]
    whole = (steps[0], steps[-1])
    shown = [_draw(chart, report, marks, whole) for chart in _CHARTS]
    if len(steps) >= _NUM_FOR_TAIL:
        shown.insert(1, _draw(_TAIL, report, marks, (steps[len(steps) // 2], steps[-1])))
    charts = [_Chart(name, (name,), name.rpartition("/")[2]) for name in _others(report)]
    shown += [_draw(chart, report, marks, whole) for chart in charts[:_NUM_OTHERS]]
    num_hidden = len(charts) - _NUM_OTHERS
    words = f"{num_hidden:,} more curves are in metrics.jsonl and TensorBoard"
    return [
        *_marks_legend(marks),
        cards(*(drawn for drawn in shown if drawn is not None)),
        *([tag("p", words, class_="soft")] if num_hidden > 0 else []),
    ]


def _others(report: RunReport) -> list[str]:
    """Returns the namespaced keys that no chart of ours has, and whose values change."""
    known = {name for chart in _CHARTS for name in chart.names}
    shown = (_OWN, *(chart.many for chart in _CHARTS))
    first: dict[str, object] = {}
    changing = set()
    for record in report.records.values():
        for name, value in record.items():
            is_other = "/" in name and name not in known and not name.startswith(shown)
            if is_other and first.setdefault(name, value) != value:
                changing.add(name)
    return sorted(changing)


def _names(report: RunReport) -> list[str]:
    """Returns all keys, in the order in which they were first logged."""
    return list(dict.fromkeys(name for record in report.records.values() for name in record))


def _draw(
    chart: _Chart, report: RunReport, marks: Sequence[Mark], span: tuple[int, int]
) -> Html | None:
    """Returns a chart of the steps of a span, or None where there is no value to draw."""
    curves, words = [], []
    many = {name: _MANY for name in _names(report) if name.startswith(chart.many)}
    for name, color in (*many.items(), *zip(chart.names, (ACCENT, _SECOND), strict=False)):
        points: list[Point] = [p for p in report.curve(name) if p[0] >= span[0]]
        num_values = sum(y is not None for _, y in points)
        if num_values:
            curves.append(Curve(name, thinned(points, _NUM_POINTS), color))
            words += _omitted(name, len(points), num_values)
    if not curves:
        return None
    drawn = line_chart(
        curves,
        x_title="step",
        y_title=chart.y_title,
        marks=[mark for mark in marks if mark.x >= span[0]],
        span=span,
        log_y=chart.log_y and all(y is None or y > 0 for c in curves for _, y in c.points),
        from_zero=chart.from_zero,
    )
    named = [c for c in curves if c.name not in many]
    legend = [_legend("—", c.name, c.color) for c in named] if len(curves) > 1 else []
    legend += [_legend("—", chart.each, _MANY)] if many else []
    said = [tag("p", *legend, class_="soft")] if legend else []
    said += [tag("p", word, class_="soft") for word in words]
    return tag("div", card(chart.title, drawn, *said), style=_WHOLE)


def _omitted(name: str, num: int, num_values: int) -> list[str]:
    """Says what of a curve is not drawn."""
    words = []
    if num > _NUM_POINTS:
        words.append(
            f"{name}: {num:,} points, drawn as the lowest and the highest of each "
            f"{-(-num // (_NUM_POINTS // 2)):,} in a row"
        )
    if num > num_values:
        words.append(f"{name}: not finite, and a gap, at {num - num_values:,} of {num:,} steps")
    return words


def _marks_legend(marks: Sequence[Mark]) -> list[Html]:
    legend = [
        _legend("¦", words, color)
        for words, color in (("resumed", _RESUMED), ("went back", _WENT_BACK))
        if any(mark.color == color for mark in marks)
    ]
    return [tag("p", *legend, class_="soft")] if legend else []


def _legend(sign: str, name: str, color: str) -> Html:
    """Returns a sign in its colour, and what it stands for."""
    return tag(
        "span", tag("b", sign, style=f"color: {color}"), f" {name}", style="margin-right: 16px"
    )


def _marks(report: RunReport) -> list[Mark]:
    """Returns where the run was resumed or went back, each step once."""
    found = {}
    for event in report.events:
        step, kind = event.get("step"), event.get("event")
        if kind == "rolled_back" and isinstance(event.get("to_step"), int):
            back = event["to_step"]
            found[back] = Mark(back, f"went back from step {step} to step {back}", _WENT_BACK)
        elif kind == "resumed" and isinstance(step, int) and step not in found:
            found[step] = Mark(step, f"resumed at step {step:,}", _RESUMED)
    return [found[step] for step in sorted(found)]
