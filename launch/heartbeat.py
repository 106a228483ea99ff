"""The thread between a run and its supervisor: signs of life one way, its end the other way.

Both ends of one pipe: the run writes a byte a second, and a run that is frozen writes none. The
system closes the reading end when the supervisor is gone, whatever killed it, and the next byte
tells the run.
"""

import os
import signal
import threading
import time

DESCRIPTOR = "TESSERA_HEARTBEAT_FD"
"""The variable that gives a process the writing end, if a supervisor started it."""
PERIOD_SEC = 1.0
_GRACE_SEC = 8.0
"""A period before it, and a moment for the end: a run outlives its supervisor by 10 s at most."""


def start_heartbeat() -> bool:
    """Lets the supervisor know that this process is alive, and ends it when there is none.

    To be called once, as early as can be: until then nobody notices that the supervisor is gone.
    Its processes do not inherit the pipe. Returns whether there is a supervisor.
    """
    descriptor = os.environ.pop(DESCRIPTOR, None)
    if descriptor is None:
        return False
    os.set_inheritable(int(descriptor), False)
    threading.Thread(target=_beat, args=(int(descriptor),), name="heartbeat", daemon=True).start()
    return True


def _beat(descriptor: int) -> None:
    """Writes a byte a second; without a reader it asks to stop once, and then ends the group.

    The group is that of the process which the supervisor started, workers included.
    """
    try:
        while True:
            os.write(descriptor, b".")
            time.sleep(PERIOD_SEC)
    except BrokenPipeError:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_SEC)
        os.killpg(os.getpgrp(), signal.SIGKILL)
