"""Charts of bars and frequencies as SVG within a page."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from launch.pages.page import Html, tag
from launch.pages.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    box,
    drawing,
    framed,
    line,
    text,
)
from launch.printable import shortened

_ROW, _NAME_WIDTH, _VALUE_WIDTH = 22, 200, 120
_NAME_CHARACTERS = 30
_STACK, _SHARE_SIZE = 44, 14
_LEAST_LABELLED = 0.05
"""Of a stacked bar: a smaller part has no room for its share."""


class Bar(NamedTuple):
    """One bar of a chart."""

    name: str
    value: int
    shown: str
    """Stands beside a horizontal bar; appears under the mouse at a vertical one."""


def column_chart(bars: Sequence[Bar], *, x_title: str, y_title: str) -> Html:
    """Returns a chart of vertical bars, with a scale of round numbers on the left."""
    step = _round_step(max((bar.value for bar in bars), default=1) / 4)
    top = max(1, math.ceil(max((bar.value for bar in bars), default=1) / step)) * step
    width = (WIDTH - LEFT - RIGHT) / max(len(bars), 1)
    height = HEIGHT - TOP - BOTTOM
    marks = []
    for value in range(0, top + 1, step):
        y = TOP + height * (1 - value / top)
        marks += [line(LEFT, y, WIDTH - RIGHT, y, "grid"), text(LEFT - 8, y + 4, value)]
    every = math.ceil(len(bars) * 44 / (WIDTH - LEFT - RIGHT))  # so that names do not touch
    for i, bar in enumerate(bars):
        x, tall = LEFT + i * width, height * bar.value / top
        marks.append(
            box(x + width * 0.08, TOP + height - tall, width * 0.84, tall, "bar", bar.shown)
        )
        if i % every == 0:
            name = text(x + width / 2, HEIGHT - BOTTOM + 16, bar.name, anchor="middle")
            marks.append(name)
    marks.append(line(LEFT, TOP + height, WIDTH - RIGHT, TOP + height, "axis"))
    return framed(marks, f"{y_title} by {x_title}", x_title=x_title, y_title=y_title)


def bar_chart(bars: Sequence[Bar], *, title: str) -> Html:
    """Returns a chart of horizontal bars, each with its name before it and `shown` after it."""
    most = max((bar.value for bar in bars), default=1) or 1
    width, room = 2 * WIDTH, 2 * WIDTH - _NAME_WIDTH - _VALUE_WIDTH
    marks = []
    for i, bar in enumerate(bars):
        y, long = i * _ROW, max(room * bar.value / most, 1)
        name = shortened(bar.name, _NAME_CHARACTERS)
        marks += [
            tag("g", tag("title", bar.name), text(_NAME_WIDTH - 10, y + 15, name)),
            box(_NAME_WIDTH, y + 4, room, _ROW - 8, "track"),
            box(_NAME_WIDTH, y + 4, long, _ROW - 8, "bar", f"{bar.name}: {bar.shown}"),
            text(width, y + 15, bar.shown, class_="note"),
        ]
    return drawing(marks, title, width, len(bars) * _ROW, class_="list")


def log_log_plot(points: Sequence[tuple[float, float]], *, x_title: str, y_title: str) -> Html:
    """Returns a curve on two logarithmic axes; all coordinates must be above zero."""
    x_top, y_top = (max(1.02 * math.log10(max(axis)), 1) for axis in zip(*points, strict=True))
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def across(x: float) -> float:
        return LEFT + width * math.log10(x) / x_top

    def down(y: float) -> float:
        return TOP + height * (1 - math.log10(y) / y_top)

    marks = []
    for power in range(int(x_top) + 1):
        x = across(10**power)
        marks += [
            line(x, TOP, x, TOP + height, "grid"),
            text(x, HEIGHT - BOTTOM + 16, _short(10**power), anchor="middle"),
        ]
    for power in range(int(y_top) + 1):
        y = down(10**power)
        marks += [
            line(LEFT, y, WIDTH - RIGHT, y, "grid"),
            text(LEFT - 8, y + 4, _short(10**power)),
        ]
    curve = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)
    marks.append(tag("polyline", points=curve, class_="curve"))
    title = f"{y_title} by {x_title}, both axes logarithmic"
    return framed(marks, title, x_title=x_title, y_title=y_title)


class Part(NamedTuple):
    """One part of a stacked bar."""

    name: str
    value: float
    shown: str
    """Appears under the mouse."""
    color: str


def stacked_bar(parts: Sequence[Part], *, title: str) -> Html:
    """Returns a horizontal bar made of parts, with their shares where there is room."""
    total = sum(part.value for part in parts) or 1
    width, x = 2 * WIDTH, 0.0
    drawn = []
    for part in parts:
        share = part.value / total
        hint = f"{part.name}: {part.shown}"
        drawn.append(box(x, 0, width * share, _STACK, None, hint, part.color))
        if share >= _LEAST_LABELLED:
            middle, down = x + width * share / 2, _STACK / 2 + 5
            label = text(middle, down, f"{share:.0%}", anchor="middle", color="#fff")
            drawn.append(tag("g", label, font_size=_SHARE_SIZE))
        x += width * share
    return drawing(drawn, title, width, _STACK)


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
