"""A real S3-compatible server, moto's, in a process of its own, and processes that talk to it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from commands import ROOT

_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
LIMIT_SEC = 30


@dataclass(frozen=True)
class S3Server:
    """What a test asks of the server, past the code that is tested: through boto3, and its log."""

    endpoint: str
    log: Path
    client: Any

    def make_bucket(self, name: str) -> str:
        """Returns the URL of a new bucket."""
        self.client.create_bucket(Bucket=name)
        return f"s3://{name}"

    def put(self, url: str, content: bytes) -> None:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        self.client.put_object(Bucket=bucket, Key=key, Body=content)

    def get(self, url: str) -> bytes:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        return self.client.get_object(Bucket=bucket, Key=key)["Body"].read()

    def remove(self, url: str) -> None:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        self.client.delete_object(Bucket=bucket, Key=key)

    def keys(self, url: str) -> list[str]:
        """Returns the keys below a URL, without what they have in common."""
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        found = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return [key.removeprefix(f"{prefix}/") for key in found]

    def requests(self, method: str, url: str) -> int:
        """Returns how often an object was asked for or written since the server began."""
        path = re.escape(url.removeprefix("s3://"))
        return len(
            re.findall(rf'\b{method} /{path}(\?\S*)? HTTP/1.1\S*" 200', self.log.read_text())
        )


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Yields a server on a free port, which AWS_ENDPOINT_URL names; its log is in the folder."""
    log = folder / "s3.log"
    command = (sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0")
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        endpoint = _wait_for_endpoint(log)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**_ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}.items():
                patch.setenv(name, value)
            patch.delenv("AWS_PROFILE", raising=False)
            client = boto3.client("s3")
            client.list_buckets()
            yield S3Server(endpoint, log, client)
    finally:
        process.kill()
        process.wait()


def _wait_for_endpoint(log: Path) -> str:
    for _ in range(LIMIT_SEC * 50):
        if said := re.search(r"Running on (http://127\.0\.0\.1:\d+)", log.read_text()):
            return said[1]
        time.sleep(0.02)
    raise TimeoutError(log.read_text())


_STALL = """
import asyncio, itertools, sys
from s3fs import S3FileSystem

def stall(transfer, number=itertools.count()):
    async def transfer_or_wait(*args, **kwargs):
        if next(number) >= int(sys.argv[1]):
            await asyncio.sleep(3600)
        return await transfer(*args, **kwargs)
    return transfer_or_wait

S3FileSystem._get_file = stall(S3FileSystem._get_file)
S3FileSystem._put_file = stall(S3FileSystem._put_file)
"""


def start(
    function: str, *arguments: object, stall_after: int | None = None
) -> subprocess.Popen[bytes]:
    """Starts a process that calls a function of data.remote_folders, as `start_code` does."""
    code = f"from data.remote_folders import {function}; {function}(*arguments)"
    return start_code(code, *arguments, stall_after=stall_after)


def start_code(
    code: str, *arguments: object, stall_after: int | None = None
) -> subprocess.Popen[bytes]:
    """Starts a process that runs some code with `arguments`; what is no URL is a Path there.

    Args:
        stall_after: transfers after which the network delivers nothing any more.
    """
    given = (
        "import sys; from pathlib import Path\n"
        "arguments = [text if '://' in text else Path(text) for text in sys.argv[2:]]\n"
    )
    code = given + ("" if stall_after is None else _STALL) + code
    command = (sys.executable, "-c", code, str(stall_after), *map(str, arguments))
    return subprocess.Popen(command, cwd=ROOT)


def kill_when(process: subprocess.Popen[bytes], holds: Callable[[], bool]) -> None:
    """Kills a process, which must not have ended, as soon as a condition holds."""
    deadline = time.monotonic() + LIMIT_SEC
    while not holds():
        assert process.poll() is None, "it ended too soon to be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
