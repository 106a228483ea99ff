"""The text of a record: one of its fields, or several in a template."""

import functools
from collections.abc import Mapping
from typing import Any

from configs.data import PrepareConfig, template_parts
from data.prepare.text.source_files import SourceFile
from data.prepare.text.text_records import ReadReport, decode


@functools.lru_cache
def template_of(text_field: str, template: str | None) -> tuple[tuple[str, str | None], ...]:
    """Returns (literal text, name of the field after it) pairs that make a record's text."""
    return (("", text_field),) if template is None else template_parts(template)


def field_names(config: PrepareConfig) -> list[str]:
    """Returns the fields that make a text, in order."""
    parts = template_of(config.text_field, config.text_template)
    return list(dict.fromkeys(name for _, name in parts if name is not None))


def lookup(record: Any, name: str) -> Any:
    """Returns a field, by dotted name too; raises LookupError or TypeError if it is absent."""
    if "." not in name or name in record:
        return record[name]
    for key in name.split("."):
        record = record[key]
    return record


def text_of(record: Any, config: PrepareConfig) -> str:
    """Returns the text of a valid record; raises any error for others."""
    if config.text_template is None:
        text = lookup(record, config.text_field)
    else:
        parts = template_of(config.text_field, config.text_template)
        text = "".join(
            before + ("" if name is None else _written(lookup(record, name)))
            for before, name in parts
        )
    if not text.isascii():
        text.encode("utf-8")  # raises for a lone surrogate, which JSON can spell
    return text


def field_of(
    record: Any, location: str, file: SourceFile, config: PrepareConfig, reading: ReadReport
) -> str | None:
    """Returns the text of a record; None, counted, if it has no text."""
    content = b""
    template = config.text_template
    for before, name in template_of(config.text_field, template):
        content += before.encode()
        if name is None:
            continue
        where = f"data.text_field={name}" if template is None else f"{name} of data.text_template"
        try:
            value = lookup(record, name) if isinstance(record, Mapping) else record[name]
        except (LookupError, TypeError):
            what = f"has no {where}, but has: {', '.join(_names(record))}"
        else:
            if isinstance(value, bytes):
                content += value
                continue
            if isinstance(value, str) or (template is not None and _is_number(value)):
                # A lone surrogate, which JSON can spell, is reported as text that is not UTF-8.
                content += str(value).encode("utf-8", errors="surrogatepass")
                continue
            kind = "null" if value is None else type(value).__name__
            what = f"has {kind} in {where}, not text"
        reading.add(file, location, what, "name the field that holds the text")
        return None
    return decode(content, location, file, config, reading)


def _written(value: Any) -> str:
    if isinstance(value, str) or _is_number(value):
        return str(value)
    raise TypeError


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _names(record: Any) -> list[str]:
    """Returns the names of the fields of a record, nested ones dotted."""
    if not isinstance(record, Mapping):
        return [type(record).__name__]
    return [
        dotted
        for name, value in record.items()
        for dotted in ([f"{name}.{key}" for key in value] if isinstance(value, dict) else [name])
    ]
