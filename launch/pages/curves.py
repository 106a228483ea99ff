"""Curves as SVG within a page, over linear or logarithmic scales."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from launch.pages.page import Html, number, tag

ACCENT = "var(--accent)"
_MOST_DOTS = 60
"""A curve of more points is a line without dots."""
_WIDTH, _HEIGHT = 520, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 508, 12, 218  # the edges of the frame

Point = tuple[float, float | None]
"""(x, y); no y is a gap in the curve."""


class Curve(NamedTuple):
    """One curve of a line chart."""

    name: str
    points: Sequence[Point]
    """In the order of x."""
    color: str = ACCENT


class Mark(NamedTuple):
    """An event at an x, shown as a vertical line."""

    x: float
    hint: str
    """Appears under the mouse."""
    color: str


def line_chart(
    curves: Sequence[Curve],
    *,
    x_title: str,
    y_title: str,
    marks: Sequence[Mark] = (),
    span: tuple[float, float] | None = None,
    log_x: bool = False,
    log_y: bool = False,
    from_zero: bool = False,
) -> Html:
    """Returns curves over one scale; there must be a y that is not None.

    Args:
        span: the first and the last x of the scale, with all curves and marks between them; None
            is where the curves begin and end.
        log_x, log_y: the scale is logarithmic; all must be above zero.
        from_zero: the scale of y begins at zero, or below where a y is.
    """
    xs = span or [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points if y is not None]
    across = Scale(xs, _LEFT, _RIGHT, log_x)
    down = Scale([0, *ys] if from_zero else ys, _BOTTOM, _TOP, log_y)
    drawn = []
    for y in down.ticks(4):
        drawn += [
            _line((_LEFT, down(y)), (_RIGHT, down(y)), class_="grid"),
            _text(_LEFT - 8, down(y) + 4, _tick(y), text_anchor="end"),
        ]
    for x in filter(float.is_integer, across.ticks(5)):
        drawn.append(_text(across(x), _BOTTOM + 16, _tick(x)))
    for mark in marks:
        style = f"stroke: {mark.color}; stroke-dasharray: 4 3"
        x, hint = across(mark.x), tag("title", mark.hint)
        drawn.append(_line((x, _TOP), (x, _BOTTOM), hint, style=style))
    for curve in curves:
        drawn += _draw(curve, across, down)
    middle = (_TOP + _BOTTOM) / 2
    y_title += ", log scale" if log_y else ""
    drawn += [
        _line((_LEFT, _BOTTOM), (_RIGHT, _BOTTOM), class_="axis"),
        _text((_LEFT + _RIGHT) / 2, _HEIGHT - 6, x_title, class_="note"),
        _text(12, middle, y_title, class_="note", transform=f"rotate(-90 12 {middle})"),
    ]
    title = f"{y_title} by {x_title}"  # for screen readers
    return tag("svg", *drawn, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=title)


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """Returns at most so many points of a curve, which keep all its peaks and dips.

    Of each run of successive points the lowest and the highest are kept, where they are; a run
    without any value keeps its gap.
    """
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / (most // 2))
    kept: list[Point] = []
    for start in range(0, len(points), size):
        ranked = sorted((y, x) for x, y in points[start : start + size] if y is not None)
        if ranked:
            kept += sorted({(x, y) for y, x in (ranked[0], ranked[-1])})
        else:
            kept.append(points[start])
    return kept


class Scale:
    """From values to places between `start` and `end` of a drawing."""

    def __init__(self, values: Iterable[float], start: float, end: float, is_log: bool = False):
        self._start, self._end, self._is_log = start, end, is_log
        measured = [*map(self._measure, values)]
        self._low, self._high = min(measured), max(measured)
        if self._low == self._high:  # a curve that stays where it is, or one point
            room = abs(self._low) * 0.1 or 1.0
            self._low, self._high = self._low - room, self._high + room

    def __call__(self, value: float) -> float:
        part = (self._measure(value) - self._low) / (self._high - self._low)
        return self._start + (self._end - self._start) * part

    def ticks(self, count: int) -> list[float]:
        """Returns round values within the scale, about `count` of them."""
        low, high = self._low, self._high
        if self._is_log and high - low > 1.5:
            powers = range(math.ceil(low), math.floor(high) + 1, math.ceil((high - low) / 6))
            return [10.0**power for power in powers]
        if self._is_log:
            low, high = 10**low, 10**high
        power = 10.0 ** math.floor(math.log10((high - low) / count))
        steps = (power * digit for digit in (1, 2, 5, 10))
        step = next(step for step in steps if step * count >= (high - low) * 0.999)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        return [step * i for i in range(first, last + 1)]

    def _measure(self, value: float) -> float:
        return math.log10(value) if self._is_log else value


def _draw(curve: Curve, across: Scale, down: Scale) -> Iterator[Html]:
    """Yields the lines of a curve between its gaps, and dots where they do not merge."""
    found = [(x, y) for x, y in curve.points if y is not None]
    few = len(found) <= _MOST_DOTS
    style = f"stroke: {curve.color}; stroke-width: {1.8 if few else 1.2}"
    for is_gap, piece in itertools.groupby(curve.points, lambda point: point[1] is None):
        if not is_gap:
            places = [f"{across(x):.1f},{down(y):.1f}" for x, y in piece if y is not None]
            places *= 2 if len(places) == 1 else 1  # for browsers draw no line of one point
            yield tag("polyline", points=" ".join(places), style=style)
    for x, y in found if few else ():
        hint = tag("title", f"{curve.name} {y:.6g} at {number(x)}")
        place = {"cx": f"{across(x):.1f}", "cy": f"{down(y):.1f}"}
        yield tag("circle", hint, **place, r=2.2, style=f"fill: {curve.color}")


def _line(start: tuple[float, float], end: tuple[float, float], *content: Html, **how: str) -> Html:
    (x1, y1), (x2, y2) = start, end
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    places = {name: f"{value:.1f}" for name, value in ends.items()}
    return tag("line", *content, **places, **how)


def _text(x: float, y: float, content: str, text_anchor: str = "middle", **how: str) -> Html:
    return tag("text", content, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=text_anchor, **how)


def _tick(value: float) -> str:
    """Returns a value beside an axis: 0.05, 3e-5, 250, 20k or 1.5M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:.6g}".replace("e-0", "e-")
