"""Records of a byte range of a file, and a report of those that cannot be read."""

from dataclasses import dataclass, field

import numpy as np

from configs.data import PrepareConfig
from configs.errors import SettingsError
from data.prepare.text.source_files import SourceFile

NUM_EXAMPLES = 20


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

    def add(self, file: SourceFile, location: str, what: str, way_out: str = "repair it") -> None:
        """Counts a skipped record; raises SettingsError unless data.bad_records is skip."""
        where = f"{file.path}{location}"
        what = " ".join(what.split())  # a name of a field may have line ends in it
        if not self.skip:
            raise SettingsError(
                f"data.path: {where} {what}; {way_out}, or pass --data.bad-records skip to skip "
                "and count what cannot be read"
            )
        self.count_skipped(file, location, what)

    def count_skipped(self, file: SourceFile, location: str, what: str) -> None:
        """Counts a skipped record, whatever data.bad_records is."""
        self.counts[file.name] = self.counts.get(file.name, 0) + 1
        if len(self.examples) < NUM_EXAMPLES:
            self.examples.append(f"{file.name}{location} {what}")


def decode(
    content: bytes, location: str, file: SourceFile, config: PrepareConfig, reading: ReadReport
) -> str | None:
    """Returns the text; None, counted, if it is not UTF-8 and data.invalid_utf8 is refuse."""
    if config.invalid_utf8 == "replace":
        return content.decode("utf-8", errors="replace")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        reading.add(
            file,
            location,
            f"is not UTF-8 (byte {content[error.start]:#04x} at offset {error.start})",
            "convert it, pass --data.invalid-utf8 replace to put U+FFFD there",
        )
        return None
