"""Copies between a folder and a real S3-compatible server: whole, checked, or not at all."""

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ROOT
from parts import slowly
from s3_server import LIMIT_SEC, S3Server, kill_when, s3_server, start
from s3fs import S3FileSystem

from configs.errors import IntegrityError, SettingsError, Unavailable
from data.atomic_files import BYTES_MOVED
from data.object_store import ObjectStore, copy_counted, is_remote
from data.remote_folders import (
    MANIFEST,
    fetch_files,
    fetch_folder,
    is_prepared,
    manifest_files,
    push_folder,
)

NUM_MANY, NUM_BEFORE_KILL = 24, 10


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(s3, request) -> str:
    """The URL of a bucket of this test alone."""
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:20]
    return s3.make_bucket(f"test-{name}")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_prepared(folder: Path, contents: dict[str, bytes]) -> Path:
    """Makes what a prepared folder is to these functions: files, and a manifest of them."""
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    shards = [{"file": name, "sha256": sha256(content)} for name, content in contents.items()]
    (folder / MANIFEST).write_text(json.dumps({"splits": {"train": {"shards": shards}}}))
    return folder


def many_files() -> dict[str, bytes]:
    return {f"{number:03}.bin": bytes([number]) * 100_000 for number in range(NUM_MANY)}


def contents_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def arrived_in(cache: Path) -> list[str]:
    """Returns the files that have their name, without those in the making."""
    files = (path.relative_to(cache) for path in cache.rglob("*.bin"))
    return [path.name for path in files if not path.parts[0].endswith(".parts")]


def manifests_in(folder: Path) -> list[Path]:
    return list(folder.rglob(MANIFEST))


def test_a_path_with_a_scheme_other_than_file_is_remote():
    for path in ("s3://bucket/folder", "gs://bucket/*.txt", "S3://bucket", "https://host/a.txt"):
        assert is_remote(path)
    for path in ("file:///folder", "File:///folder", "/folder", "folder/s3://x", "s3:/x", "stdlib"):
        assert not is_remote(path)


def test_a_manifest_names_a_file_wherever_it_stands():
    manifest = {
        "tokenizer": {"file": "tokenizer", "sha256": "0a", "kind": "bytes"},
        "splits": {"train": {"shards": [{"file": "b/c", "sha256": "1b"}], "file": "no digest"}},
        "extra": [[{"sha256": "2c", "file": "a", "inner": [{"file": "d", "sha256": "3d"}]}]],
    }
    assert manifest_files(manifest) == {"a": "2c", "b/c": "1b", "d": "3d", "tokenizer": "0a"}


@pytest.mark.parametrize(
    "name", ["../../x", "a/../../x", "/etc/x", "", ".", "a/", "a//b", "./a", "a\0", MANIFEST, None]
)
def test_a_manifest_that_names_what_is_no_file_of_its_folder_is_refused(name):
    with pytest.raises(IntegrityError, match="must not name the file"):
        manifest_files({"shards": [{"file": name, "sha256": sha256(b"x")}]})


def test_a_fetch_of_a_file_outside_the_folder_is_refused(s3, bucket, tmp_path):
    manifest = {"shards": [{"file": "../../x", "sha256": sha256(b"x")}]}
    s3.put(f"{bucket}/{MANIFEST}", json.dumps(manifest).encode())
    s3.put(f"{bucket}/../../x", b"x")
    with pytest.raises(
        IntegrityError, match=rf"{MANIFEST} .* must not name the file '\.\./\.\./x'"
    ):
        fetch_folder(bucket, tmp_path / "deep" / "cache")
    assert contents_of(tmp_path) == {}


def test_a_manifest_that_gives_two_digests_of_a_file_is_refused():
    with pytest.raises(IntegrityError, match="two digests of the file 'a'"):
        manifest_files({"shards": [{"file": "a", "sha256": "0"}, {"file": "a", "sha256": "1"}]})


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000])
def test_a_manifest_that_is_not_json_is_refused(s3, bucket, tmp_path, content):
    s3.put(f"{bucket}/{MANIFEST}", content)
    with pytest.raises(IntegrityError, match=rf"{bucket}/{MANIFEST} is not a manifest"):
        fetch_folder(bucket, tmp_path)


@pytest.mark.parametrize(
    "contents", [{"a.bin": b"abc", "deep/er/b.bin": bytes(range(256)), "empty": b""}, {}]
)
def test_what_is_pushed_and_fetched_elsewhere_is_byte_for_byte_the_same(
    s3, bucket, tmp_path, contents
):
    here = write_prepared(tmp_path / "here", contents)
    (here / "not in the manifest").write_bytes(b"is not copied")
    push_folder(here, f"{bucket}/there/")
    there = fetch_folder(f"{bucket}/there", tmp_path / "cache")
    manifest = (here / MANIFEST).read_bytes()
    assert contents_of(there) == {**contents, MANIFEST: manifest}
    assert there == tmp_path / "cache" / f"remote-{sha256(manifest)[:16]}"
    assert sorted(s3.keys(f"{bucket}/there")) == sorted([*contents, MANIFEST])
    assert not list((tmp_path / "cache").glob("*.parts"))


def test_a_flipped_byte_on_the_server_is_named_and_leaves_no_manifest(s3, bucket, tmp_path):
    push_folder(write_prepared(tmp_path / "here", {"a.bin": b"abc", "b.bin": b"abc"}), bucket)
    s3.put(f"{bucket}/b.bin", b"abd")
    with pytest.raises(IntegrityError, match=f"{bucket}/b.bin has sha256 {sha256(b'abd')[:12]}"):
        fetch_folder(bucket, tmp_path / "cache")
    assert manifests_in(tmp_path / "cache") == []
    assert b"abd" not in contents_of(tmp_path / "cache").values()


def test_after_a_damaged_file_no_more_are_fetched(s3, bucket, tmp_path):
    push_folder(write_prepared(tmp_path / "here", many_files()), bucket)
    s3.put(f"{bucket}/000.bin", b"damaged")
    with pytest.raises(IntegrityError, match=r"000\.bin has sha256"):
        fetch_folder(bucket, tmp_path / "cache")
    assert len(arrived_in(tmp_path / "cache")) < NUM_MANY - 1


def test_a_flipped_byte_here_is_not_pushed(s3, bucket, tmp_path):
    here = write_prepared(tmp_path, {"a.bin": b"abc"})
    (here / "a.bin").write_bytes(b"abd")
    with pytest.raises(IntegrityError, match=r"a\.bin has sha256"):
        push_folder(here, bucket)
    (here / "a.bin").unlink()
    with pytest.raises(IntegrityError, match=r"a\.bin has sha256 of no file"):
        push_folder(here, bucket)
    assert s3.keys(bucket) == []


def test_a_killed_fetch_goes_on_where_it_was(s3, bucket, tmp_path):
    contents = many_files()
    push_folder(write_prepared(tmp_path / "here", contents), bucket)
    process = start("fetch_folder", bucket, tmp_path / "cache", stall_after=NUM_BEFORE_KILL)
    kill_when(process, lambda: len(arrived_in(tmp_path / "cache")) == NUM_BEFORE_KILL)
    arrived = arrived_in(tmp_path / "cache")
    assert manifests_in(tmp_path / "cache") == []
    there = fetch_folder(bucket, tmp_path / "cache")
    assert contents_of(there) == contents_of(tmp_path / "here")
    assert [s3.requests("GET", f"{bucket}/{name}") for name in arrived] == [1] * len(arrived)
    assert not list((tmp_path / "cache").glob("*.parts"))


def test_a_damaged_file_of_a_copy_that_is_not_whole_is_fetched_again(s3, bucket, tmp_path):
    push_folder(write_prepared(tmp_path / "here", {"a.bin": b"abc"}), bucket)
    there = fetch_folder(bucket, tmp_path / "cache")
    (there / MANIFEST).unlink()
    (there / "a.bin").write_bytes(b"abd")
    assert fetch_folder(bucket, tmp_path / "cache") == there
    assert contents_of(there) == contents_of(tmp_path / "here")


def test_of_a_whole_copy_only_what_is_missing_is_fetched(s3, bucket, tmp_path):
    push_folder(write_prepared(tmp_path / "here", {"a.bin": b"abc", "b.bin": b"def"}), bucket)
    there = fetch_folder(bucket, tmp_path / "cache")
    (there / "b.bin").unlink()
    assert fetch_folder(bucket, tmp_path / "cache") == there
    assert contents_of(there) == contents_of(tmp_path / "here")
    assert s3.requests("GET", f"{bucket}/a.bin") == 1


def test_processes_that_fetch_the_same_take_turns(s3, bucket, tmp_path):
    contents = many_files()
    push_folder(write_prepared(tmp_path / "here", contents), bucket)
    processes = [start("fetch_folder", bucket, tmp_path / "cache") for _ in range(2)]
    assert [process.wait(LIMIT_SEC) for process in processes] == [0, 0]
    [there] = (tmp_path / "cache").glob("remote-*/")
    assert contents_of(there) == contents_of(tmp_path / "here")
    assert {s3.requests("GET", f"{bucket}/{name}") for name in contents} == {1}


def test_a_killed_push_leaves_no_manifest_and_goes_on_where_it_was(s3, bucket, tmp_path):
    here = write_prepared(tmp_path / "here", many_files())
    process = start("push_folder", here, bucket, stall_after=NUM_BEFORE_KILL)
    kill_when(process, lambda: len(s3.keys(bucket)) == NUM_BEFORE_KILL)
    arrived = s3.keys(bucket)
    assert MANIFEST not in arrived
    with pytest.raises(SettingsError, match=MANIFEST):
        fetch_folder(bucket, tmp_path / "cache")
    push_folder(here, bucket)
    assert [s3.requests("PUT", f"{bucket}/{name}") for name in arrived] == [1] * len(arrived)
    assert contents_of(fetch_folder(bucket, tmp_path / "cache")) == contents_of(here)


def test_a_push_repairs_what_differs_on_the_server_though_its_size_is_the_same(
    s3, bucket, tmp_path
):
    here = write_prepared(tmp_path, {"a.bin": b"abc", "b.bin": b"def"})
    push_folder(here, bucket)
    s3.put(f"{bucket}/b.bin", b"deg")
    push_folder(here, bucket)
    assert s3.get(f"{bucket}/b.bin") == b"def"
    assert s3.requests("PUT", f"{bucket}/a.bin") == 1


def test_a_file_that_was_uploaded_in_parts_is_known_again(s3, bucket, tmp_path):
    here = write_prepared(tmp_path, {"a.bin": bytes(101 * 2**20)})
    push_folder(here, bucket)
    assert s3.requests("PUT", f"{bucket}/a.bin") == 3
    push_folder(here, bucket)
    assert s3.requests("PUT", f"{bucket}/a.bin") == 3


def test_a_file_of_another_size_after_its_upload_is_named(s3, bucket, tmp_path, monkeypatch):
    put_file = S3FileSystem._put_file

    async def put_file_in_part(*args, **kwargs) -> None:
        await put_file(*args, **kwargs)
        s3.put(f"{bucket}/a.bin", b"ab")

    monkeypatch.setattr(S3FileSystem, "_put_file", put_file_in_part)
    with pytest.raises(IntegrityError, match=rf"{bucket}/a\.bin has 2 bytes of 3; push it again"):
        push_folder(write_prepared(tmp_path, {"a.bin": b"abc"}), bucket)
    assert s3.keys(bucket) == ["a.bin"]


def test_another_prepared_folder_is_not_overwritten(s3, bucket, tmp_path):
    push_folder(write_prepared(tmp_path / "one", {"a.bin": b"abc"}), bucket)
    with pytest.raises(SettingsError, match=f"{bucket} has another prepared folder"):
        push_folder(write_prepared(tmp_path / "other", {"a.bin": b"abd"}), bucket)
    assert s3.get(f"{bucket}/a.bin") == b"abc"


def test_a_prepared_folder_is_known_by_its_manifest(s3, bucket, tmp_path):
    push_folder(write_prepared(tmp_path, {"a.txt": b"abc"}), f"{bucket}/here")
    assert is_prepared(f"{bucket}/here/")
    for url in (bucket, f"{bucket}/here/a.txt", f"{bucket}/he*", "s3://no-such-bucket"):
        assert not is_prepared(url)


def test_a_full_disk_is_told(s3, bucket, tmp_path, monkeypatch):
    async def fill_disk(*args, **kwargs) -> None:
        Path("/dev/full").write_bytes(b"x")

    s3.put(f"{bucket}/a.txt", b"text")
    monkeypatch.setattr(S3FileSystem, "_get_file", fill_disk)
    with pytest.raises(SettingsError, match=r"no space is left on the disk while writing .*a\.txt"):
        fetch_files(bucket, tmp_path)


def write_texts(s3: S3Server, bucket: str) -> dict[str, bytes]:
    texts = {"a.txt": b"one", "sub/b.txt": b"two", "sub/c.jsonl": b'{"text": "three"}'}
    for name, content in texts.items():
        s3.put(f"{bucket}/texts/{name}", content)
    s3.put(f"{bucket}/texts/sub/", b"")  # what some tools write to show a folder
    s3.put(f"{bucket}/textures", b"not among them")
    return texts


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("texts", {"a.txt": "a.txt", "sub/b.txt": "sub/b.txt", "sub/c.jsonl": "sub/c.jsonl"}),
        ("texts/", {"a.txt": "a.txt", "sub/b.txt": "sub/b.txt", "sub/c.jsonl": "sub/c.jsonl"}),
        ("texts/sub/b.txt", {"b.txt": "sub/b.txt"}),
        ("texts/*/*.txt", {"sub/b.txt": "sub/b.txt"}),
        ("texts/**/*.txt", {"a.txt": "a.txt", "sub/b.txt": "sub/b.txt"}),
        ("texts/s*", {"sub/b.txt": "sub/b.txt", "sub/c.jsonl": "sub/c.jsonl"}),
    ],
)
def test_raw_files_keep_their_names_below_what_was_asked_for(s3, bucket, tmp_path, asked, names):
    texts = write_texts(s3, bucket)
    folder = fetch_files(f"{bucket}/{asked}", tmp_path)
    assert contents_of(folder) == {name: texts[source] for name, source in names.items()}


def test_raw_files_are_fetched_anew_only_if_they_changed(s3, bucket, tmp_path):
    texts = write_texts(s3, bucket)
    folder = fetch_files(f"{bucket}/texts", tmp_path)
    s3.put(f"{bucket}/texts/a.txt", b"ONE")  # as long as before
    s3.put(f"{bucket}/texts/new.txt", b"four")
    s3.remove(f"{bucket}/texts/sub/c.jsonl")
    assert fetch_files(f"{bucket}/texts", tmp_path) == folder
    assert contents_of(folder) == {
        "a.txt": b"ONE",
        "sub/b.txt": texts["sub/b.txt"],
        "new.txt": b"four",
    }
    assert s3.requests("GET", f"{bucket}/texts/a.txt") == 2
    assert s3.requests("GET", f"{bucket}/texts/sub/b.txt") == 1


def test_a_file_that_becomes_a_folder_and_back_is_followed(s3, bucket, tmp_path):
    for name, gone in (("a", "a/b"), ("a/b", "a"), ("a", "a/b")):
        s3.remove(f"{bucket}/texts/{gone}")
        s3.put(f"{bucket}/texts/{name}", b"text")
        assert contents_of(fetch_files(f"{bucket}/texts", tmp_path)) == {name: b"text"}


def test_a_local_copy_of_a_raw_file_that_was_changed_is_fetched_anew(s3, bucket, tmp_path):
    texts = write_texts(s3, bucket)
    folder = fetch_files(f"{bucket}/texts", tmp_path)
    (folder / "a.txt").write_bytes(b"ONE")
    assert contents_of(fetch_files(f"{bucket}/texts", tmp_path)) == texts


def test_raw_files_uploaded_in_unknown_parts_are_known_by_the_index(s3, bucket, tmp_path):
    name, key = bucket.removeprefix("s3://"), "texts/a.txt"
    upload = s3.client.create_multipart_upload(Bucket=name, Key=key)["UploadId"]
    parts = []
    for number, size in ((1, 5 * 2**20), (2, 7)):
        where = {"Bucket": name, "Key": key, "UploadId": upload, "PartNumber": number}
        part = s3.client.upload_part(**where, Body=bytes(size))
        parts.append({"PartNumber": number, "ETag": part["ETag"]})
    s3.client.complete_multipart_upload(
        Bucket=name, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
    )
    for _ in range(2):
        folder = fetch_files(f"{bucket}/texts", tmp_path)
        assert contents_of(folder) == {"a.txt": bytes(5 * 2**20 + 7)}
    assert s3.requests("GET", f"{bucket}/texts/a.txt") == 1


def test_a_killed_fetch_of_raw_files_goes_on_where_it_was(s3, bucket, tmp_path):
    contents = many_files()
    for name, content in contents.items():
        s3.put(f"{bucket}/texts/{name}", content)
    process = start("fetch_files", f"{bucket}/texts", tmp_path, stall_after=NUM_BEFORE_KILL)
    kill_when(process, lambda: len(arrived_in(tmp_path)) == NUM_BEFORE_KILL)
    arrived = arrived_in(tmp_path)
    assert contents_of(fetch_files(f"{bucket}/texts", tmp_path)) == contents
    assert {s3.requests("GET", f"{bucket}/texts/{name}") for name in arrived} == {1}


def test_a_raw_file_that_is_written_while_it_is_read_is_not_taken(
    s3, bucket, tmp_path, monkeypatch
):
    get_file = S3FileSystem._get_file

    async def get_file_and_write(*args, **kwargs) -> None:
        await get_file(*args, **kwargs)
        s3.put(f"{bucket}/texts/a.txt", b"two")

    s3.put(f"{bucket}/texts/a.txt", b"one")
    monkeypatch.setattr(S3FileSystem, "_get_file", get_file_and_write)
    with pytest.raises(SettingsError, match=r"a\.txt changed while it was read; run the command"):
        fetch_files(f"{bucket}/texts", tmp_path)
    monkeypatch.undo()
    assert contents_of(fetch_files(f"{bucket}/texts", tmp_path)) == {"a.txt": b"two"}


def test_a_raw_file_that_would_leave_its_folder_is_refused(s3, bucket, tmp_path):
    s3.put(f"{bucket}/texts/../../x", b"x")
    with pytest.raises(SettingsError, match="must not have a file named"):
        fetch_files(f"{bucket}/texts", tmp_path / "deep" / "cache")
    assert b"x" not in contents_of(tmp_path).values()


@pytest.mark.parametrize("call", [fetch_folder, fetch_files])
@pytest.mark.parametrize("place", ["s3://no-such-bucket/folder", "missing"])
def test_what_is_not_there_is_said_in_one_line(s3, bucket, tmp_path, call, place):
    url = place if "://" in place else f"{bucket}/{place}"
    with pytest.raises(SettingsError, match=url) as raised:
        call(url, tmp_path)
    assert "\n" not in str(raised.value)


def test_a_missing_shard_and_a_glob_of_nothing_are_said(s3, bucket, tmp_path):
    push_folder(write_prepared(tmp_path / "here", {"a.bin": b"abc"}), bucket)
    s3.remove(f"{bucket}/a.bin")
    with pytest.raises(SettingsError, match=f"{bucket}/a.bin cannot be fetched: FileNotFound"):
        fetch_folder(bucket, tmp_path / "cache")
    with pytest.raises(SettingsError, match="has no files"):
        fetch_files(f"{bucket}/*.txt", tmp_path / "cache")
    assert manifests_in(tmp_path / "cache") == []


def test_a_push_without_a_bucket_or_a_manifest_is_said(s3, tmp_path):
    here = write_prepared(tmp_path / "here", {"a.bin": b"abc"})
    with pytest.raises(SettingsError, match=r"s3://no-such-bucket/a\.bin cannot be written"):
        push_folder(here, "s3://no-such-bucket")
    with pytest.raises(SettingsError, match=f"must be a prepared folder, but has no {MANIFEST}"):
        push_folder(tmp_path, "s3://no-such-bucket")


def test_what_is_not_permitted_is_said(s3, bucket, tmp_path):
    push_folder(write_prepared(tmp_path / "here", {"a.bin": b"abc"}), bucket)
    name = bucket.removeprefix("s3://")
    denied = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": ["s3:GetObject"],
        "Resource": [f"arn:aws:s3:::{name}/*"],
    }
    policy = {"Version": "2012-10-17", "Statement": [denied]}
    s3.client.put_bucket_policy(Bucket=name, Policy=json.dumps(policy))
    with pytest.raises(SettingsError, match=r"manifest\.json cannot be read: PermissionError"):
        fetch_folder(bucket, tmp_path / "cache")


def test_a_store_that_does_not_answer_is_said(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(Unavailable, match=r"Could not connect to the endpoint.*127\.0\.0\.1:1"):
        fetch_folder("s3://bucket/folder", tmp_path)


THERE = b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\nConnection: close\r\n\r\n"


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """Yields the endpoint of a server that has what is asked for, and answers a GET of it so.

    With no answer it hangs up.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):  # it is closed
                while True:
                    caller = server.accept()[0]
                    with caller, contextlib.suppress(ConnectionError):
                        is_head = caller.recv(65536).startswith(b"HEAD")
                        caller.sendall(THERE if is_head else answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def response(status: int, code: str) -> bytes:
    """Returns an answer of S3."""
    body = f"<Error><Code>{code}</Code><Message>because of {code}</Message></Error>"
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (500, "InternalError", Unavailable),
        (502, "BadGateway", Unavailable),
        (503, "ServiceUnavailable", Unavailable),
        (429, "TooManyRequests", Unavailable),
        (400, "RequestTimeout", Unavailable),
        (403, "AccessDenied", SettingsError),
        (403, "InvalidAccessKeyId", SettingsError),
        (404, "NoSuchBucket", SettingsError),
        (400, "AuthorizationHeaderMalformed", SettingsError),
        (400, "SomethingOfAnotherStore", SettingsError),
    ],
)
def test_an_outage_of_a_store_may_pass_and_a_refusal_does_not(s3, monkeypatch, status, code, kind):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with answering(response(status, code)) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(
            kind, match=f"a.bin cannot be read: .*({code}|FSTimeoutError:); check the"
        ):
            ObjectStore("s3://bucket/folder").read("a.bin")


@pytest.mark.parametrize("answer", [b"", THERE, b"?\n"])
def test_a_connection_that_breaks_may_pass(s3, monkeypatch, answer):
    """At once, within a file, or with words that are not HTTP."""
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with answering(answer) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(Unavailable, match=r"a\.bin cannot be read: .*check the address"):
            ObjectStore("s3://bucket/folder").read("a.bin")


def test_without_credentials_nothing_is_tried_again(s3, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(SettingsError, match="credentials"):
        ObjectStore("s3://bucket").read("a.bin")


def test_an_io_error_of_a_folder_may_pass_and_a_missing_file_is_said(tmp_path):
    (tmp_path / "sick").symlink_to("/proc/self/mem")
    store = ObjectStore(str(tmp_path))
    with pytest.raises(Unavailable, match=r"copy cannot be written: OSError: \[Errno 5\]"):
        store.put("copy", tmp_path / "sick")
    with pytest.raises(SettingsError, match="absent cannot be read: FileNotFoundError"):
        store.read("absent")


@pytest.mark.parametrize("num_bytes", [0, 3_000_000, *slowly(101 * 2**20)])
@pytest.mark.parametrize("kind", ["s3", "folder"])
def test_what_is_sent_and_received_is_counted(s3, bucket, tmp_path, kind, num_bytes):
    """The largest in several parts."""
    (tmp_path / "a").write_bytes(bytes(num_bytes))
    store = ObjectStore(bucket if kind == "s3" else str(tmp_path / "there"))
    before = BYTES_MOVED.total
    store.put("deep/a", tmp_path / "a")
    assert BYTES_MOVED.total - before == num_bytes
    with store.fetching("deep/a", tmp_path / "parts", tmp_path / "b"):
        assert BYTES_MOVED.total - before == 2 * num_bytes
    assert (tmp_path / "b").read_bytes() == bytes(num_bytes)


def test_a_copy_is_counted_before_it_has_ended(tmp_path):
    os.mkfifo(tmp_path / "slow")
    copying = threading.Thread(target=copy_counted, args=(tmp_path / "slow", tmp_path / "copy"))
    before = BYTES_MOVED.total
    copying.start()
    with (tmp_path / "slow").open("wb", buffering=0) as written:
        for _ in range(2**20 // 2**16):
            written.write(bytes(2**16))
        deadline = time.monotonic() + LIMIT_SEC
        while BYTES_MOVED.total - before < 2**20:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert copying.is_alive()
    copying.join()


@pytest.mark.parametrize(
    ("scheme", "way_out"),
    [
        ("s3", "; run {pip} install -c constraints.txt s3fs"),
        ("gs", "; run {pip} install -c constraints.txt gcsfs"),
        ("nowhere", "; use s3:// or gs://"),
    ],
)
def test_a_missing_package_is_said_with_how_to_install_it(tmp_path, scheme, way_out):
    code = (
        "import sys, pathlib; sys.modules['s3fs'] = sys.modules['gcsfs'] = None\n"
        "from data.remote_folders import fetch_folder\n"
        "try: fetch_folder(sys.argv[1], pathlib.Path(sys.argv[2]))\n"
        "except ValueError as error: print(type(error).__name__, error, end='')\n"
    )
    command = (sys.executable, "-c", code, f"{scheme}://bucket/folder", str(tmp_path))
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"SettingsError {scheme}://bucket/folder cannot be opened")
    pip = Path(sys.executable).with_name("pip")
    seen = pip.relative_to(ROOT) if pip.is_relative_to(ROOT) else pip
    assert said.endswith(way_out.format(pip=seen))
