"""Pages of HTML in one file: no scripts, nothing loaded from elsewhere, all text escaped.

Every part of a page goes through `tag` or `join`, which escape every string that is not `Html`, and
nothing else makes `Html` of text. So callers need not escape text of unknown origin.
"""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from launch.printable import visible, visible_lines

_VOID = ("meta", "link", "br", "hr")  # elements of HTML that have no end tag
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # a second barrier if escaping fails

_STYLE = """
:root {
  color-scheme: light dark;
  --page: #fbfaf8; --card: #ffffff; --ink: #22262b; --soft: #68707a; --line: #e4e1db;
  --accent: #2f6f8f; --grid: #eceae5; --code: #f4f2ee;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15181c; --card: #1c2026; --ink: #e4e6e9; --soft: #97a0ab; --line: #30363e;
    --accent: #6fb6d6; --grid: #323942; --code: #171a1f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1080px; padding: 40px 24px 64px; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
    "DejaVu Sans", sans-serif;
}
h1 { font-size: 27px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 44px 0 14px; }
h3 { font-size: 15px; margin: 0 0 10px; }
h3::first-letter { text-transform: uppercase; }
p { margin: 0 0 10px; }
.soft { color: var(--soft); font-size: 13px; }
.wide { overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(460px, 100%), 1fr));
  gap: 16px; margin-bottom: 16px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 18px 20px; margin: 0 0 16px; min-width: 0; overflow-x: auto; }
.cards .card { margin: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); gap: 10px;
  margin-bottom: 16px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 10px 14px; }
.tile b { display: block; font-size: 20px; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 13px; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: break-word; }
th:last-child, td:last-child { padding-right: 0; overflow-wrap: anywhere; }
tr:last-child td { border-bottom: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { font-size: 13px; }
pre { background: var(--code); border: 1px solid var(--line); border-radius: 8px; margin: 0;
  padding: 10px 12px; font-size: 12.5px; line-height: 1.45; white-space: pre-wrap;
  overflow-wrap: anywhere; tab-size: 4; }
.chips { display: grid; grid-template-columns: repeat(auto-fill, minmax(148px, 1fr)); gap: 6px; }
.chip { display: flex; justify-content: space-between; gap: 8px; background: var(--code);
  border: 1px solid var(--line); border-radius: 6px; padding: 3px 9px; font-size: 13px; }
.chip code { white-space: pre; overflow: hidden; text-overflow: ellipsis; }
.chip span { color: var(--soft); font-variant-numeric: tabular-nums; }
.card > :last-child { margin-bottom: 0; }
svg + p, .chips + p, table + p, .stack + p { margin-top: 12px; }
pre + p { margin-top: 18px; }
summary { cursor: pointer; color: var(--soft); font-size: 13px; }
summary + * { margin-top: 10px; }
svg { display: block; width: 100%; height: auto; font-size: 12px; fill: var(--ink); }
.track { width: 180px; }
.bar { background: var(--accent); border-radius: 2px; height: 12px; margin: 5px 0; }
.stack { display: flex; height: 40px; border-radius: 4px; overflow: hidden; margin-bottom: 12px; }
.stack b { color: #fff; font-size: 13px; line-height: 40px; overflow: hidden; text-align: center; }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 8px; }
.issue { border-left: 4px solid #cc5140; }
.bar, .stack, .swatch { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
svg .grid { stroke: var(--grid); fill: none; }
svg .axis { stroke: var(--soft); fill: none; }
svg polyline { fill: none; stroke-linejoin: round; stroke-linecap: round; }
svg .note { fill: var(--soft); }
@media print {
  body { padding: 0; }
  .cards { grid-template-columns: 1fr 1fr; }
  .card { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""


class Html(str):
    """HTML that stands in a page as it is; any other string is text."""


def tag(name: str, /, *content: Any, **attributes: Any) -> Html:
    """Returns an element; attributes and content that is not Html are shown as text.

    Args:
        content: None stands for nothing.
        attributes: `class_` and `font_size` stand for class and font-size; None leaves one out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(visible(str(value)))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(content)}</{name}>")


def join(content: Iterable[Any]) -> Html:
    """Returns parts of a page one after the other, without those that are None."""
    return Html(
        "".join(
            part if isinstance(part, Html) else html.escape(visible_lines(str(part)))
            for part in content
            if part is not None
        )
    )


def page(title: str, *content: Any) -> Html:
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(_STYLE)),
    )
    document = tag("html", head, tag("body", *content), lang="en")
    return Html(f"<!doctype html>\n{document}\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Html:
    """Returns a table; numbers stand to the right, with a comma at each thousand.

    Args:
        columns: all of them empty where the table has no header.
    """
    first = rows[0] if rows else columns
    names = [
        tag("th", name, class_=_cell(value)[1]) for name, value in zip(columns, first, strict=True)
    ]
    body = [tag("tr", *(tag("td", _cell(v)[0], class_=_cell(v)[1]) for v in row)) for row in rows]
    head = tag("thead", tag("tr", *names)) if any(columns) else None
    return tag("table", head, tag("tbody", *body))


def _cell(value: Any) -> tuple[Any, str | None]:
    """Returns what a cell shows, and its class."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value), "number"
    is_number = isinstance(value, str) and re.fullmatch(r"[\d.,]+%", value)
    return value, "number" if is_number else None


def number(value: float) -> str:
    """Returns a number as people write it: 1,234,567 or 2.73."""
    whole = isinstance(value, int) or abs(value) >= 1000
    return f"{value:,.0f}" if whole else f"{value:.4g}"


def tiles(numbers: Mapping[str, Any]) -> Html:
    shown = (
        tag("div", tag("b", _cell(value)[0]), tag("span", name), class_="tile")
        for name, value in numbers.items()
    )
    return tag("div", *shown, class_="tiles")


def card(title: str, *content: Any) -> Html:
    return tag("section", tag("h3", title), *content, class_="card")


def cards(*content: Any) -> Html:
    return tag("div", *content, class_="cards")


def note(text: Any) -> Html:
    return tag("p", text, class_="soft wide")


def bar(share: float) -> Html:
    """Returns a bar that takes a share, from 0 to 1, of the room in a table."""
    return tag("div", tag("div", style=f"width: {share:.1%}", class_="bar"), class_="track")


def chips(entries: Iterable[tuple[str, str, str]]) -> Html:
    """Returns small boxes, each with a name and a value; a hint appears under the mouse."""
    boxes = (
        tag("div", tag("code", name, title=hint), tag("span", value), class_="chip")
        for name, value, hint in entries
    )
    return tag("div", *boxes, class_="chips")
