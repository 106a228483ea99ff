"""What reading gives: records, and an account of what could not be read."""

from dataclasses import dataclass, field

import numpy as np

from configs.data import PrepareConfig
from configs.errors import SettingsError
from data.prepare.text.source_files import SourceFile

NUM_EXAMPLES = 20


@dataclass(frozen=True)
class Record:
    """A document, or a piece of a long one."""

    number: int
    """Line or row of the file, from 0, counted from the beginning of the part."""
    text: str = ""
    ids: np.ndarray | None = None
    """Tokens, in place of text, with separators between documents."""
    begins: bool = True
    """False for a piece that goes on where the record before it ended."""


@dataclass
class ReadReport:
    """How far a part was read, and what of it could not be.

    The first record that cannot be read ends the preparation, or all of them are counted.
    """

    skip: bool
    num_lines: int = 0
    """Lines of the part, where it is one of lines and may be one part of several."""
    counts: dict[str, int] = field(default_factory=dict)
    """Records left out of each file, or 1 for the rest of a file that is damaged."""
    examples: list[str] = field(default_factory=list)
    marks: dict[str, int] = field(default_factory=dict)
    """How often what looks like a mark between documents occurs in text."""

    @property
    def wants_places(self) -> bool:
        """Whether the line of the next thing that cannot be read will be told; it costs a read."""
        return not self.skip or len(self.examples) < NUM_EXAMPLES

    def add(self, file: SourceFile, place: str, what: str, way_out: str = "repair it") -> None:
        """Counts something that is left out; raises SettingsError where nothing may be."""
        where = f"{file.path}{place}"
        what = " ".join(what.split())  # a name of a field may have line ends in it
        if not self.skip:
            raise SettingsError(
                f"data.path: {where} {what}; {way_out}, or pass --data.bad_records skip to leave "
                "out and count what cannot be read"
            )
        self.leave_out(file, place, what)

    def leave_out(self, file: SourceFile, place: str, what: str) -> None:
        """Counts something that is left out, whatever the settings say."""
        self.counts[file.name] = self.counts.get(file.name, 0) + 1
        if len(self.examples) < NUM_EXAMPLES:
            self.examples.append(f"{file.name}{place} {what}")


def decode(
    content: bytes, place: str, file: SourceFile, config: PrepareConfig, reading: ReadReport
) -> str | None:
    """Returns text, or None where it is not UTF-8 and the settings do not say to mend it."""
    if config.invalid_utf8 == "replace":
        return content.decode("utf-8", errors="replace")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        reading.add(
            file,
            place,
            f"is not UTF-8 (byte {content[error.start]:#04x} at offset {error.start})",
            "convert it, pass --data.invalid_utf8 replace to put U+FFFD there",
        )
        return None
