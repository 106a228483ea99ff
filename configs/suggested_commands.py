"""Commands that messages offer, quoted, as a shell takes them in the current folder."""

import os
import shlex
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


def tessera(*words: str | Path) -> str:
    """Returns a command line of this program as it was called; paths are as seen from here."""
    return _line(os.environ.get("TESSERA_COMMAND", "./tessera"), *words)


def of_environment(module: str, *words: str | Path) -> str:
    """Returns a command line of a program of the Python environment that runs this one."""
    python = Path(sys.executable)
    script = python.with_name(module.partition(".")[0])
    return _line(*((script,) if script.is_file() else (python, "-m", module)), *words)


def pip_install(package: str) -> str:
    """Returns the command that installs a package into that environment, in the pinned version."""
    return of_environment("pip", "install", "-c", _ROOT / "constraints.txt", package)


def seen(path: Path) -> Path:
    """Returns a path relative to the current folder where it lies below it, else in full."""
    whole, here = path.expanduser().absolute(), Path.cwd()
    return whole.relative_to(here) if whole.is_relative_to(here) else whole


def _line(*words: str | Path) -> str:
    return shlex.join(str(seen(word)) if isinstance(word, Path) else word for word in words)
