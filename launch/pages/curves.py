"""Curves over steps as SVG within a page, thinned where there are more points than pixels."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from launch.pages.page import Html, number, tag
from launch.pages.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, framed, line, text

ACCENT = "var(--accent)"
_MOST_DOTS = 60
"""A curve of more points is a line without dots."""

Point = tuple[float, float | None]
"""(x, y); no y is a gap in the curve."""


class Curve(NamedTuple):
    """One curve of a line chart."""

    name: str
    points: Sequence[Point]
    """(x, y) in the order of x; where y is None the curve has a gap."""
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
    log_y: bool = False,
    from_zero: bool = False,
) -> Html:
    """Returns curves over one scale; there must be a y that is not None.

    Args:
        span: the first and the last x of the scale, with all curves and marks between them; None
            is where the curves begin and end.
        log_y: the scale of y is logarithmic; all must be above zero.
        from_zero: the scale of y begins at zero, or below where a y is.
    """
    xs = span or [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points if y is not None]
    bottom = HEIGHT - BOTTOM
    across = _Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    down = _Scale(min(0, *ys) if from_zero else min(ys), max(ys), bottom, TOP, log_y, margin=0.04)
    drawn = []
    for y in down.ticks():
        drawn += [
            line(LEFT, down(y), WIDTH - RIGHT, down(y), "grid"),
            text(LEFT - 8, down(y) + 4, _tick(y)),
        ]
    for x in across.ticks(5, least_step=1):
        drawn.append(text(across(x), bottom + 16, _tick(x), anchor="middle"))
    drawn += [_upright(across(mark.x), mark) for mark in marks]
    for curve in curves:
        drawn += _drawn(curve, across, down)
    drawn.append(line(LEFT, bottom, WIDTH - RIGHT, bottom, "axis"))
    y_title += ", log scale" if log_y else ""
    return framed(drawn, f"{y_title} by {x_title}", x_title=x_title, y_title=y_title)


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
        bucket = points[start : start + size]
        ranked = sorted((y, i) for i, (_, y) in enumerate(bucket) if y is not None)
        chosen = sorted({ranked[0][1], ranked[-1][1]}) if ranked else [0]
        kept += [bucket[i] for i in chosen]
    return kept


@dataclass(frozen=True)
class _Scale:
    """From values to places between `start` and `end` of a drawing."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False
    margin: float = 0.0
    """Room beyond the least and the greatest value, as a part of the whole."""

    def __call__(self, value: float) -> float:
        low, high = self._ends()
        part = (self._measure(value) - low) / (high - low)
        return self.start + (self.end - self.start) * part

    def ticks(self, count: int = 4, least_step: float = 0.0) -> list[float]:
        """Returns round values within the scale, about `count` of them."""
        low, high = self._ends()
        if self.is_log and high - low > 1:
            every = math.ceil((high - low) / 6)
            return [10.0**power for power in range(math.ceil(low), math.floor(high) + 1, every)]
        if self.is_log:
            low, high = 10**low, 10**high
        least = max((high - low) / count, least_step)
        power = 10.0 ** math.floor(math.log10(least))
        step = next(power * digit for digit in (1, 2, 5, 10) if power * digit >= least * 0.999)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        return [step * i for i in range(first, last + 1)]

    def _ends(self) -> tuple[float, float]:
        low, high = self._measure(self.low), self._measure(self.high)
        if low == high:  # a curve that stays where it is, or one point
            room = 0.5 if self.is_log else abs(low) * 0.1 or 1.0
            return low - room, high + room
        room = (high - low) * self.margin
        return low - (0 if self.low == 0 else room), high + room

    def _measure(self, value: float) -> float:
        return math.log10(value) if self.is_log else value


def _drawn(curve: Curve, across: _Scale, down: _Scale) -> Iterator[Html]:
    """Yields the lines of a curve between its gaps, and dots where they do not merge."""
    dots = sum(y is not None for _, y in curve.points) <= _MOST_DOTS
    width = 1.8 if dots else 1.2
    for piece in _pieces(curve.points):
        if len(piece) > 1:
            path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in piece)
            style = f"stroke: {curve.color}; stroke-width: {width}"
            yield tag("polyline", points=path, class_="curve", style=style)
        for x, y in piece if dots or len(piece) == 1 else ():
            hint = f"{curve.name} {y:.6g} at {number(x)}"
            place = {"cx": f"{across(x):.1f}", "cy": f"{down(y):.1f}"}
            yield tag("circle", tag("title", hint), **place, r=2.2, style=f"fill: {curve.color}")


def _pieces(points: Sequence[Point]) -> Iterator[list[tuple[float, float]]]:
    piece: list[tuple[float, float]] = []
    for x, y in points:
        if y is not None:
            piece.append((x, y))
        elif piece:
            yield piece
            piece = []
    if piece:
        yield piece


def _upright(x: float, mark: Mark) -> Html:
    return tag(
        "line",
        tag("title", mark.hint),
        x1=f"{x:.1f}",
        y1=TOP,
        x2=f"{x:.1f}",
        y2=HEIGHT - BOTTOM,
        style=f"stroke: {mark.color}; stroke-dasharray: 4 3",
    )


def _tick(value: float) -> str:
    """Returns a value beside an axis: 0.05, 3e-5, 250, 20k or 1.5M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:.6g}".replace("e-0", "e-")
