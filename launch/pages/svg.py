"""Shapes that charts are made of: SVG within a page, in its colours, light or dark."""

from collections.abc import Sequence

from launch.pages.page import Html, number, tag

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 66, 12, 12, 42  # of the frame within it


def framed(marks: Sequence[Html], title: str, *, x_title: str, y_title: str) -> Html:
    """Returns a chart with titles beside its axes."""
    middle = TOP + (HEIGHT - TOP - BOTTOM) / 2
    titles = [
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_title, anchor="middle", class_="note"),
        text(
            12,
            middle,
            y_title,
            anchor="middle",
            class_="note",
            transform=f"rotate(-90 12 {middle})",
        ),
    ]
    return drawing([*marks, *titles], title, WIDTH, HEIGHT)


def drawing(
    marks: Sequence[Html], title: str, width: int, height: int, class_: str | None = None
) -> Html:
    """Returns a drawing that is as wide as there is room; screen readers read the title."""
    frame = f"0 0 {width} {height}"
    return tag("svg", *marks, viewBox=frame, role="img", aria_label=title, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    """Returns a straight line."""
    return tag(
        "line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", class_=class_
    )


def box(
    x: float,
    y: float,
    width: float,
    height: float,
    class_: str | None,
    hint: str = "",
    color: str | None = None,
) -> Html:
    """Returns a filled box; `hint` appears under the mouse."""
    return tag(
        "rect",
        *([tag("title", hint)] if hint else []),
        x=f"{x:.1f}",
        y=f"{y:.1f}",
        width=f"{width:.1f}",
        height=f"{height:.1f}",
        rx=2,
        class_=class_,
        fill=color,
    )


def text(
    x: float,
    y: float,
    content: str | int,
    *,
    anchor: str = "end",
    class_: str | None = None,
    transform: str | None = None,
    color: str | None = None,
) -> Html:
    """Returns a text, which ends at x unless the anchor is start or middle."""
    shown = number(content) if isinstance(content, int) else content
    return tag(
        "text",
        shown,
        x=f"{x:.1f}",
        y=f"{y:.1f}",
        text_anchor=anchor,
        class_=class_,
        transform=transform,
        fill=color,
    )
