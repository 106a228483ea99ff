"""The pipe between a run and its supervisor: heartbeats one way, its end the other way.

The run writes a byte a second; a frozen run writes none. The system closes the reading end when the
supervisor is gone, whatever killed it, and the next write of the run fails.
"""

import os
import signal
import threading
import time

DESCRIPTOR = "TESSERA_HEARTBEAT_FD"
"""The environment variable with the writing end, if a supervisor started the process."""
PERIOD_SEC = 1.0
_GRACE_SEC = 8.0
"""With the period before it and the time to exit, a run outlives its supervisor by at most 10 s."""


def start_heartbeat() -> bool:
    """Sends heartbeats to the supervisor, and ends this process when the supervisor is gone.

    Must be called once, as early as possible: before, the end of the supervisor goes unnoticed.
    Child processes do not inherit the pipe. Returns whether there is a supervisor.
    """
    descriptor = os.environ.pop(DESCRIPTOR, None)
    if descriptor is None:
        return False
    os.set_inheritable(int(descriptor), False)
    threading.Thread(target=_beat, args=(int(descriptor),), name="heartbeat", daemon=True).start()
    return True


def _beat(descriptor: int) -> None:
    """Writes a byte a second; without a reader sends SIGTERM once, then kills the process group.

    The group is that of the process that the supervisor started, workers included.
    """
    try:
        while True:
            os.write(descriptor, b".")
            time.sleep(PERIOD_SEC)
    except BrokenPipeError:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_SEC)
        os.killpg(os.getpgrp(), signal.SIGKILL)
