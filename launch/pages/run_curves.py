"""The curves of a run, a card each, with lines at its resumes and rollbacks."""

from collections.abc import Sequence
from typing import NamedTuple

from launch.pages.curves import ACCENT, Curve, Mark, Point, line_chart, thinned
from launch.pages.page import Html, card, cards, join, note, tag
from launch.reading.run_report import RunReport

_NUM_POINTS = 1000
_NUM_OTHERS = 24
_NUM_FOR_TAIL = 20
_SECOND, _MANY = "#c98a1f", "#c4ccd4"
_RESUMED, _ROLLED_BACK = "#8b95a1", "#cc5140"
_LEDGER = "goodput/"
"""The namespace that the page shows as the time ledger."""
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
    many: str = ""
    """Keys with this prefix are drawn pale in the background, such as one for each expert."""
    each: str = ""
    """Their name in the legend."""


_CHARTS = (
    _Chart("Loss", ("loss", "eval/loss"), "nats per token"),
    _Chart("Gradient norm", ("grad_norm",), "norm before clipping", log_y=True),
    _Chart("Learning rate", ("learning_rate",), "learning rate", from_zero=True),
    _Chart("Speed", ("tokens_per_second",), "tokens/s", from_zero=True),
    _Chart("Step time", ("step_sec", "data_wait_sec"), "seconds", from_zero=True),
    _Chart("Bits per byte", ("bits_per_byte", "eval/bits_per_byte"), "bits per byte"),
    _Chart("MFU", ("mfu_causal", "mfu_full"), "share of peak FLOP/s", from_zero=True),
    _Chart("Device memory", ("device_memory_bytes",), "peak bytes", from_zero=True),
    _Chart("Goodput", ("goodput/fraction",), "share of wall time", from_zero=True),
    _Chart(
        "MoE load per expert",
        ("moe/load_most", "moe/load_least"),
        "multiple of the mean",
        from_zero=True,
        many="moe/load/",
        each="each expert",
    ),
    _Chart("NSP loss", ("next_sentence/loss",), "nats"),
    _Chart("NSP accuracy", ("next_sentence/accuracy",), "share correct"),
)
_TAIL = _CHARTS[0]._replace(title="Loss, last half")
"""On the scale of the first steps it looks flat."""


def run_curves(report: RunReport) -> list[Html]:
    """Returns a card for each chart that has values."""
    steps = list(report.records)
    if not steps:
        return [note("No step is logged yet.")]
    marks = [mark for mark in _marks(report) if steps[0] <= mark.x <= steps[-1]]
    whole = (steps[0], steps[-1])
    shown = [_draw(chart, report, marks, whole) for chart in _CHARTS]
    if len(steps) >= _NUM_FOR_TAIL:
        shown.insert(1, _draw(_TAIL, report, marks, (steps[len(steps) // 2], steps[-1])))
    charts = [_Chart(name, (name,), name.rpartition("/")[2]) for name in _others(report)]
    shown += [_draw(chart, report, marks, whole) for chart in charts[:_NUM_OTHERS]]
    num_hidden = len(charts) - _NUM_OTHERS
    hidden = f"{num_hidden:,} more curves are in metrics.jsonl and TensorBoard"
    kinds = {"resumed": _RESUMED, "rolled back": _ROLLED_BACK}
    colors = {mark.color for mark in marks}
    legend = [_legend("¦", name, color) for name, color in kinds.items() if color in colors]
    return [
        note(join(legend)),
        cards(*shown),
        note(hidden if num_hidden > 0 else ""),
    ]


def _others(report: RunReport) -> list[str]:
    """Returns the namespaced keys without a chart in _CHARTS whose values change."""
    known = {name for chart in _CHARTS for name in chart.names}
    shown = (_LEDGER, *(chart.many for chart in _CHARTS if chart.many))
    names = [n for n in _names(report) if "/" in n and n not in known and not n.startswith(shown)]
    return sorted(name for name in names if len({y for _, y in report.curve(name)}) > 1)


def _names(report: RunReport) -> list[str]:
    """Returns all keys, in the order in which they were first logged."""
    return list(dict.fromkeys(name for record in report.records.values() for name in record))


def _draw(
    chart: _Chart, report: RunReport, marks: Sequence[Mark], span: tuple[int, int]
) -> Html | None:
    """Returns a chart of the steps of a span; None if it has no value."""
    curves, notes = [], []
    many = {n: _MANY for n in _names(report) if chart.many and n.startswith(chart.many)}
    for name, color in (*many.items(), *zip(chart.names, (ACCENT, _SECOND), strict=False)):
        points: list[Point] = [p for p in report.curve(name) if p[0] >= span[0]]
        num_values = sum(y is not None for _, y in points)
        if num_values:
            curves.append(Curve(name, thinned(points, _NUM_POINTS), color))
            notes += _omitted(name, len(points), num_values)
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
    below = [note(join(legend)) if legend else None, *map(note, notes)]
    return tag("div", card(chart.title, drawn, *below), style=_WHOLE)


def _omitted(name: str, num: int, num_values: int) -> list[str]:
    """Returns notes about the points of a curve that are not drawn."""
    notes = []
    if num > _NUM_POINTS:
        notes.append(
            f"{name}: of {num:,} points, the lowest and the highest of each "
            f"{-(-num // (_NUM_POINTS // 2)):,} successive ones are drawn"
        )
    if num > num_values:
        notes.append(f"{name}: not finite at {num - num_values:,} of {num:,} steps, drawn as gaps")
    return notes


def _legend(sign: str, name: str, color: str) -> Html:
    return tag(
        "span", tag("b", sign, style=f"color: {color}"), f" {name}", style="margin-right: 16px"
    )


def _marks(report: RunReport) -> list[Mark]:
    """Returns where the run was resumed or rolled back, each step once."""
    found = {}
    for event in report.events:
        step, kind = event.get("step"), event.get("event")
        if kind == "rolled_back" and isinstance(event.get("to_step"), int):
            to = event["to_step"]
            found[to] = Mark(to, f"rolled back from step {step} to step {to}", _ROLLED_BACK)
        elif kind == "resumed" and isinstance(step, int) and step not in found:
            found[step] = Mark(step, f"resumed at step {step:,}", _RESUMED)
    return [found[step] for step in sorted(found)]
