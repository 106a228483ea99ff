"""Records of a byte range of a file: their text, and a report of those that cannot be read."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from configs.data import PrepareConfig, template_parts
from configs.errors import SettingsError
from data.prepare.text.source_files import ByteRange, SourceFile

NUM_EXAMPLES = 20
TO_UTF8 = "convert it, pass --data.invalid-utf8 replace to put U+FFFD there"


@dataclass(frozen=True)
class TextRecord:
    """A document, or a chunk of a long one."""

    number: int
    """Line or row, from 0, counted from the start of the byte range."""
    text: str = ""
    ids: np.ndarray | None = None
    """Tokens instead of text, with separators between documents."""
    begins: bool = True
    """False for a chunk that continues the record before it."""


@dataclass
class ReadReport:
    """What was read of a byte range, and what could not be read.

    The first record that cannot be read ends the preparation; with skip it is counted.
    """

    skip: bool
    num_lines: int = 0
    """Lines read so far, where the format has lines and a file may be read in several ranges."""
    counts: dict[str, int] = field(default_factory=dict)
    """Skipped records of each file, or 1 for the rest of a damaged file."""
    examples: list[str] = field(default_factory=list)
    separators: dict[str, int] = field(default_factory=dict)
    """How often each string that usually separates documents occurs in the text."""

    @property
    def needs_line_numbers(self) -> bool:
        """Whether the next error message names its line; counting lines costs a read."""
        return not self.skip or len(self.examples) < NUM_EXAMPLES

    def count_skipped(self, file: SourceFile, location: str, what: str) -> None:
        self.counts[file.name] = self.counts.get(file.name, 0) + 1
        if len(self.examples) < NUM_EXAMPLES:
            self.examples.append(f"{file.name}{location} {what}")


@dataclass(frozen=True)
class RangeReading:
    """A byte range while it is read: what of which file, how, and what could not be read."""

    byte_range: ByteRange
    file: SourceFile
    config: PrepareConfig
    report: ReadReport

    @property
    def path(self) -> Path:
        return Path(self.file.path)

    @property
    def field_names(self) -> list[str]:
        parts = _template(self.config.text_field, self.config.text_template)
        return list(dict.fromkeys(name for _, name in parts if name is not None))

    def skip(self, location: str, what: str, way_out: str = "repair it") -> None:
        """Counts a skipped record; raises SettingsError unless data.bad_records is skip."""
        what = " ".join(what.split())  # a name of a field may have line ends in it
        if not self.report.skip:
            raise SettingsError(
                f"data.path: {self.file.path}{location} {what}; {way_out}, or pass "
                "--data.bad-records skip to skip and count what cannot be read"
            )
        self.report.count_skipped(self.file, location, what)

    def decode(self, content: bytes, location: str) -> str | None:
        """Returns the text; None, counted, if it is not UTF-8 and data.invalid_utf8 is refuse."""
        if self.config.invalid_utf8 == "replace":
            return content.decode("utf-8", errors="replace")
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = f"byte {content[error.start]:#04x} at offset {error.start}"
            self.skip(location, f"is not UTF-8 ({byte})", TO_UTF8)
            return None

    def text_of(self, record: Any, location: str) -> str | None:
        """Returns the text of a record; None, counted, if it has none."""
        template = self.config.text_template
        text = ""
        for before, name in _template(self.config.text_field, template):
            text += before
            if name is None:
                continue
            where = f"{name} of data.text_template" if template else f"data.text_field={name}"
            try:
                value = _lookup(record, name)
            except (LookupError, TypeError):
                what = f"has no {where}, but has: {', '.join(_names(record))}"
                self.skip(location, what, "name the field that holds the text")
                return None
            if isinstance(value, str) or (template and _is_number(value)):
                value = str(value)
                if not value.isascii():
                    # A lone surrogate, which JSON can spell, is reported as no UTF-8.
                    value = value.encode("utf-8", "surrogatepass")
            if isinstance(value, bytes):
                value = self.decode(value, location)
                if value is None:
                    return None
            if not isinstance(value, str):
                kind = "null" if value is None else type(value).__name__
                what = f"has {kind} in {where}, not text"
                self.skip(location, what, "name the field that holds the text")
                return None
            text += value
        return text


@functools.lru_cache
def _template(text_field: str, template: str | None) -> tuple[tuple[str, str | None], ...]:
    """Returns (literal text, name of the field after it) pairs that make a record's text."""
    return (("", text_field),) if template is None else template_parts(template)


def _lookup(record: Any, name: str) -> Any:
    """Returns a field, by dotted name too; raises LookupError or TypeError if it is absent."""
    if "." not in name or name in record:
        return record[name]
    for key in name.split("."):
        record = record[key]
    return record


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _names(record: Any) -> list[str]:
    if not isinstance(record, Mapping):
        return [type(record).__name__]
    return [
        dotted
        for name, value in record.items()
        for dotted in ([f"{name}.{key}" for key in value] if isinstance(value, dict) else [name])
    ]
