"""The fields of a record that make its text: one, or several in a template."""

import functools
from collections.abc import Mapping
from typing import Any

from configs.data import PrepareConfig, template_parts
from data.prepare.text.read_report import ReadReport, decode
from data.prepare.text.source_files import SourceFile


@functools.lru_cache
def parts_of(text_field: str, template: str | None) -> tuple[tuple[str, str | None], ...]:
    """Returns (text, name of the field after it) of each part of a record's text."""
    return (("", text_field),) if template is None else template_parts(template)


def field_names(config: PrepareConfig) -> list[str]:
    """Returns the fields that make a text, in their order."""
    parts = parts_of(config.text_field, config.text_template)
    return list(dict.fromkeys(name for _, name in parts if name is not None))


def lookup(record: Any, name: str) -> Any:
    """Returns a field, or what its dotted name leads to; a LookupError or TypeError if nothing."""
    if "." not in name or name in record:
        return record[name]
    for key in name.split("."):
        record = record[key]
    return record


def text_of(record: Any, config: PrepareConfig) -> str:
    """Returns the text of a record of which nothing is amiss; raises any error for others."""
    if config.text_template is None:
        text = lookup(record, config.text_field)
    else:
        parts = parts_of(config.text_field, config.text_template)
        text = "".join(
            before + ("" if name is None else _written(lookup(record, name)))
            for before, name in parts
        )
    if not text.isascii():
        text.encode("utf-8")  # JSON can spell half a pair, which is no character
    return text


def field_of(
    record: Any, place: str, file: SourceFile, config: PrepareConfig, reading: ReadReport
) -> str | None:
    """Returns the text of a record, or None where there is none to be had, which is counted."""
    content = b""
    template = config.text_template
    for before, name in parts_of(config.text_field, template):
        content += before.encode()
        if name is None:
            continue
        said = f"data.text_field={name}" if template is None else f"{name} of data.text_template"
        try:
            value = lookup(record, name) if isinstance(record, Mapping) else record[name]
        except (LookupError, TypeError):
            what = f"has no {said}, but has: {', '.join(_names(record))}"
        else:
            if isinstance(value, bytes):
                content += value
                continue
            if isinstance(value, str) or (template is not None and _is_number(value)):
                # Half a UTF-16 pair, which JSON can spell and UTF-8 cannot, is text not in UTF-8.
                content += str(value).encode("utf-8", errors="surrogatepass")
                continue
            kind = "null" if value is None else type(value).__name__
            what = f"has {kind} in {said}, not text"
        reading.add(file, place, what, "name the field that holds the text")
        return None
    return decode(content, place, file, config, reading)


def _written(value: Any) -> str:
    if isinstance(value, str) or _is_number(value):
        return str(value)
    raise TypeError


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _names(record: Any) -> list[str]:
    """Returns the names of the fields of a record, those within fields dotted."""
    if not isinstance(record, Mapping):
        return [type(record).__name__]
    return [
        dotted
        for name, value in record.items()
        for dotted in ([f"{name}.{key}" for key in value] if isinstance(value, dict) else [name])
    ]
