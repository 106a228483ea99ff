"""Who writes to a folder in shared storage, where no file can be locked."""

import json
import os
import socket
import threading
import time
from types import TracebackType
from typing import Any, Self

from configs.errors import SettingsError, TesseraError
from data.object_store import ObjectStore
from train.record.run_folder import RunFolder

_NAME = "lease.json"
_RENEWED_SEC = 10.0
_EXPIRES_SEC = 30.0
"""A lease that stays as it is for so long has no holder: it would have been renewed twice."""
_RACE_SEC = 1.0
"""Of several who take a free lease at once, all have written it by then, and the last has it."""


class Lease:
    """Holds shared storage for one process, renewed in the background until it is closed.

    No clock of another machine is trusted: what counts is whether a lease changes while one looks.
    A process that was out for so long that another took over must write no more: `check` says so.
    """

    def __init__(self, store: ObjectStore, folder: RunFolder):
        """The caller holds the run folder."""
        self._store = store
        self._owner = {"host": socket.gethostname(), "run_dir": str(folder.path.absolute())}
        self._token = f"{os.getpid()} {time.time_ns()}"
        self._number = 0
        self._loss: str | None = None
        self._seen_at = 0.0
        """When it was last found to be ours."""
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Self:
        """Takes the lease; SettingsError if another process holds it."""
        there = self._read()
        # Where it is that of this very folder, whose lock the caller has, its holder has ended.
        if there is not None and not self._owner.items() <= there.items():
            self._wait_for_the_end_of(there)
        self._write()
        time.sleep(_RACE_SEC)
        there = self._read()
        if there is None or there.get("token") != self._token:
            raise self._is_held_by(there)
        self._seen_at = time.monotonic()
        self._renewing.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._renewing.join()
        try:
            self.check()
            self._store.remove(_NAME)
        except TesseraError:  # it expires
            pass

    def check(self) -> None:
        """Raises SettingsError if another process has taken over.

        Where it was not renewed in time, for this process was out or the storage did not answer,
        it looks again before it says that nobody has.
        """
        if self._loss is None and time.monotonic() - self._seen_at > _EXPIRES_SEC:
            self._look()
        if self._loss is not None:
            raise SettingsError(self._loss)

    def _look(self) -> None:
        there = self._read()
        if there is not None and there.get("token") != self._token:
            self._loss = str(self._is_held_by(there))
        else:
            self._seen_at = time.monotonic()

    def _wait_for_the_end_of(self, there: dict[str, Any]) -> None:
        """Returns when a lease has not changed for so long that nobody holds it."""
        deadline = time.monotonic() + _EXPIRES_SEC
        while time.monotonic() < deadline:
            time.sleep(_EXPIRES_SEC / 30)
            now = self._read()
            if now is None:
                return
            if now != there:
                raise self._is_held_by(now)

    def _renew(self) -> None:
        while not self._ended.wait(_RENEWED_SEC):
            try:
                self._look()
                if self._loss is not None:
                    return
                self._write()
            except TesseraError:  # the storage is out of reach, which the next copy will tell
                continue

    def _read(self) -> dict[str, Any] | None:
        content = self._store.read_if_exists(_NAME)
        if content is None:
            return None
        try:
            return dict(json.loads(content))
        except (ValueError, TypeError):
            return {}

    def _write(self) -> None:
        self._number += 1
        content = {**self._owner, "token": self._token, "number": self._number}
        self._store.write(_NAME, json.dumps(content).encode())

    def _is_held_by(self, there: dict[str, Any] | None) -> SettingsError:
        host, run_dir = ((there or {}).get(key, "?") for key in ("host", "run_dir"))
        return SettingsError(
            f"{self._store.address(_NAME)}: the run in {run_dir} on {host} writes there now: wait "
            "for it, stop it, or give another checkpoint.durable_dir"
        )
