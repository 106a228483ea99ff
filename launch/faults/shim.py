"""Builds shim.c, which makes system calls fail or slow, as a failing disk does."""

import functools
import os
import shutil
import subprocess
import threading
from pathlib import Path


@functools.cache
def build_shim(folder: Path) -> Path:
    """Returns the library for LD_PRELOAD, compiled into a folder; see shim.c."""
    library, source = folder / "shim.so", Path(__file__).with_name("shim.c")
    made = library.with_name(f"{library.name}.{threading.get_ident()}")  # trials run side by side
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(made), str(source), "-ldl", "-pthread"]
    subprocess.run(command, check=True, capture_output=True)
    os.replace(made, library)
    return library


def needs_compiler() -> str | None:
    """Returns what is missing to build it, None if nothing is."""
    return None if shutil.which("cc") else "there is no C compiler (cc)"
