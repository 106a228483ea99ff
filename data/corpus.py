"""Where text comes from: one's own files, or the standard library that every Python brings."""

import hashlib
import importlib
import json
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from configs.check import require
from configs.errors import SettingsError
from configs.run import STDLIB, DataConfig
from data.files import digest_file

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")

_SUFFIXES = (".txt", ".jsonl")
_STDLIB_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
_STDLIB_VALIDATION = 20  # one file in so many validates, by the digest of its name


@dataclass(frozen=True)
class Document:
    """A text that a model reads from its beginning to its end."""

    name: str
    split: Split
    text: str


@dataclass(frozen=True)
class Corpus:
    """Files of text, and how they are read and split."""

    description: str
    root: Path
    files: tuple[Path, ...]
    config: DataConfig

    def digest(self) -> str:
        """Returns the SHA-256 of the names and bytes of all files."""
        total = hashlib.sha256()
        for path in self.files:
            total.update(f"{self.name_of(path)}\0{digest_file(path)}\n".encode())
        return total.hexdigest()

    def name_of(self, path: Path) -> str:
        """Returns the name of a file below the root, the same on every machine."""
        return path.name if path == self.root else path.relative_to(self.root).as_posix()

    def texts(self) -> Iterator[tuple[str, str]]:
        """Yields (name, text) of each document, in the order of the files.

        Raises:
            SettingsError: a file is not UTF-8 or a line is not what data.text_field says.
        """
        for path in self.files:
            if self.config.path == STDLIB:
                yield from _stdlib_texts(path, self.name_of(path))
            elif path.suffix == ".jsonl":
                yield from _jsonl_texts(path, self.name_of(path), self.config)
            else:
                text = _decode(path.read_bytes(), str(path), self.config)
                if text:
                    yield self.name_of(path), text

    def documents(self) -> Iterator[Document]:
        """Yields every document with its split.

        The standard library is split by file. One's own text is cut at one place: of all characters
        the last data.validation_fraction validate, and the document at the cut becomes two.
        """
        if self.config.path == STDLIB:
            for name, text in self.texts():
                digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
                held_out = digest % _STDLIB_VALIDATION == 0
                yield Document(name, "validation" if held_out else "train", text)
            return
        num_characters = sum(len(text) for _, text in self.texts())
        num_left = num_characters - round(num_characters * self.config.validation_fraction)
        for name, text in self.texts():
            if text[:num_left]:
                yield Document(name, "train", text[:num_left])
            if text[num_left:]:
                yield Document(name, "validation", text[num_left:])
            num_left = max(0, num_left - len(text))

    def num_left_out(self) -> int:
        """Returns how many files of the standard library are not UTF-8 and so are not read."""
        if self.config.path != STDLIB:
            return 0
        return sum(_utf8_or_none(path.read_bytes()) is None for path in self.files)


def open_corpus(config: DataConfig) -> Corpus:
    """Returns the corpus that data.path names.

    Raises:
        SettingsError: there is none, or nothing in it can be read.
    """
    if config.path is None:
        raise SettingsError(
            "data.path=None must name a text: --data.path FILE_OR_DIR (.txt, .jsonl, a folder of "
            f"them), or {STDLIB} for the text that comes with Python"
        )
    if config.path == STDLIB:
        return _open_stdlib(config)
    root = Path(config.path).expanduser().resolve()
    require(root.exists(), f"data.path={config.path} does not exist; give a file or a folder")
    if root.is_dir():
        files = sorted(p for p in root.rglob("*") if p.suffix in _SUFFIXES and p.is_file())
        require(
            bool(files),
            f"data.path={config.path} is a folder without a .txt or .jsonl file; give one that has",
        )
    else:
        require(
            root.suffix in _SUFFIXES,
            f"data.path={config.path} must end in .txt or .jsonl, or be a folder of such files",
        )
        files = [root]
    return Corpus(str(root), root, tuple(files), config)


def _open_stdlib(config: DataConfig) -> Corpus:
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(
        path
        for path in root.rglob("*.py")
        if not _STDLIB_LEFT_OUT.intersection(path.relative_to(root).parts)
    )
    require(
        bool(files), f"data.path={STDLIB}: no Python sources in {root}; give a text of your own"
    )
    version = platform.python_version()
    return Corpus(f"the standard library of Python {version}", root, tuple(files), config)


def _stdlib_texts(path: Path, name: str) -> Iterator[tuple[str, str]]:
    if name == "pydoc_data/topics.py":
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
        yield from ((f"pydoc_data/{topic}", text) for topic, text in sorted(topics.items()))
    elif text := _utf8_or_none(path.read_bytes()):
        yield name, text


def _utf8_or_none(content: bytes) -> str | None:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _decode(content: bytes, where: str, config: DataConfig) -> str:
    if config.invalid_utf8 == "replace":
        return content.decode("utf-8", errors="replace")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"data.path: {where} is not UTF-8 (byte {content[error.start]:#04x} at offset "
            f"{error.start}); convert it, or pass --data.invalid_utf8 replace to put U+FFFD there"
        ) from None


def _jsonl_texts(path: Path, name: str, config: DataConfig) -> Iterator[tuple[str, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            text = _decode(line, where, config)
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except (json.JSONDecodeError, RecursionError) as error:
                raise SettingsError(f"data.path: {where} is not JSON ({error})") from None
            field = config.text_field
            if not isinstance(record, dict) or not isinstance(record.get(field), str):
                has = ", ".join(record) if isinstance(record, dict) else type(record).__name__
                raise SettingsError(
                    f"data.text_field={field} must be a text in every line, but {where} has: {has}"
                )
            if record[field]:
                yield f"{name}:{number}", _without_surrogates(record[field], where, config)


def _without_surrogates(text: str, where: str, config: DataConfig) -> str:
    """Treats half a UTF-16 pair, which JSON can spell and UTF-8 cannot, as text not in UTF-8."""
    content = text.encode("utf-8", errors="surrogatepass")
    return _decode(content, where, config)
