"""Copies of checkpoints in a folder elsewhere and in a real S3-compatible server."""

import dataclasses
import hashlib
import json
import shutil
import threading
from pathlib import Path

import pytest
from commands import finish, start, wait_until
from s3_server import S3Server, kill_when, s3_server, start_code
from small_checkpoints import CONFIG, RUN, flip_byte, progress, small_state, write_checkpoint
from small_runs import content_of, tiny_run, write_text

import train.checkpoints.durable_storage
from configs.errors import IntegrityError, SettingsError, Unavailable
from configs.flat_settings import flatten
from configs.run import CheckpointConfig
from data.object_store import ObjectStore
from train.checkpoints.context import CheckpointContext
from train.checkpoints.durable_storage import DurableTier
from train.checkpoints.folders import checkpoint_steps
from train.checkpoints.manifest import MANIFEST
from train.checkpoints.recovery import newest_valid
from train.checkpoints.save import Checkpoints
from train.checkpoints.verify import verify
from train.record.run_folder import RunFolder


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(s3: S3Server, request: pytest.FixtureRequest) -> str:
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:20]
    return s3.make_bucket(f"test-{name}") + "/run"


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each kind of storage in turn."""
    if request.param == "s3":
        return request.getfixturevalue("bucket")
    return str(tmp_path / "durable")


@pytest.fixture
def run(tmp_path: Path):
    """A run folder that is held, as it is where copies are made."""
    folder = RunFolder(tmp_path / "run")
    with folder.held():
        folder.begin(RUN, {"jax": "0"})
        folder.add_event("started")
        yield folder


def damage(url: str, s3: S3Server, name: str) -> None:
    """Changes one bit of a file in the storage."""
    if url.startswith("s3://"):
        content = bytearray(s3.get(f"{url}/{name}"))
        content[len(content) // 2] ^= 1
        s3.put(f"{url}/{name}", bytes(content))
    else:
        flip_byte(Path(url) / name)


def largest_file(checkpoint: Path) -> str:
    """Returns the path below a checkpoint of the file with most bytes."""
    files = verify(checkpoint.parent, int(checkpoint.name)).files
    return max(files, key=lambda name: files[name].bytes)


def test_what_is_fetched_is_what_was_copied(url, tmp_path):
    durable, checkpoint = DurableTier(url), write_checkpoint(tmp_path / "a", 7)
    durable.copy(checkpoint)
    assert durable.steps() == [7]
    durable.fetch(7, tmp_path / "b")
    assert content_of(tmp_path / "b") == content_of(tmp_path / "a")


def test_a_copy_replaces_one_of_the_same_step(url, tmp_path):
    durable = DurableTier(url)
    durable.copy(write_checkpoint(tmp_path / "old", 3))
    checkpoints = Checkpoints(CheckpointContext(tmp_path / "new", CONFIG), flatten(RUN))
    checkpoints.save(small_state(99.0), progress(3))
    checkpoints.close()
    durable.copy(tmp_path / "new" / "3")
    durable.fetch(3, tmp_path / "b")
    assert content_of(tmp_path / "b") == content_of(tmp_path / "new")


def test_a_damaged_checkpoint_is_not_copied(tmp_path):
    durable = DurableTier(str(tmp_path / "durable"))
    checkpoint = write_checkpoint(tmp_path / "a", 7)
    flip_byte(checkpoint / largest_file(checkpoint))
    with pytest.raises(IntegrityError, match="sha256"):
        durable.copy(checkpoint)
    assert durable.steps() == []


def test_a_damaged_copy_is_refused_and_leaves_nothing(url, s3, tmp_path):
    durable, checkpoint = DurableTier(url), write_checkpoint(tmp_path / "a", 7)
    durable.copy(checkpoint)
    damage(url, s3, f"checkpoints/7/{largest_file(checkpoint)}")
    with pytest.raises(IntegrityError, match=r"checkpoints/7/.*sha256"):
        durable.fetch(7, tmp_path / "b")
    assert content_of(tmp_path / "b") == {}


def test_a_killed_copy_never_counts(s3, bucket, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "a", 7)
    module = "train.checkpoints.durable_storage"
    code = f"from {module} import DurableTier as D\nD(arguments[0]).copy(arguments[1])"
    copying = start_code(code, bucket, checkpoint, stall_after=3)
    kill_when(copying, lambda: len(s3.keys(bucket)) >= 3)
    durable = DurableTier(bucket)
    assert durable.steps() == []
    durable.copy(checkpoint)
    assert durable.steps() == [7]
    durable.fetch(7, tmp_path / "b")
    assert content_of(tmp_path / "b") == content_of(tmp_path / "a")


def test_the_newest_valid_one_is_found_wherever_it_is(url, tmp_path):
    durable, here = DurableTier(url), tmp_path / "run" / "checkpoints"
    told: list[str] = []
    context = CheckpointContext(
        here, CONFIG, durable=durable, emit=lambda event, **_: told.append(event)
    )
    for step in (2, 4):
        durable.copy(write_checkpoint(tmp_path / "elsewhere", step))
    shutil.copytree(tmp_path / "elsewhere" / "2", here / "2")

    found = newest_valid(context)
    assert found is not None
    assert (found.progress.step, told) == (4, ["fetched"])
    assert verify(here, 4) == found

    # Damaged here, it is fetched again; damaged there too, the older one is taken.
    flip_byte(here / "4" / largest_file(tmp_path / "elsewhere" / "4"))
    assert newest_valid(context) == found
    assert told == ["fetched", "quarantined", "fetched"]
    assert sorted(path.name for path in here.iterdir()) == ["2", "4", "4.bad"]


def test_a_local_checkpoint_is_preferred_to_its_copy(tmp_path):
    durable, here = DurableTier(str(tmp_path / "durable")), tmp_path / "checkpoints"
    durable.copy(write_checkpoint(here, 4))
    told: list[str] = []
    context = CheckpointContext(
        here, CONFIG, durable=durable, emit=lambda event, **_: told.append(event)
    )
    assert newest_valid(context) == verify(here, 4)
    assert told == []


def test_copies_are_made_of_those_that_are_due_and_of_the_last(url, run):
    config = CheckpointConfig(
        every_steps=1, num_last=2, num_best=0, durable_dir=url, durable_every_steps=2
    )
    durable = DurableTier(url)
    told: list[tuple[str, int]] = []
    context = CheckpointContext(
        run.checkpoints,
        config,
        durable=durable,
        emit=lambda event, **details: told.append((event, details["step"])),
    )
    checkpoints = Checkpoints(context, flatten(RUN))
    for step in range(1, 8):
        checkpoints.save(small_state(step), progress(step))
        checkpoints.wait()
        copying = checkpoints._mirror._copied
        if copying is not None:
            copying.result()
    checkpoints.close()
    assert [step for event, step in told if event == "copied"] == [2, 4, 6, 7]
    assert durable.steps() == [6, 7]
    assert checkpoint_steps(run.checkpoints) == [6, 7]


def test_a_checkpoint_that_is_being_copied_is_not_removed(run, monkeypatch):
    """A copy may take longer than the checkpoints that follow."""
    durable, may_go_on = DurableTier(str(run.path / "durable")), threading.Event()
    copy = durable.copy
    monkeypatch.setattr(durable, "copy", lambda path: (may_go_on.wait(30), copy(path)))
    config = dataclasses.replace(CONFIG, num_last=1, num_best=0)
    checkpoints = Checkpoints(
        CheckpointContext(run.checkpoints, config, durable=durable), flatten(RUN)
    )
    for step in range(1, 4):
        checkpoints.save(small_state(step), progress(step))
        checkpoints.wait()
    assert checkpoint_steps(run.checkpoints) == [1, 3]
    may_go_on.set()
    checkpoints.close()
    assert durable.steps() == [3]  # num_last=1 holds there too


def test_storage_that_cannot_be_written_fails_the_copy_and_not_the_save(run, s3):
    bucket = s3.make_bucket("test-that-goes-away")
    told: list[str] = []
    context = CheckpointContext(
        run.checkpoints,
        CONFIG,
        durable=DurableTier(f"{bucket}/run"),
        emit=lambda event, **_: told.append(event),
    )
    s3.client.delete_bucket(Bucket=bucket.removeprefix("s3://"))
    checkpoints = Checkpoints(context, flatten(RUN))
    checkpoints.save(small_state(), progress(1))
    checkpoints.close()
    assert told == ["saved", "copy_failed", "copy_failed"]  # tried once more as it ends
    assert checkpoint_steps(run.checkpoints) == [1]


def test_a_new_machine_gets_the_small_files_of_the_run(url, run, tmp_path):
    durable = DurableTier(url)
    run.metrics.write_text('{"step": 1}\n')
    durable.copy_small(run)
    other = RunFolder(tmp_path / "other")
    durable.fetch_small(other)
    assert other.exists
    for path in run.small_files:
        assert (other.path / path.name).read_bytes() == path.read_bytes()


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("_RENEWED_SEC", 0.1), ("_EXPIRES_SEC", 1.5), ("_RACE_SEC", 0.1)):
        monkeypatch.setattr(train.checkpoints.durable_storage, name, seconds)


@pytest.mark.usefixtures("short_lease")
def test_storage_serves_one_run_at_a_time(url, run, tmp_path):
    other = RunFolder(tmp_path / "other")
    with DurableTier(url).held(run):
        with (
            pytest.raises(SettingsError, match="durable_dir") as refused,
            DurableTier(url).held(other),
        ):
            pass
        assert str(run.path) in str(refused.value)
    with DurableTier(url).held(other):
        pass


@pytest.mark.usefixtures("short_lease")
def test_the_lease_of_a_killed_run_expires_and_its_own_folder_need_not_wait(url, run, tmp_path, s3):
    with DurableTier(url).held(run):
        left = ObjectStore(url).read("lease.json")
    for folder in (run, RunFolder(tmp_path / "other")):
        ObjectStore(url).write("lease.json", left)
        with DurableTier(url).held(folder):
            pass


@pytest.mark.usefixtures("short_lease")
def test_a_run_that_lost_its_lease_writes_no_more(run, tmp_path):
    durable = DurableTier(str(tmp_path / "durable"))
    checkpoint = write_checkpoint(run.checkpoints, 1)
    with durable.held(run):
        durable.copy(checkpoint)
        theirs = {"token": "another", "host": "far", "run_dir": "/r"}
        ObjectStore(durable.url).write("lease.json", json.dumps(theirs).encode())
        assert durable._lease is not None
        durable._lease._renewing.join(10)
        for write in (lambda: durable.copy(checkpoint), lambda: durable.remove(1)):
            with pytest.raises(SettingsError, match="far"):
                write()
    assert durable.steps() == [1]
    assert ObjectStore(durable.url).info("lease.json") is not None


def test_the_copies_of_another_run_are_refused(url, run, tmp_path):
    DurableTier(url).copy_small(run)
    other = RunFolder(tmp_path / "other")
    with other.held():
        other.begin(RUN, {})
        other.add_event("started", command="another")
        with (
            pytest.raises(SettingsError, match="durable_dir") as refused,
            DurableTier(url).held(other),
        ):
            pass
    assert str(other.path) in str(refused.value)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "state/../../outside"])
def test_a_manifest_that_names_a_file_outside_is_refused(tmp_path, name):
    durable = DurableTier(str(tmp_path / "durable"))
    checkpoint = write_checkpoint(tmp_path / "a", 7)
    durable.copy(checkpoint)
    manifest = tmp_path / "durable" / "checkpoints" / "7" / MANIFEST
    manifest.write_text(manifest.read_text().replace("state/_METADATA", name))
    with pytest.raises(IntegrityError):
        durable.fetch(7, tmp_path / "b")
    assert not (tmp_path / "outside").exists()


@pytest.mark.slow
def test_a_lost_machine_costs_nothing_but_the_steps_since_the_last_copy(bucket, tmp_path):
    """The run folder is gone; the same command goes on from the copies, bit for bit."""
    write_text(tmp_path)
    more = ("--eval.every_steps", "None", "--sample.every_steps", "None", "--train.num_steps", "20")
    code, output = finish(start(tmp_path, "train", *tiny_run("--run-dir", "whole", *more)))
    assert code == 0, output
    command = tiny_run("--run-dir", "run", "--checkpoint.durable_dir", bucket, *more)
    killed = start(tmp_path, "train", *command)
    wait_until(lambda: max(DurableTier(bucket).steps(), default=0) >= 10, killed)
    killed.kill()
    killed.communicate()
    shutil.rmtree(tmp_path / "run")
    code, output = finish(start(tmp_path, "train", *command))
    assert code == 0, output
    whole, run = (RunFolder(tmp_path / name) for name in ("whole", "run"))
    events = {event["event"]: event for event in run.read_events()}
    assert events["resumed"]["step"] >= 10
    last = whole.read_events()[-1]
    assert events["finished"]["params_sha256"] == last["params_sha256"]
    assert DurableTier(bucket).steps()[-1] == 20


@pytest.mark.usefixtures("short_lease")
def test_a_lease_that_is_lost_while_files_are_copied_leaves_no_manifest(run, tmp_path, monkeypatch):
    durable = DurableTier(str(tmp_path / "durable"))
    checkpoint = write_checkpoint(run.checkpoints, 1)
    put, theirs = ObjectStore.put, [{"token": "another", "host": "far", "run_dir": "/r"}]

    def steal_and_put(store: ObjectStore, name: str, path: Path) -> None:
        if theirs:
            store.write("lease.json", json.dumps(theirs.pop()).encode())
        put(store, name, path)
        assert durable._lease is not None
        durable._lease._renewing.join()  # which looks at the lease, and ends where it is lost

    with durable.held(run):
        monkeypatch.setattr(ObjectStore, "put", steal_and_put)
        with pytest.raises(SettingsError, match="far"):
            durable.copy(checkpoint)
    assert durable.steps() == []


def test_a_process_that_was_suspended_reads_the_lease_before_it_writes(run, tmp_path, monkeypatch):
    """It was frozen, and its renewals too, while another one took over."""
    monkeypatch.setattr(train.checkpoints.durable_storage, "_RACE_SEC", 0.0)
    durable = DurableTier(str(tmp_path / "durable"))
    checkpoint = write_checkpoint(run.checkpoints, 1)
    with durable.held(run):
        theirs = {"token": "another", "host": "far", "run_dir": "/r"}
        ObjectStore(durable.url).write("lease.json", json.dumps(theirs).encode())
        assert durable._lease is not None
        durable._lease._seen_at -= 1000
        with pytest.raises(SettingsError, match="far"):
            durable.copy(checkpoint)
    assert durable.steps() == []


STALLED = """
import time
from data.object_store import ObjectStore
from train.checkpoints.durable_storage import DurableTier
from train.record.run_folder import RunFolder
read = ObjectStore.read_if_exists
ObjectStore.read_if_exists = lambda s, n: time.sleep(99) if n == "events.jsonl" else read(s, n)
DurableTier(str(arguments[0])).fetch_small(RunFolder(arguments[1]))
"""


def test_what_a_killed_fetch_of_the_small_files_left_is_no_strange_folder(url, run, tmp_path):
    durable = DurableTier(url)
    durable.copy_small(run)
    other = RunFolder(tmp_path / "other")
    kill_when(start_code(STALLED, url, other.path), lambda: other.environment.exists())
    assert not other.exists
    other.check_free()
    durable.fetch_small(other)
    assert other.exists
    for path in run.small_files:
        if path.exists():
            assert (other.path / path.name).read_bytes() == path.read_bytes()


def test_files_that_were_fetched_are_kept_for_the_next_try(url, tmp_path, monkeypatch):
    durable = DurableTier(url)
    checkpoint, here = write_checkpoint(tmp_path / "a", 7), tmp_path / "b"
    durable.copy(checkpoint)
    fetched: list[str] = []
    getting = ObjectStore.fetching

    def get(store: ObjectStore, name: str, *more):
        if len(fetched) == 5:
            raise Unavailable("the network is gone")
        fetched.append(name)
        return getting(store, name, *more)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "fetching", get)
        patch.setattr("data.object_store._NUM_STREAMS", 1)
        with pytest.raises(Unavailable):
            durable.fetch(7, here)
    assert checkpoint_steps(here) == []
    before, fetched = set(fetched), []

    def get_again(store: ObjectStore, name: str, *more):
        fetched.append(name)
        return getting(store, name, *more)

    monkeypatch.setattr(ObjectStore, "fetching", get_again)
    durable.fetch(7, here)
    assert len(before) == 5
    assert not before & set(fetched)
    assert content_of(here) == content_of(tmp_path / "a")
