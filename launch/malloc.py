"""What the C library does with memory that is freed."""

import ctypes

_M_MMAP_THRESHOLD = -3
"""Of mallopt(3): what is at least this large is mapped by itself, and unmapped when freed."""


def return_freed_memory() -> None:
    """Has what is freed go back to the system at once, for commands that hold whole models.

    By default glibc keeps blocks of up to 32 MiB in its arenas, which comes to as much as a file of
    weights. Other libraries of C have no such setting, and nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**20)
