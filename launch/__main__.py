"""`python -m launch COMMAND ...`, which is what `./tessera COMMAND ...` runs."""

import sys

from launch.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
