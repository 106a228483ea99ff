"""Writes the stack of every thread of a hung process."""

import faulthandler
import os
import sys
import threading
from pathlib import Path

from configs.errors import Hung

_GRACE_SEC = 20.0


def write_stacks(logs: Path, process: int) -> str:
    """Writes the stacks of all threads and returns the path of the file.

    The process exits a few seconds later even if it hangs again while it ends.
    """
    ending = threading.Timer(_GRACE_SEC, os._exit, [Hung.exit_code])
    ending.daemon = True
    ending.start()
    path = logs / f"hung-process-{process}.txt"
    try:
        with path.open("w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
    except OSError:  # there is no run folder yet, or the disk is what hangs
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        return "standard error"
    return str(path)
