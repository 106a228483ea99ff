"""What a preparation excluded or changed, as tables, whatever form its report has."""

from collections.abc import Mapping
from typing import Any, NamedTuple

_NUM_ROWS = 20
_VALUE_CHARACTERS = 200


class Section(NamedTuple):
    """A part of a report as a table."""

    title: str
    columns: tuple[str, ...]
    """Empty names where the table needs no header."""
    rows: list[list[Any]]
    num_more: int = 0
    """Rows that are not shown."""


def excluded_sections(report: Mapping[str, Any]) -> list[Section]:
    """Returns what was excluded or changed, as tables; whatever the report holds."""
    filled = {name: value for name, value in report.items() if value != ""}
    return [section for name, value in filled.items() for section in _sections(name, value)]


def _sections(title: str, value: Any) -> list[Section]:
    """Returns plain values as one table, then those of nested values; nothing if empty."""
    title = title.replace("_", " ")
    if isinstance(value, Mapping):
        plain = [[_cell(name), _cell(item)] for name, item in value.items() if _is_plain(item)]
        nested = {name: item for name, item in value.items() if not _is_plain(item)}
        found = [_section(title, ("", ""), plain)]
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        columns = tuple({name: None for item in value for name in item if _is_plain(item[name])})
        rows = [[_cell(item.get(name, "")) for name in columns] for item in value]
        names = tuple(name.replace("_", " ") for name in columns)
        nested = {
            f"{_cell(item.get(columns[0], i)) if columns else i}: {name}": inner
            for i, item in enumerate(value)
            for name, inner in item.items()
            if not _is_plain(inner)
        }
        found = [_section(title, names, rows)]
    else:
        items = value if isinstance(value, list) else [value]
        found, nested = [_section(title, ("",), [[_cell(item)] for item in items])], {}
    below = [s for name, item in nested.items() for s in _sections(f"{title}: {name}", item)]
    return [section for section in (*found, *below) if section.rows]


def _section(title: str, columns: tuple[str, ...], rows: list[list[Any]]) -> Section:
    return Section(title, columns, rows[:_NUM_ROWS], max(len(rows) - _NUM_ROWS, 0))


def _is_plain(value: Any) -> bool:
    return not isinstance(value, Mapping | list)


def _cell(value: Any) -> Any:
    """Returns a number as it is, and anything else as text of limited length."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    text = str(value)
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[: _VALUE_CHARACTERS - 1]}…"
