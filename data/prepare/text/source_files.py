"""Finds the files that data.path names, and divides them into byte ranges and tasks."""

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from configs.data import PrepareConfig
from configs.errors import SettingsError
from configs.require import require
from data.prepare.text.streams import COMPRESSIONS, json_layout

Split = Literal["train", "validation"]
Kind = Literal[
    "text",
    "jsonl",
    "json",
    "csv",
    "parquet",
    "arrow",
    "arrayrecord",
    "tokens",
    "token_rows",
    "python",
    "topics",
]

TEXT_KINDS = ("text", "jsonl", "json", "csv")
"""Kinds of UTF-8, which may be compressed."""
_PROSE = {
    *(".md", ".rst", ".tex", ".html", ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu"),
    *(".js", ".jsx", ".ts", ".tsx", ".java", ".kt", ".go", ".rs", ".rb", ".php", ".cs", ".swift"),
    *(".scala", ".lua", ".pl", ".r", ".jl", ".hs", ".ml", ".sh", ".sql"),
}
"""Suffixes of prose and source code; each such file is one document."""
_ABOUT = ("readme", "license", "changelog", "contributing", "citation")
"""Beginnings of names of files that describe the others."""
_KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".raw": "text",  # wiki.train.raw
    ".tokens": "text",  # wiki.train.tokens: words, with spaces between them
    **dict[str, Kind].fromkeys(_PROSE, "text"),
    ".jsonl": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".arrayrecord": "arrayrecord",
    ".npy": "tokens",
    ".bin": "tokens",
}
_READABLE = (
    ".txt .jsonl .json .csv .tsv (also .gz .zst) .parquet .arrow .arrayrecord .npy .bin, .md or "
    "source code, a folder or a glob of them"
)
RANGE_BYTES = 16 * 2**20
"""Bytes of a byte range, for formats that can be read from any offset."""
TASK_BYTES = 64 * 2**20
"""Bytes of a task: the byte ranges that one worker prepares at a time."""
_TASK_FILES = 4096


@dataclass(frozen=True)
class SourceFile:
    """A file of the corpus, as it was when the corpus was opened."""

    path: str
    name: str
    """Path below the root, the same on every machine."""
    kind: Kind
    num_bytes: int
    mtime_ns: int
    split: Split | None = None
    """The split that its name gives; None leaves it to data.validation_fraction."""
    dtype: str | None = None
    """Of the token ids in a .bin."""

    @property
    def has_tokens(self) -> bool:
        return self.kind in ("tokens", "token_rows")

    @property
    def is_prose(self) -> bool:
        return Path(self.name).suffix.lower() in _PROSE

    @property
    def compression(self) -> str | None:
        suffix = Path(self.path).suffix.lower()
        return suffix if suffix in COMPRESSIONS else None


@dataclass(frozen=True)
class ByteRange:
    """Bytes start to stop of a file; stop None is the end.

    A reader moves both boundaries to the next start of a record or line, so neighbours agree.
    """

    file: int
    """Index of the file in the corpus."""
    start: int
    stop: int | None


def before_wildcard(pattern: str) -> str:
    """Returns a glob up to its first wildcard; all of a path that has none."""
    return re.split(r"[*?[]", pattern, maxsplit=1)[0]


def record_name(name: str, kind: Kind, number: int) -> str:
    return name if kind in ("text", "python") else f"{name}:{number + 1}"


def kind_of(path: Path) -> Kind | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        kind = _KINDS.get(suffixes[-2]) if len(suffixes) > 1 else None
        return kind if kind in TEXT_KINDS else None
    return _KINDS.get(path.suffix.lower())


def _kind_on_disk(path: Path, *, is_named: bool) -> Kind | None:
    """Returns the kind of a file, of a .json by its content; a single object only if named."""
    kind = kind_of(path)
    if kind != "json":
        return kind
    layouts: dict[str | None, Kind] = {"array": "json", "lines": "jsonl"}
    if is_named:
        layouts["object"] = "jsonl"
    return layouts.get(json_layout(path))


def source_file(path: Path, name: str, kind: Kind) -> SourceFile:
    stat = path.stat()
    return SourceFile(str(path), name, kind, stat.st_size, stat.st_mtime_ns)


def find_files(config: PrepareConfig) -> tuple[Path, list[SourceFile], dict[str, int]]:
    """Returns the root, the files that data.path names, and {suffix: number} of ignored files."""
    assert config.path is not None
    given = os.path.expanduser(config.path)
    if glob.has_magic(given) and not Path(given).exists():
        return _glob_files(config.path, given)
    root = _absolute(given)
    require(root.exists(), f"data.path={config.path} does not exist; give a file or a folder")
    if not root.is_dir():
        require(kind_of(root) is not None, f"data.path={config.path} must end in {_READABLE}")
        require(
            _kind_on_disk(root, is_named=True) is not None,
            f"data.path={config.path} must hold a JSON array, [...], or JSON Lines "
            "(one record on each line); convert the file",
        )
        return root, *_kinds_of(config.path, root.parent, [root])
    require(
        not (root / ".work").is_dir(),
        f"data.path={config.path} is a prepared folder that is not finished: run the same "
        "./tessera prepare command again to resume it",
    )
    return root, *_kinds_of(config.path, root, _files_below(config.path, root))


def _files_below(given: str, root: Path) -> list[Path]:
    """Returns all files below a folder, following links; skips hidden folders."""
    found = []
    for folder, folders, names in os.walk(root, followlinks=True):
        real, above = os.path.realpath(folder), os.path.realpath(os.path.dirname(folder))
        if folder != str(root) and f"{above}/".startswith(f"{real}/"):  # a link to a folder above
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]  # .git, .cache
        is_dataset = {"dataset_info.json", "state.json"} <= {*names}
        here = [Path(folder) / name for name in names]
        found += _saved_dataset(given, Path(folder)) if is_dataset else here
    for path in found:
        require(path.exists(), f"data.path={given} has a broken link: {path}; remove it")
    return sorted(path for path in found if path.is_file())


def _saved_dataset(given: str, root: Path) -> list[Path]:
    state = root / "state.json"
    try:
        paths = sorted(
            root / file["filename"] for file in json.loads(state.read_text())["_data_files"]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"data.path={given} has a {state.name} that `datasets` did not write ({error!r}); save "
            "the dataset again, or name its files: 'FOLDER/*.arrow'"
        ) from None
    missing = [path.name for path in paths if not path.is_file()]
    require(
        not missing,
        f"data.path={given} is a saved dataset without its {', '.join(missing[:3])}; copy it again",
    )
    return paths


def _glob_files(given: str, pattern: str) -> tuple[Path, list[SourceFile], dict[str, int]]:
    fixed = before_wildcard(pattern)
    root = _absolute(fixed if fixed.endswith("/") else os.path.dirname(fixed))
    found = {_absolute(path) for path in glob.glob(pattern, recursive=True)}
    below = {file for path in found if path.is_dir() for file in _files_below(given, path)}
    paths = sorted(below | {path for path in found if path.is_file()})
    require(
        bool(paths), f"data.path={given} matches no file; quote the pattern, and check the folder"
    )
    return root, *_kinds_of(given, root, paths)


def _absolute(path: str) -> Path:
    """Returns an absolute path; keeps links, as the target may have another name."""
    return Path(os.path.abspath(path))


def _kinds_of(given: str, root: Path, paths: list[Path]) -> tuple[list[SourceFile], dict[str, int]]:
    """Returns the files to read, named relative to root, and {suffix: number} of ignored files.

    Beside arrays of tokens, prose, CSV and JSON are ignored as descriptions of them; beside files
    of records, a README and its like.
    """
    kinds: dict[Path, Kind] = {
        path: kind for path in paths if (kind := _kind_on_disk(path, is_named=len(paths) == 1))
    }
    has_tokens = "tokens" in kinds.values()
    has_records = any(kind != "text" for kind in kinds.values())

    def counts(path: Path, kind: Kind) -> bool:
        is_prose = path.suffix.lower() in _PROSE
        if has_tokens and (is_prose or kind == "csv" or ".json" in path.suffixes):
            return False
        return not (has_records and is_prose and path.name.lower().startswith(_ABOUT))

    files = [
        source_file(path, Path(os.path.relpath(path, root)).as_posix(), kind)
        for path, kind in kinds.items()
        if counts(path, kind)
    ]
    require(bool(files), f"data.path={given} has no file that can be read: {_READABLE}")
    read = {file.path for file in files}
    others = Counter(path.suffix or "no suffix" for path in paths if str(path) not in read)
    return files, dict(sorted(others.items()))


def plan_ranges(files: list[SourceFile]) -> list[ByteRange]:
    """Returns the byte ranges of all files; a compressed file or a table has one."""
    ranges = []
    for i, file in enumerate(files):
        can_be_cut = file.kind in ("text", "jsonl", "tokens") and file.compression is None
        starts = range(0, file.num_bytes if can_be_cut else 0, RANGE_BYTES) or [0]
        stops = [*starts[1:], None]
        ranges += [ByteRange(i, start, stop) for start, stop in zip(starts, stops, strict=True)]
    return ranges


def plan_tasks(files: list[SourceFile], ranges: list[ByteRange]) -> list[list[ByteRange]]:
    """Returns the byte ranges in groups of about TASK_BYTES, which depend on the files alone."""
    tasks: list[list[ByteRange]] = []
    num_bytes = TASK_BYTES
    for byte_range in ranges:
        if num_bytes >= TASK_BYTES or len(tasks[-1]) >= _TASK_FILES:
            tasks.append([])
            num_bytes = 0
        tasks[-1].append(byte_range)
        num_bytes += size_of(byte_range, files)
    return tasks


def size_of(byte_range: ByteRange, files: Sequence[SourceFile]) -> int:
    stop = files[byte_range.file].num_bytes if byte_range.stop is None else byte_range.stop
    return stop - byte_range.start
