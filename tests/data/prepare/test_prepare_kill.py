"""A preparation that is killed, stopped or changed under its feet, and the command given again."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import wait_until
from parts import slowly
from small_data import data_config
from small_prepare import (
    Command,
    finish,
    kill,
    prepare_here,
    run,
    sentences,
    session_of,
    small_sizes,
    stamps_of,
    start,
    workers_of,
    write_corpus,
)
from small_runs import content_of
from small_tokenizers import byte_level
from small_tokenizers import content_of as content_of_tokenizer

from configs.data import PrepareConfig
from configs.errors import SettingsError
from data.prepare.corpus_preparation import Preparation
from data.prepare.engine import Workers
from data.prepare.work_folder import WORK
from data.token_store import MANIFEST, open_store
from data.tokenizers.tokenizer import ByteTokenizer

SETTINGS = [
    *("prepare", "--data.path", "texts", "--data.tokenizer", "characters", "--num_workers", "2"),
    *("--data.clean", "unicode", "length", "exact_duplicates"),
]
GONE_AFTER_SEC = 5
"""Within so long of the death of a command none of its workers is alive."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where texts/ is prepared, and in "undisturbed" was."""
    folder = tmp_path_factory.mktemp("kill")
    write_corpus(folder / "texts")
    code, said = run(folder, *SETTINGS, "--out", "undisturbed")
    assert code == 0, said
    return folder


def results(out: Path, stage: str) -> list[Path]:
    return sorted((out / WORK).glob(f"{stage}-*.json"))


def finished_shards(out: Path) -> dict[str, tuple[int, int]]:
    """Returns the stamps of the files that the tasks done so far have written."""
    said = [json.loads(path.read_text()) for path in results(out, "shards")]
    entries = [entry for result in said for entry in result.values()]
    names = [name for entry in entries for name in (entry["file"], entry["index"]["file"])]
    return {name: stamp for name, stamp in stamps_of(out).items() if name in names}


def assert_undisturbed(folder: Path, out: Path) -> None:
    """Fails unless a folder is, file by file, what nobody disturbed."""
    assert content_of(out) == content_of(folder / "undisturbed")
    assert not (out / WORK).exists()


def has_python(pid: int) -> bool:
    """Says whether a process has come so far as to import modules written in C."""
    with contextlib.suppress(OSError):
        return "_multiarray_umath" in Path(f"/proc/{pid}/maps").read_text()
    return False


def assert_what_looks_whole_is(folder: Path, out: Path) -> None:
    for path in (*out.glob("*.arrayrecord"), *out.glob("*.npy")):
        assert path.read_bytes() == (folder / "undisturbed" / path.name).read_bytes()


MOMENTS: dict[str, Callable[[Path, Command], object]] = {
    "as it begins": lambda out, command: (out / WORK / "plan.json").exists(),
    "as its workers start": lambda out, command: workers_of(command),
    "as its workers import": lambda out, command: any(map(has_python, workers_of(command))),
    "as it scans": lambda out, command: len(results(out, "scan")) > 1,
    "as it writes": lambda out, command: len(results(out, "shards")) > 2,
    "as it writes a file": lambda out, command: list(out.glob("*.tmp-*")),
}


def started(folder: Path, out: Path, moment: str) -> Command:
    """Starts a preparation and returns when it is where it should be."""
    command = start(folder, *SETTINGS, "--out", str(out))
    wait_until(lambda: MOMENTS[moment](out, command))
    assert not (out / MANIFEST).exists()
    return command


def test_a_killed_preparation_goes_on_to_the_same_bytes(folder, tmp_path):
    """The command alone is killed, or all of its processes; what is finished is not made again."""
    out = tmp_path / "out"
    kept: dict[str, tuple[int, int]] = {}
    killed = []
    for i, moment in enumerate(("as it scans", "as it writes a file", "as it writes")):
        command = started(folder, out, moment)
        kill(command, whole_group=i % 2 == 0)
        died = time.monotonic()
        killed.append(command)
        assert finish(command)[0] == -signal.SIGKILL
        assert_what_looks_whole_is(folder, out)
        assert kept.items() <= finished_shards(out).items()
        kept = finished_shards(out)
        if i % 2:  # the others are followed by the same command at once, whoever is still alive
            within_sec = died + GONE_AFTER_SEC - time.monotonic()
            wait_until(lambda c=command: not session_of(c), within_sec=within_sec)
    assert len(kept) > 2
    code, said = run(folder, *SETTINGS, "--out", str(out))
    assert code == 0, said
    assert_undisturbed(folder, out)
    assert kept.items() <= stamps_of(out).items()
    assert not any(session_of(command) for command in killed)


@pytest.mark.parametrize(
    "moment", [*slowly("as its workers start", "as it scans"), "as it writes a file"]
)
def test_no_worker_outlives_a_killed_command(folder, tmp_path, moment):
    command = started(folder, tmp_path / "out", moment)
    kill(command, whole_group=False)
    finish(command)
    wait_until(lambda: not session_of(command), within_sec=GONE_AFTER_SEC)


@pytest.mark.parametrize(
    "moment", [*slowly("as its workers start", "as its workers import"), "as it writes"]
)
def test_ctrl_c_ends_with_75_and_the_same_command_goes_on(folder, tmp_path, moment):
    out = tmp_path / "out"
    command = started(folder, out, moment)
    kill(command, signal.SIGINT, whole_group=True)
    code, said = finish(command)
    assert code == 75
    assert not workers_of(command)
    wait_until(lambda: not session_of(command), within_sec=GONE_AFTER_SEC)
    assert said.splitlines()[-1].startswith("tessera: stopped by Ctrl-C: give the same command")
    assert "Traceback" not in said
    assert not (out / MANIFEST).exists()
    kept = finished_shards(out)
    code, said = run(folder, *SETTINGS, "--out", str(out))
    assert code == 0, said
    assert_undisturbed(folder, out)
    assert kept.items() <= stamps_of(out).items()


def test_workers_leave_ctrl_c_to_the_command(folder, tmp_path):
    """It reaches all processes of a terminal; a worker that it ended would say so in many lines."""
    command = start(folder, *SETTINGS, "--out", str(tmp_path / "out"))
    for moment in ("as its workers start", "as its workers import", "as it scans", "as it writes"):
        wait_until(lambda moment=moment: MOMENTS[moment](tmp_path / "out", command))
        for worker in workers_of(command):
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGINT)
    code, said = finish(command)
    assert code == 0, said
    assert_undisturbed(folder, tmp_path / "out")


def test_what_a_kill_leaves_of_a_finished_preparation_is_removed(folder, tmp_path):
    """Killed between the manifest, which is last, and the removal of what is not needed."""

    def by_command() -> Path:
        assert run(folder, *SETTINGS, "--num_workers", "1", "--out", str(tmp_path / "out"))[0] == 0
        return tmp_path / "out"

    def by_a_run() -> Path:
        return prepare_here(data_config(folder / "texts"), tmp_path / "cache").folder

    for prepare in (by_command, by_a_run):
        made = prepare()
        before = stamps_of(made)
        (made / WORK).mkdir()
        (made / WORK / "scan-00000.json.tmp-123").write_text("half")
        assert prepare() == made
        assert stamps_of(made) == before


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "files without a plan"])
def test_a_kill_as_the_folder_is_made_or_cleared_does_no_harm(folder, tmp_path, left):
    out = tmp_path / "out"
    if left != "nothing":
        (out / WORK).mkdir(parents=True)
    if left == "files without a plan":
        for name in ("tokenizer", "train-00000.arrayrecord", "train-00099.index.npy.tmp-77"):
            (out / name).write_bytes(b"of another text")
        (out / WORK / "shards-00000.json").write_text("{}")
    code, said = run(folder, *SETTINGS, "--num_workers", "1", "--out", str(out))
    assert code == 0, said
    assert_undisturbed(folder, out)


@pytest.mark.parametrize("what", ["the text", *slowly("the tokenizer")])
def test_what_has_changed_since_a_kill_is_prepared_anew(tmp_path, what):
    write_corpus(tmp_path / "texts")
    (tmp_path / "t.json").write_bytes(content_of_tokenizer(byte_level("<|endoftext|>")))
    command = [*SETTINGS, "--data.tokenizer", "t.json"]
    killed = start(tmp_path, *command, "--out", "out")
    wait_until(lambda: len(results(tmp_path / "out", "shards")) > 2)
    kill(killed, whole_group=True)
    finish(killed)
    before = finished_shards(tmp_path / "out")
    assert before
    if what == "the text":
        with (tmp_path / "texts" / "b.txt").open("a") as file:
            file.write("more")
    else:
        tokens = content_of_tokenizer(byte_level("<|other|>", "<|endoftext|>"))
        (tmp_path / "t.json").write_bytes(tokens)
    for out in ("out", "undisturbed"):
        code, said = run(tmp_path, *command, "--num_workers", "1", "--out", out)
        assert code == 0, said
    assert_undisturbed(tmp_path, tmp_path / "out")


def test_other_texts_to_decontaminate_from_are_looked_for_anew(tmp_path, monkeypatch):
    small_sizes(monkeypatch)
    write_corpus(tmp_path / "texts", 100)
    (tmp_path / "evaluation.txt").write_text("one text that is looked for")
    config = PrepareConfig(
        path=str(tmp_path / "texts"),
        clean=("decontaminate",),
        decontaminate_from=(str(tmp_path / "evaluation.txt"),),
    )

    def begun() -> int:
        preparation = Preparation(config, tmp_path / "out", Workers(1), lambda *_: None)
        found = len(results(tmp_path / "out", "scan"))
        preparation.scan()
        return found

    assert begun() == 0
    assert begun() > 1
    (tmp_path / "evaluation.txt").write_text("another text that is looked for")
    assert begun() == 0


def grow(path: Path) -> None:
    path.write_text(path.read_text() + "more")


@pytest.mark.parametrize("change", [grow, os.utime, Path.unlink])
def test_a_text_that_changes_as_it_is_read_is_refused(tmp_path, monkeypatch, change):
    small_sizes(monkeypatch)
    write_corpus(tmp_path / "texts", 100)
    config = PrepareConfig(path=str(tmp_path / "texts"), tokenizer="bytes", clean=("unicode",))
    preparation = Preparation(config, tmp_path / "out", Workers(1), lambda *_: None)
    preparation.scan()
    change(tmp_path / "texts" / "b.txt")
    with pytest.raises(SettingsError, match=r"changed while it was read, in .*b\.txt"):
        preparation.write(ByteTokenizer())
    assert not (tmp_path / "out" / MANIFEST).exists()


@pytest.mark.slow
def test_five_kills_at_random_moments_change_nothing(tmp_path, environment):
    """A corpus of several tasks of the product's own size, by the command itself."""
    (tmp_path / "texts").mkdir()
    lines = "".join(json.dumps({"text": line * 20}) + "\n" for line in sentences(2000))
    with (tmp_path / "texts" / "a.jsonl").open("w") as file:
        while file.tell() < 2 * 64 * 2**20:
            file.write(lines)
    (tmp_path / "texts" / "b.txt").write_text("".join(sentences(600_000)))
    steps = ("unicode", "length", "exact_duplicates", "near_duplicates")
    command = [sys.executable, "-m", "launch", "prepare", "--data.path", "texts"]
    command += ["--num_workers", "2", "--data.vocab_size", "400"]
    command += ["--data.clean", *steps, "--out"]
    options = {"cwd": tmp_path, "env": environment, "start_new_session": True}
    began = time.monotonic()
    subprocess.run([*command, "undisturbed"], **options, check=True)
    seconds = time.monotonic() - began
    draw = random.Random()
    out = tmp_path / "out"
    kept: dict[str, tuple[int, int]] = {}
    for i in range(5):
        process = subprocess.Popen([*command, "out"], **options)
        time.sleep(draw.uniform(seconds * 0.1, seconds * 0.5))
        (os.killpg if i % 2 else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
        seen = Command(process.pid, out)
        wait_until(lambda seen=seen: not session_of(seen), within_sec=GONE_AFTER_SEC)
        assert_what_looks_whole_is(tmp_path, out)
        if (out / WORK).exists():
            assert kept.items() <= finished_shards(out).items()
            kept = finished_shards(out)
    subprocess.run([*command, "out"], **options, check=True)
    assert_undisturbed(tmp_path, out)
    assert kept.items() <= stamps_of(out).items()
    assert open_store(out).report["duplicates"]["exact_duplicates"]["dropped"] > 1000
