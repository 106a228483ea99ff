"""Files that processes take turns with, or are told why they cannot."""

import errno
import os

import pytest
from faulty_files import run_faulty

LOCK = """
from data.atomic_files import locked

def lock():
    with locked(Path(sys.argv[1]), "a"):
        print("locked")
    return 0

sys.exit(guarded(lock))
"""


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_with_a_way_out(tmp_path, number):
    ran = run_faulty(tmp_path, LOCK, tmp_path / "runs", flock=number)
    assert ran.returncode == 2, ran.stderr
    assert ran.stdout == ""
    (said,) = ran.stderr.splitlines()
    assert f"{tmp_path}/runs/a.lock cannot be locked ({os.strerror(number)})" in said
    assert "-o flock" in said
