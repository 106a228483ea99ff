"""Charts as SVG within a page; the colours are those of the page, light or dark."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from launch.pages.page import Html, number, tag
from launch.visible import shortened

_WIDTH, _HEIGHT = 520, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 42  # of the frame within it
_ROW, _NAME_WIDTH, _VALUE_WIDTH = 22, 200, 120
_NAME_CHARACTERS = 30


class Bar(NamedTuple):
    """One bar of a chart."""

    name: str
    value: int
    shown: str
    """What stands beside a bar that lies, or appears where one points at a bar that stands."""


def column_chart(bars: Sequence[Bar], *, x_title: str, y_title: str) -> Html:
    """Returns a chart of standing bars, with a scale of round numbers on the left."""
    step = _round_step(max((bar.value for bar in bars), default=1) / 4)
    top = max(1, math.ceil(max((bar.value for bar in bars), default=1) / step)) * step
    width = (_WIDTH - _LEFT - _RIGHT) / max(len(bars), 1)
    height = _HEIGHT - _TOP - _BOTTOM
    marks = []
    for value in range(0, top + 1, step):
        y = _TOP + height * (1 - value / top)
        marks += [_line(_LEFT, y, _WIDTH - _RIGHT, y, "grid"), _text(_LEFT - 8, y + 4, value)]
    every = math.ceil(len(bars) * 44 / (_WIDTH - _LEFT - _RIGHT))  # so that names do not touch
    for i, bar in enumerate(bars):
        x, tall = _LEFT + i * width, height * bar.value / top
        marks.append(
            _box(x + width * 0.08, _TOP + height - tall, width * 0.84, tall, "bar", bar.shown)
        )
        if i % every == 0:
            name = _text(x + width / 2, _HEIGHT - _BOTTOM + 16, bar.name, anchor="middle")
            marks.append(name)
    marks.append(_line(_LEFT, _TOP + height, _WIDTH - _RIGHT, _TOP + height, "axis"))
    return _chart(marks, f"{y_title} by {x_title}", x_title=x_title, y_title=y_title)


def bar_chart(bars: Sequence[Bar], *, title: str) -> Html:
    """Returns a chart of lying bars, each with its name before it and what is shown after it."""
    most = max((bar.value for bar in bars), default=1) or 1
    width, room = 2 * _WIDTH, 2 * _WIDTH - _NAME_WIDTH - _VALUE_WIDTH
    marks = []
    for i, bar in enumerate(bars):
        y, long = i * _ROW, max(room * bar.value / most, 1)
        name = shortened(bar.name, _NAME_CHARACTERS)
        marks += [
            tag("g", tag("title", bar.name), _text(_NAME_WIDTH - 10, y + 15, name)),
            _box(_NAME_WIDTH, y + 4, room, _ROW - 8, "track"),
            _box(_NAME_WIDTH, y + 4, long, _ROW - 8, "bar", f"{bar.name}: {bar.shown}"),
            _text(width, y + 15, bar.shown, class_="note"),
        ]
    return _svg(marks, title, width, len(bars) * _ROW, class_="list")


def log_log_plot(points: Sequence[tuple[float, float]], *, x_title: str, y_title: str) -> Html:
    """Returns a curve on two logarithmic axes; all coordinates must be above zero."""
    x_top, y_top = (max(1.02 * math.log10(max(axis)), 1) for axis in zip(*points, strict=True))
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def across(x: float) -> float:
        return _LEFT + width * math.log10(x) / x_top

    def down(y: float) -> float:
        return _TOP + height * (1 - math.log10(y) / y_top)

    marks = []
    for power in range(int(x_top) + 1):
        x = across(10**power)
        marks += [
            _line(x, _TOP, x, _TOP + height, "grid"),
            _text(x, _HEIGHT - _BOTTOM + 16, _short(10**power), anchor="middle"),
        ]
    for power in range(int(y_top) + 1):
        y = down(10**power)
        marks += [
            _line(_LEFT, y, _WIDTH - _RIGHT, y, "grid"),
            _text(_LEFT - 8, y + 4, _short(10**power)),
        ]
    curve = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)
    marks.append(tag("polyline", points=curve, class_="curve"))
    title = f"{y_title} by {x_title}, both axes logarithmic"
    return _chart(marks, title, x_title=x_title, y_title=y_title)


def _chart(marks: Sequence[Html], title: str, *, x_title: str, y_title: str) -> Html:
    middle = _TOP + (_HEIGHT - _TOP - _BOTTOM) / 2
    titles = [
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, x_title, anchor="middle", class_="note"),
        _text(
            12,
            middle,
            y_title,
            anchor="middle",
            class_="note",
            transform=f"rotate(-90 12 {middle})",
        ),
    ]
    return _svg([*marks, *titles], title, _WIDTH, _HEIGHT)


def _svg(
    marks: Sequence[Html], title: str, width: int, height: int, class_: str | None = None
) -> Html:
    frame = f"0 0 {width} {height}"
    return tag("svg", *marks, viewBox=frame, role="img", aria_label=title, class_=class_)


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    return tag(
        "line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", class_=class_
    )


def _box(x: float, y: float, width: float, height: float, class_: str, said: str = "") -> Html:
    return tag(
        "rect",
        *([tag("title", said)] if said else []),
        x=f"{x:.1f}",
        y=f"{y:.1f}",
        width=f"{width:.1f}",
        height=f"{height:.1f}",
        rx=2,
        class_=class_,
    )


def _text(
    x: float,
    y: float,
    text: str | int,
    *,
    anchor: str = "end",
    class_: str | None = None,
    transform: str | None = None,
) -> Html:
    shown = number(text) if isinstance(text, int) else text
    return tag(
        "text",
        shown,
        x=f"{x:.1f}",
        y=f"{y:.1f}",
        text_anchor=anchor,
        class_=class_,
        transform=transform,
    )


def _round_step(least: float) -> int:
    """Returns the smallest of 1, 2, 5, 10, 20, 50 and so on that is not less."""
    power = 10 ** max(math.ceil(math.log10(max(least, 1))) - 1, 0)
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= least)


def _short(value: int) -> str:
    """Returns a power of ten as 100, 10k or 1M."""
    for size, letter in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value // size}{letter}"
    return str(value)
