"""`python -m launch COMMAND ...`, which is what `./tessera COMMAND ...` runs."""

import os
import signal
import sys
from types import FrameType


def _stop(number: int, frame: FrameType | None) -> None:
    """Ends a run that has not begun: its modules, which take seconds to import, come next."""
    name = signal.Signals(number).name
    os.write(2, f"tessera: stopped by {name} before there was anything to save\n".encode())
    os._exit(75)


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        for stop in (signal.SIGTERM, signal.SIGINT):
            signal.signal(stop, _stop)

    from launch.cli import main

    sys.exit(main(sys.argv[1:]))
