"""A disk that is full: one line that says so, nothing that looks whole, and the command goes on."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT
from parts import slowly
from small_prepare import RANGE_BYTES, TASK_BYTES, run, write_corpus
from small_runs import content_of

from data.prepare.work_folder import WORK
from data.token_store import MANIFEST
from launch.faults.disks import needs_unshare

COMMAND = ["prepare", "--data.path", "texts", "--data.tokenizer", "bytes"]
CLEAN = ["--data.clean", "unicode", "length", "exact_duplicates", "near_duplicates"]

IN_A_NAMESPACE = """
import json, os, shutil, subprocess, sys
from pathlib import Path
import data.prepare.text.source_files
import launch.commands.prepare
from data.atomic_files import digest_file
from launch.cli import main

request = json.loads(sys.argv[1])
sources = data.prepare.text.source_files
sources.RANGE_BYTES, sources.TASK_BYTES = request["sizes"]
os.mkdir("disk")

def run():
    if not (child := os.fork()):
        log = os.open("log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.exit(main([*request["command"], "--out", "disk/out"]))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"code": code, "said": open("log").read()}

def mount(*options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", "disk"], check=True)

for size in request["disks"]:
    mount(f"size={size}")
    full = run()
    found = {
        os.path.relpath(f"{folder}/{name}", "disk/out"): digest_file(Path(folder) / name)
        for folder, _, names in os.walk("disk/out") for name in names
    }
    mount("remount", "size=100m")
    again = run()
    shutil.copytree("disk/out", f"out-{size}")
    subprocess.run(["umount", "disk"], check=True)
    print(json.dumps({"disk": size, "full": full, "found": found, "again": again}), flush=True)
"""


def on_small_disks(folder: Path, command: list[str], disks: list[str]) -> list[dict[str, Any]]:
    """Runs a command on a disk of each size, and again when it has become larger.

    Skips where a user may not mount a file system of his own.
    """
    if missing := needs_unshare():
        pytest.skip(missing)
    request = {"command": command, "disks": disks, "sizes": [RANGE_BYTES, TASK_BYTES]}
    python = [sys.executable, "-W", "ignore", "-c", IN_A_NAMESPACE, json.dumps(request)]
    made = subprocess.run(
        ["unshare", "-Urm", *python],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    return [json.loads(line) for line in made.stdout.splitlines()]


@pytest.mark.parametrize(
    ("more", "disks"),
    [
        # As it scans, as it looks for duplicates and as it writes shards.
        (("--num_workers", "1", *CLEAN), ("100k", "904k", "2400k")),
        *slowly((("--num_workers", "2"), ("1000k",))),
    ],
)
def test_a_full_disk_is_told_in_one_line_and_the_command_goes_on(tmp_path, more, disks):
    write_corpus(tmp_path / "texts")
    command = [*COMMAND, *more]
    code, said = run(tmp_path, *command, "--out", "undisturbed")
    assert code == 0, said
    undisturbed = content_of(tmp_path / "undisturbed")
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in undisturbed.items()}
    outcomes = on_small_disks(tmp_path, command, [*disks])
    assert [outcome["disk"] for outcome in outcomes] == [*disks]
    for outcome in outcomes:
        assert outcome["full"]["code"] == 2, outcome
        begun, *progress, refusal = outcome["full"]["said"].splitlines()
        # On a machine that is slow there are lines of progress.
        assert all(" MB/s" in line or line[:11] == "validation:" for line in progress), progress
        assert begun.startswith("preparing ")
        assert re.match(r"tessera: no space is left on the disk while writing /\S+: free", refusal)
        assert f"{tmp_path}/disk/out/" in refusal
        assert MANIFEST not in outcome["found"]
        for name, digest in outcome["found"].items():  # what looks whole is
            if not name.startswith(WORK) and ".tmp-" not in name:
                assert digest == digests[name]
        assert outcome["again"]["code"] == 0, outcome
        assert content_of(tmp_path / f"out-{outcome['disk']}") == undisturbed
    shards = [name for name in outcomes[-1]["found"] if name.endswith(".arrayrecord")]
    assert shards
