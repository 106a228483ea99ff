"""System calls that fail as a sick disk or a foreign file system lets them: a library put before
libc, in processes of their own."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from small_processes import ENVIRONMENT

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fails(int file) {
    const char *name = getenv("FAULTY_READ"), *times = getenv("FAULTY_TIMES");
    static int number = 0;
    char link[64], path[4096];
    if (!name) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (!strstr(path, name) || __sync_fetch_and_add(&number, 1) >= atoi(times)) return 0;
    errno = EIO;
    return 1;
}

int flock(int file, int how) {
    static int (*next)(int, int);
    if (getenv("FAULTY_FLOCK")) {
        errno = atoi(getenv("FAULTY_FLOCK"));
        return -1;
    }
    if (!next) next = dlsym(RTLD_NEXT, "flock");
    return next(file, how);
}

ssize_t read(int file, void *into, size_t length) {
    static ssize_t (*next)(int, void *, size_t);
    if (!next) next = dlsym(RTLD_NEXT, "read");
    return fails(file) ? -1 : next(file, into, length);
}

ssize_t pread(int file, void *into, size_t length, off_t at) {
    static ssize_t (*next)(int, void *, size_t, off_t);
    if (!next) next = dlsym(RTLD_NEXT, "pread");
    return fails(file) ? -1 : next(file, into, length, at);
}

ssize_t pread64(int file, void *into, size_t length, off_t at) {
    return pread(file, into, length, at);
}
"""


def run_faulty(
    folder: Path, code: str, *arguments: object, **faults: object
) -> "subprocess.CompletedProcess[str]":
    """Runs some code in a process whose system calls fail, as `launch.cli.guarded` does.

    Args:
        faults: flock=errno, or read=part of a path and times=how many reads of it fail.
    """
    if shutil.which("cc") is None:
        pytest.skip("there is no cc to build the faulty calls with")
    library = folder / "faulty.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), "-x", "c", "-", "-ldl"],
        input=_SOURCE,
        text=True,
        check=True,
    )
    named: Mapping[str, str] = {f"FAULTY_{k.upper()}": str(value) for k, value in faults.items()}
    given = "import sys; from launch.cli import guarded\nfrom pathlib import Path\n"
    return subprocess.run(
        [sys.executable, "-c", given + code, *map(str, arguments)],
        env={**ENVIRONMENT, **named, "LD_PRELOAD": str(library)},
        check=False,
        capture_output=True,
        text=True,
    )
