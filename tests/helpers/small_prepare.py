"""Preparations as processes that can be killed, small ones in this process, and what they leave."""

import contextlib
import functools
import itertools
import json
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import ROOT

import data.prepare.corpus_preparation
import data.prepare.shards
import data.prepare.text.parquet_arrow
import data.prepare.text.source_files
import data.prepare.text.txt_jsonl
from configs.data import DataConfig
from data.open_data import open_data
from data.prepare.engine import Workers
from data.token_store import TokenStore, TokenStream
from train.record.time_ledger import stat_fields

RANGE_BYTES, TASK_BYTES = 4000, 16_000
"""Parts and tasks of small preparations, so that a small text has many."""

_SERVER = """
import json, os, sys
import data.prepare.text.source_files
import launch.commands.prepare
from launch.cli import main

for line in sys.stdin:
    request = json.loads(line)
    if "pid" in request:
        answer = os.waitstatus_to_exitcode(os.waitpid(request["pid"], 0)[1])
    elif not (answer := os.fork()):
        os.setsid()
        os.chdir(request["folder"])
        os.environ |= request["environment"]
        log = os.open(request["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(log, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sources = data.prepare.text.source_files
        sources.RANGE_BYTES, sources.TASK_BYTES = request["sizes"]
        sys.exit(main(request["arguments"]))
    print(answer, flush=True)
"""


@dataclass(frozen=True)
class Command:
    """A process of `./tessera ...` that leads a session of its own."""

    pid: int
    log: Path


@functools.cache
def _server() -> "subprocess.Popen[str]":
    """Starts commands by forking, so that the imports are paid once."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _SERVER],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _ask(request: dict[str, Any]) -> int:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    assert select.select([server.stdout], [], [], 240)[0], "waited for four minutes"
    return int(server.stdout.readline())


_numbers = itertools.count()


def start(
    folder: Path,
    *arguments: str,
    sizes: tuple[int, int] = (RANGE_BYTES, TASK_BYTES),
    **environment: str,
) -> Command:
    """Starts `./tessera ...` in a folder, with the sizes of a part and of a task."""
    log = folder.parent / f"{folder.name}-{next(_numbers)}.log"
    request = {
        "folder": str(folder),
        "arguments": arguments,
        "log": str(log),
        "sizes": sizes,
        "environment": environment,
    }
    return Command(_ask(request), log)


def finish(command: Command) -> tuple[int, str]:
    """Returns the exit code of a command, negative if a signal ended it, and what it printed."""
    return _ask({"pid": command.pid}), command.log.read_text()


def run(folder: Path, *arguments: str, **more: Any) -> tuple[int, str]:
    """Runs a command to its end."""
    return finish(start(folder, *arguments, **more))


def session_of(command: Command) -> list[int]:
    """Returns the processes of a command that are alive: its own, and those that it started."""
    alive = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, session = stat_fields(int(path.name))[:4]
            if int(session) == command.pid and state not in "ZX":
                alive.append(int(path.name))
    return alive


def workers_of(command: Command) -> list[int]:
    """Returns the worker processes of a command that are alive."""
    workers = []
    for pid in session_of(command):
        with contextlib.suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                workers.append(pid)
    return workers


def kill(command: Command, number: int = signal.SIGKILL, *, whole_group: bool) -> None:
    """Sends a signal to a command alone, or to all of its processes."""
    (os.killpg if whole_group else os.kill)(command.pid, number)


def sentences(number: int, seed: int = 0) -> Iterator[str]:
    """Yields lines of words, no two alike."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefgé世", k=draw.randint(1, 8))) for _ in range(200)]
    for i in range(number):
        yield f"{i} " + " ".join(draw.choices(words, k=draw.randint(3, 20))) + ".\n"


def write_corpus(folder: Path, num_lines: int = 1200) -> dict[str, list[str]]:
    """Writes files of two kinds, of which each makes several tasks; returns their documents."""
    folder.mkdir()
    lines = list(sentences(num_lines))
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    text = "".join(sentences(num_lines, seed=1))
    (folder / "b.txt").write_text(text)
    return {"a.jsonl": lines, "b.txt": [text]}


def small_sizes(
    monkeypatch: pytest.MonkeyPatch,
    part_bytes: int = RANGE_BYTES,
    task_bytes: int = TASK_BYTES,
    block_len: int = 100,
) -> None:
    """Makes parts, tasks and blocks of this process small."""
    monkeypatch.setattr(data.prepare.text.source_files, "RANGE_BYTES", part_bytes)
    monkeypatch.setattr(data.prepare.text.txt_jsonl, "RANGE_BYTES", part_bytes)
    monkeypatch.setattr(data.prepare.text.source_files, "TASK_BYTES", task_bytes)
    monkeypatch.setattr(data.prepare.corpus_preparation, "BLOCK_LEN", block_len)
    monkeypatch.setattr(data.prepare.shards, "BLOCK_LEN", block_len)


def prepare_here(config: DataConfig, cache_dir: Path) -> TokenStore:
    """Returns the store of data.path, prepared in this process, whose sizes a test may change."""
    data = open_data(config, cache_dir, lambda line: None, workers=Workers(1))
    return data.sources[0].store


def documents_in(store: TokenStore, stream: TokenStream) -> list[str]:
    """Takes a stream apart at its separators."""
    ids = stream.read(0, stream.num_tokens)
    separators = np.flatnonzero(ids == store.tokenizer.separator)
    assert separators[0] == 0
    assert separators[-1] == len(ids) - 1
    pairs = itertools.pairwise(separators.tolist())
    return [store.tokenizer.decode(ids[start + 1 : stop].tolist()) for start, stop in pairs]


def stamps_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Returns inode and time of every file in a folder."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}
