"""Locks a folder in shared storage, where no file can be locked, by a lease that is renewed."""

import contextlib
import json
import os
import socket
import threading
import time
from typing import Any, Self

from configs.errors import SettingsError, TesseraError
from data.object_store import ObjectStore
from train.record.run_folder import RunFolder

_NAME = "lease.json"
_RENEWED_SEC = 10.0
_EXPIRES_SEC = 30.0
"""A lease unchanged for so long has no holder: it would have been renewed twice."""
_RACE_SEC = 1.0
"""All who take a free lease at once have written it after this time; the last one has it."""


class Lease:
    """Holds shared storage for one process, renewed in the background until it is closed.

    No clock of another machine is trusted: a lease is held if it changes while it is watched. A
    process that was suspended for so long that another took over must not write: `check` raises.
    """

    def __init__(self, store: ObjectStore, folder: RunFolder):
        """The caller has locked the run folder."""
        self._store = store
        self._owner = {"host": socket.gethostname(), "run_dir": str(folder.path.absolute())}
        self._token = f"{os.getpid()} {time.time_ns()}"
        self._number = 0
        self._loss: SettingsError | None = None
        self._seen_at = 0.0
        """When the lease was last read, and held."""
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Self:
        """Takes the lease; SettingsError if another process holds it."""
        found = self._read()
        # One of this very run folder, which the caller has locked, is of a process that has ended.
        if found is not None and not self._owner.items() <= found.items():
            self._wait_until_expired(found)
        self._write()
        time.sleep(_RACE_SEC)
        found = self._read()
        if found is None or found.get("token") != self._token:
            raise self._held_elsewhere(found)
        self._seen_at = time.monotonic()
        self._renewing.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._renewing.join()
        with contextlib.suppress(TesseraError):  # it expires
            self.check()
            self._store.remove(_NAME)

    def check(self) -> None:
        """Raises SettingsError if another process has taken over.

        If it was not renewed in time, because this process was suspended or the storage did not
        answer, the lease is read again first.
        """
        if self._loss is None and time.monotonic() - self._seen_at > _EXPIRES_SEC:
            self._reread()
        if self._loss is not None:
            raise self._loss

    def _reread(self) -> None:
        found = self._read()
        if found is not None and found.get("token") != self._token:
            self._loss = self._held_elsewhere(found)
        else:
            self._seen_at = time.monotonic()

    def _wait_until_expired(self, found: dict[str, Any]) -> None:
        """Returns when a lease has expired; SettingsError if it is renewed meanwhile."""
        deadline = time.monotonic() + _EXPIRES_SEC
        while time.monotonic() < deadline:
            time.sleep(_EXPIRES_SEC / 30)
            now = self._read()
            if now is None:
                return
            if now != found:
                raise self._held_elsewhere(now)

    def _renew(self) -> None:
        while not self._ended.wait(_RENEWED_SEC):
            with contextlib.suppress(TesseraError):  # out of reach: the next copy fails too
                self._reread()
                if self._loss is not None:
                    return
                self._write()

    def _read(self) -> dict[str, Any] | None:
        content = self._store.read_if_exists(_NAME)
        try:
            return None if content is None else dict(json.loads(content))
        except (ValueError, TypeError):
            return {}

    def _write(self) -> None:
        self._number += 1
        content = {**self._owner, "token": self._token, "number": self._number}
        self._store.write(_NAME, json.dumps(content).encode())

    def _held_elsewhere(self, found: dict[str, Any] | None) -> SettingsError:
        host, run_dir = ((found or {}).get(key, "?") for key in ("host", "run_dir"))
        return SettingsError(
            f"{self._store.address(_NAME)}: the run in {run_dir} on {host} writes there now: wait "
            "until it ends, stop it, or give another checkpoint.durable_dir"
        )
