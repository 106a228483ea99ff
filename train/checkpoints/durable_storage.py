"""Checkpoints of a run in durable storage: a folder of another disk, or a URL (s3:// gs://).

URL/ has the small files of the run, checkpoints/N/ as a run folder has them, and lease.json, which
names the process that writes here. The manifest of a checkpoint is written last and removed first,
so that one half copied or half removed never counts. What a rollback set aside is in
checkpoints/N.aside/, which is never restored.
"""

import contextlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from configs.errors import IntegrityError, SettingsError, TesseraError
from configs.require import require
from configs.run import CheckpointConfig
from data.atomic_files import atomic_write
from data.object_store import ObjectStore, in_parallel
from train.checkpoints.folders import ASIDE, FETCHING, finish_save, surplus
from train.checkpoints.manifest import MANIFEST, Manifest, manifest_content, parse_manifest
from train.checkpoints.verify import check_file, verify
from train.record.run_folder import RunFolder

_PROBE = ".can-be-written"
_LEASE = "lease.json"
_RENEWED_SEC = 10.0
_EXPIRES_SEC = 30.0
"""A lease unchanged for so long has no holder: it would have been renewed twice."""
_RACE_SEC = 1.0
"""All who take a free lease at once have written it after this time; the last one has it."""


class DurableTier:
    """The checkpoints of one run in durable storage."""

    def __init__(self, url: str):
        """Raises SettingsError if this kind of storage is not supported."""
        self.url = url
        self._store = ObjectStore(url)
        self._lease: Lease | None = None

    @property
    def _leased(self) -> ObjectStore:
        """The storage to write to; SettingsError if another run writes there now."""
        if self._lease is not None:
            self._lease.check()
        return self._store

    def check_writable(self) -> None:
        """Raises SettingsError unless files can be written here."""
        self._store.write(_PROBE, b"")
        self._store.remove(_PROBE)

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, oldest first."""
        found = (Path(name).parts for name in self._store.names("checkpoints"))
        return sorted(
            int(parts[1])
            for parts in found
            if len(parts) == 3 and parts[2] == MANIFEST and parts[1].isdigit()
        )

    def read_manifest(self, step: int) -> Manifest:
        name = _file(step, MANIFEST)
        return parse_manifest(self._store.read(name), self._store.address(name))

    def copy(self, checkpoint: Path) -> None:
        """Copies a local checkpoint here, in place of one of the same step.

        Raises:
            IntegrityError: it is damaged, and nothing is copied, or a copy is damaged.
            SettingsError: the storage refuses it, or another run writes here now.
        """
        step = int(checkpoint.name)
        manifest = verify(checkpoint.parent, step)
        content = (checkpoint / MANIFEST).read_bytes()
        if self._leased.read_if_exists(_file(step, MANIFEST)) == content:
            return
        self.remove(step)
        in_parallel(
            lambda name: self._leased.put(_file(step, name), checkpoint / name), manifest.files
        )
        self._leased.write(_file(step, MANIFEST), content)

    def rollback(self, manifest: Manifest) -> None:
        """Sets the checkpoints of later steps aside, and writes an amended manifest.

        Raises:
            TesseraError: the storage refuses it, or another run writes here now.
        """
        step = manifest.progress.step
        self.check_writable()  # an unmounted disk looks like one without checkpoints
        for later in reversed([later for later in self.steps() if later > step]):
            names = self._leased.names(f"checkpoints/{later}")
            for name in sorted(names, key=lambda name: not name.endswith(f"/{MANIFEST}")):
                rest = name.removeprefix(f"checkpoints/{later}/")
                self._store.move(name, f"checkpoints/{later}{ASIDE}/{rest}")
        if step in self.steps():
            self._leased.write(_file(step, MANIFEST), manifest_content(manifest))

    def remove_aside(self) -> None:
        """Removes what rollbacks have set aside, after a later copy."""
        names = [n for n in self._store.names("checkpoints") if Path(n).parts[1].endswith(ASIDE)]
        in_parallel(lambda name: self._leased.remove(name), names)

    def copy_small(self, folder: RunFolder) -> None:
        """Copies the small files of a run as they are now; raises SettingsError as `copy`."""
        for path in folder.small_files:
            if path.exists():
                self._leased.write(path.name, path.read_bytes())

    def fetch(self, step: int, folder: Path) -> None:
        """Copies a checkpoint from here to folder/N.

        Files that an earlier try fetched are kept if they match the manifest.

        Raises:
            IntegrityError: the copy is damaged; nothing is left in the folder.
            SettingsError: the storage cannot be read, or the disk is full.
            Unavailable: the storage does not answer; what was fetched stays for the next try.
        """
        manifest = self.read_manifest(step)
        fetching = folder / f"{step}{FETCHING}"
        fetching.mkdir(parents=True, exist_ok=True)

        def get(name: str) -> None:
            path, entry = fetching / name, manifest.files[name]
            with contextlib.suppress(IntegrityError):
                check_file(path, str(path), entry)
                return
            with self._store.fetching(_file(step, name), fetching / ".parts", path) as part:
                check_file(part, self._store.address(_file(step, name)), entry)

        try:
            in_parallel(get, manifest.files)
        except IntegrityError:
            shutil.rmtree(fetching, ignore_errors=True)
            raise
        shutil.rmtree(fetching / ".parts", ignore_errors=True)
        finish_save(fetching, manifest)

    def fetch_small(self, folder: RunFolder) -> None:
        """Copies the small files that are here, if any, to a new run folder.

        One that a killed process left half fetched is fetched again.
        """
        if self._store.info(folder.config.name) is None:
            return
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.fetching.touch()
        for path in folder.small_files:  # the settings last: they make it a run folder
            content = self._store.read_if_exists(path.name)
            if content is not None:
                with atomic_write(path) as temporary:
                    temporary.write_bytes(content)
        folder.fetching.unlink()

    def remove(self, step: int) -> None:
        """Removes a checkpoint, or the remains of one; its manifest first."""
        self._leased.remove(_file(step, MANIFEST))
        names = self._store.names(f"checkpoints/{step}")
        in_parallel(lambda name: self._leased.remove(name), names)

    def remove_surplus(self, config: CheckpointConfig) -> None:
        """Removes the checkpoints that the settings do not keep."""
        for step in surplus(self.steps(), self.read_manifest, config):
            self.remove(step)

    @contextlib.contextmanager
    def held(self, folder: RunFolder) -> Iterator[None]:
        """Locks the storage for the run of a folder, which this process has locked already.

        Raises:
            SettingsError: another process has locked it, or it has the copies of another run.
        """
        copied = self._store.read_if_exists(folder.events.name)
        if copied is not None and folder.events.exists():
            own = folder.events.read_bytes()
            require(
                own.partition(b"\n")[0] == copied.partition(b"\n")[0],  # its first start
                f"checkpoint.durable_dir={self.url} holds the checkpoints of another run than "
                f"--run-dir {folder.path}: change --run-dir or checkpoint.durable_dir",
            )
        with Lease(self._store, folder) as self._lease:
            yield


def _file(step: int, name: str) -> str:
    return f"checkpoints/{step}/{name}"


class Lease:
    """Holds shared storage, where no file can be locked, for one process until it is closed.

    It is renewed in the background. No clock of another machine is trusted: a lease is held if it
    changes while it is watched. A process that was suspended for so long that another took over
    must not write: `check` raises.
    """

    def __init__(self, store: ObjectStore, folder: RunFolder):
        """The caller has locked the run folder."""
        self._store = store
        self._owner = {"host": socket.gethostname(), "run_dir": str(folder.path.absolute())}
        self._token = f"{os.getpid()} {time.time_ns()}"
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
            self._store.remove(_LEASE)

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
        content = self._store.read_if_exists(_LEASE)
        try:
            return None if content is None else dict(json.loads(content))
        except (ValueError, TypeError):
            return {}

    def _write(self) -> None:
        content = {**self._owner, "token": self._token, "renewed": time.time_ns()}
        self._store.write(_LEASE, json.dumps(content).encode())

    def _held_elsewhere(self, found: dict[str, Any] | None) -> SettingsError:
        host, run_dir = ((found or {}).get(key, "?") for key in ("host", "run_dir"))
        return SettingsError(
            f"{self._store.address(_LEASE)}: the run in {run_dir} on {host} writes there now: wait "
            "until it ends, stop it, or give another checkpoint.durable_dir"
        )
