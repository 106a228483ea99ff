"""What is left of a process that hangs: where each of its threads stood."""

import faulthandler
import os
import sys
import threading
from pathlib import Path

from configs.errors import Hung

_LAST_WORDS_SEC = 20.0


def write_stacks(logs: Path, process: int) -> str:
    """Writes the stacks of all threads, and returns where they are.

    From then on the process has a few seconds for its last words: it ends though these hang too.
    """
    ending = threading.Timer(_LAST_WORDS_SEC, os._exit, [Hung.exit_code])
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
