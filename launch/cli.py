"""From the words a person typed to a command, and from how it ended to an exit code."""

import io
import logging
import os
import platform
import sys
import tomllib
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any

from configs.errors import (
    OUT_OF_MEMORY,
    SettingsError,
    TesseraError,
    closing_line,
    exit_code_of,
)
from launch.arguments import did_you_mean
from launch.completion import completion_script
from launch.jax_setup import ROOT

COMMANDS = {
    "train": "train a preset, or resume a run: ./tessera train quickstart",
    "status": "is a run alive? how to resume it: ./tessera status RUN",
    "report": "a page with curves, events and time: ./tessera report RUN",
    "checkpoints": "list, pin and verify checkpoints: ./tessera checkpoints RUN",
    "import": "Hugging Face model to run: ./tessera import FOLDER --run-dir RUN",
    "export": "run to Hugging Face model: ./tessera export RUN OUT",
    "prepare": "text to tokens: ./tessera prepare --data.path raw/ --out tokens/",
    "inspect": "a batch, or prepared tokens: ./tessera inspect RUN --step 7",
    "eval": "evaluate a run on its validation sets: ./tessera eval RUN",
    "generate": "generate text with a run: ./tessera generate RUN --prompt 'def '",
    "chaos": "inject faults into small runs: ./tessera chaos quickstart",
    "test": "run the tests, lint and types of this checkout: ./tessera test",
}
"""Each is a module of `launch.commands` with a function `main(arguments) -> exit code`."""

BROKEN_PIPE = 141

_SMALLER = (
    "out of device memory: use a smaller train.batch_size, more train.num_microbatches, "
    "model.remat=full, or a larger mesh.fsdp"
)


def main(arguments: Sequence[str]) -> int:
    """Runs a command and returns its exit code; the one place where exceptions become codes."""
    for stream in (sys.stdout, sys.stderr):
        _never_fail_to_encode(stream)
    name, *rest = arguments or ["--help"]
    if name in ("--help", "-h", "help"):
        print(_usage())
        return 0
    if name == "--version":
        print(_version())
        return 0
    if name == "--completion":
        print(completion_script(COMMANDS, _find))
        return 0
    return guarded(lambda: _find(name)(rest))


def _never_fail_to_encode(stream: Any) -> None:
    """Lets a terminal that is not of UTF-8 show what it has no sign for as an escape."""
    if isinstance(stream, io.TextIOWrapper):  # not what a test or a notebook has put there
        stream.reconfigure(errors="backslashreplace")


def guarded(command: Callable[[], int], go_on: str | None = None) -> int:
    """Returns the command's exit code, or that of the exception it ended with, and says why.

    Args:
        go_on: the command of a run; it ends the last line where giving it again would help.
    """
    try:
        return command()
    except TesseraError as error:
        message, code = str(error), error.exit_code
    except KeyboardInterrupt as error:
        message, code = "stopped by Ctrl-C before there was anything to save", exit_code_of(error)
    except BrokenPipeError:  # who read our output, such as head, has had enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return BROKEN_PIPE
    except Exception as error:
        code = exit_code_of(error)
        if code == OUT_OF_MEMORY:
            message = f"{str(error).splitlines()[0]}\n{_SMALLER}"
        else:
            message = f"{traceback.format_exc()}ended by an error of ours, please report it"
    _say(closing_line(message, code, go_on) if go_on else message)
    return code


def _say(message: str) -> None:
    logger = logging.getLogger("tessera")
    if logger.handlers:
        logger.error(message)
    else:
        print(f"tessera: {message}", file=sys.stderr)


def _find(name: str) -> Callable[[Sequence[str]], int]:
    if name not in COMMANDS:
        raise SettingsError(
            f"{name} is not a command{did_you_mean(name, list(COMMANDS))}; there are: "
            f"{', '.join(COMMANDS)}"
        )
    return import_module(f"launch.commands.{name}").main


def _version() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return (
        f"tessera {project['version']} (Python {platform.python_version()}, JAX {version('jax')})"
    )


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ./tessera COMMAND ...",
            "",
            *lines,
            "",
            "./tessera COMMAND --help describes its flags; also: --version, --completion",
        ]
    )
