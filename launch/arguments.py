"""From words to a dataclass through tyro, and from tyro's complaints to one short message."""

import contextlib
import dataclasses
import difflib
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar, cast

import tyro

from configs.errors import SettingsError
from configs.flat_settings import CONSTANTS, MERGED, RENAMED, REPLACED
from configs.require import require
from configs.run import MeshConfig
from launch.help import HELP, help_page, settings_of
from train.record.run_folder import RunFolder

RunPath = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
"""The positional argument of the commands that read a run."""


@dataclass(frozen=True, kw_only=True)
class SavedRunArguments:
    """The arguments of the commands that use the model of a run."""

    run: RunPath
    """The run folder."""
    step: int | None = None
    """Step of the checkpoint; None is the newest."""
    mesh: MeshConfig = field(default_factory=lambda: MeshConfig(data=1))
    """The layout of the model. Without these flags it is that of the run where that fits the
    devices here, else fully sharded; with some of them the others are those of the run."""
    virtual_devices: int | None = None
    """Split the CPU into this many devices, to try a mesh on one machine."""


Arguments = TypeVar("Arguments")
RunArguments = TypeVar("RunArguments", bound=SavedRunArguments)

_PLAIN_WORDS = (
    (r"^Missing from \S+ \S+: (\S+) .*", r"\1 must be given"),
    (r"^Missing value for argument '(\S+)'.*", r"\1 must be followed by a value"),
    (
        r"^invalid choice ('.*') for argument '(\S+)'. Expected one of \((.*)\)",
        r"\2 must be one of \3, not \1",
    ),
    (r"^Error parsing config\.[\w.-]+: ", ""),
    (
        r"^Error parsing (\S+): invalid literal for int\(\) .*?: ('.*')",
        r"\1 must be an integer, not \2",
    ),
    (r"^Error parsing (\S+): could not convert .*?: ('.*')", r"\1 must be a number, not \2"),
    (
        r"^Error parsing (\S+): no type matching (\S+) could be instantiated from \[(.*)\]",
        r"\1 must be \2, not \3",
    ),
)


def parse_arguments(
    kind: type[Arguments],
    arguments: Sequence[str],
    *,
    command: str,
    default: Arguments | None = None,
    description: str | None = None,
    names: Sequence[str] | None = None,
) -> Arguments:
    """Returns the dataclass that the arguments ask for; hyphens and underscores are the same.

    Args:
        command: what was typed before them, such as "./tessera eval".
        default: what is changed by them; None where the dataclass has all defaults.
        description: heads the help; None takes the docstring of the dataclass.
        names: the settings that --help shows, one line each; None shows all.

    Raises:
        SettingsError: a field or value is wrong; the message names it and what would do.
        SystemExit: the help was asked for and shown (0).
    """
    if wanted := [word for word in arguments if word in HELP]:
        page = help_page(
            kind,
            default,
            command=command,
            description=description,
            names=names,
            whole="--help-all" in wanted,
        )
        print(page)
        raise SystemExit(0)
    drawn = io.StringIO()
    try:
        with _wide_stderr(drawn):
            parsed, unknown = tyro.cli(
                kind,
                args=arguments,
                prog=command,
                default=default,
                add_help=False,
                return_unknown_args=True,
            )
    except SystemExit:
        raise SettingsError(
            f"{_complaint(drawn.getvalue())}; all settings: {command} --help-all"
        ) from None
    if unknown:
        flag = unknown[0].partition("=")[0].replace("_", "-")
        name = flag.lstrip("-").replace("-", "_").replace(".no_", ".")
        now = {**RENAMED, **MERGED, **REPLACED}.get(name, "").replace("_", "-")
        require(not now, f"{unknown[0]} is a setting of an earlier version: use --{now} instead")
        always = CONSTANTS.get(name)
        require(always is None, f"{unknown[0]} is a setting of an earlier version: always {always}")
        known = [each.label for each in settings_of(kind, default)]
        raise SettingsError(
            f"{unknown[0]} is not a setting{did_you_mean(flag, known)}; "
            f"all settings: {command} --help-all"
        )
    return cast(Arguments, parsed)


def parse_saved_run(
    kind: type[RunArguments], arguments: Sequence[str], *, command: str
) -> tuple[RunArguments, MeshConfig | None]:
    """Returns the parsed arguments, and the mesh they name, None if they name none.

    Raises as parse_arguments does, and SettingsError if a mesh is given without a run folder.
    """
    parsed = parse_arguments(kind, arguments, command=command)
    if not any(word.startswith("--mesh.") for word in arguments):
        return parsed, None
    default = dataclasses.replace(parsed, mesh=RunFolder(parsed.run).read_config().mesh)
    parsed = parse_arguments(kind, arguments, command=command, default=default)
    return parsed, parsed.mesh


@contextlib.contextmanager
def _wide_stderr(drawn: io.StringIO) -> Iterator[None]:
    """Catches what tyro draws on stderr, in lines so long that no word is broken."""
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "2000"
    try:
        with contextlib.redirect_stderr(drawn):
            yield
    finally:
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns


def _complaint(drawn: str) -> str:
    """Returns the sentence of a box that tyro drew, without its lists and help texts."""
    lines = [re.sub(r"[─-╿]|-{9,}", " ", line).strip() for line in drawn.splitlines()]
    text = "\n".join(lines[1:]).strip("\n")  # the first line is the title of the box
    sentence = text.split("\n\n")[0].replace("\n", " ")
    for pattern, plain in _PLAIN_WORDS:
        sentence = re.sub(pattern, plain, sentence)
    return sentence.rstrip(".")


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """Returns " (did you mean NAME?)" for the nearest of the names, or nothing if none is near."""
    by_field = {full.split(".")[-1].lstrip("-"): full for full in reversed(names)}
    fields = difflib.get_close_matches(name.split(".")[-1].lstrip("-"), by_field, n=1)
    close = [by_field[field] for field in fields]
    if "." in name or not close:  # with its group the whole name is the better guide
        close = difflib.get_close_matches(name, names, n=1) or close
    return f" (did you mean {close[0]}?)" if close else ""
