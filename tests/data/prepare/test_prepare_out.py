"""The folder that is named with --out: new, finished, of another preparation, or of a person."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from small_data import data_config
from small_prepare import documents_in, prepare_here, run, stamps_of
from small_runs import content_of

from data.prepare.work_folder import WORK
from data.token_store import MANIFEST, open_store

COMMAND = ["prepare", "--data.path", "text.txt", "--data.tokenizer", "bytes", "--out", "out"]


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "text.txt").write_text("a text of some lines\n" * 50)
    return tmp_path


def make_file(out: Path) -> None:
    out.write_text("precious")


def make_folder(out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("precious")


def make_folder_with_names_of_ours(out: Path) -> None:
    out.mkdir()
    (out / "train-00000.arrayrecord").write_text("precious")


def make_folder_with_work(out: Path) -> None:
    make_folder(out)
    (out / WORK).mkdir()
    (out / WORK / "notes").write_text("precious")


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (make_file, "is a file"),
        (make_folder, "thesis.tex"),
        (make_folder_with_names_of_ours, "train-00000.arrayrecord"),
        (make_folder_with_work, "thesis.tex"),
    ],
)
def test_a_place_with_something_else_is_refused_and_left_alone(
    folder, make: Callable[[Path], None], named
):
    make(folder / "out")
    before = content_of(folder)
    code, said = run(folder, *COMMAND)
    assert code == 2
    assert f"--out={folder}/out must be a new folder, but" in said
    assert named in said
    assert {name: content_of(folder)[name] for name in before} == before


def test_an_empty_folder_will_do(folder):
    (folder / "out").mkdir()
    assert run(folder, *COMMAND)[0] == 0
    store = open_store(folder / "out")
    assert documents_in(store, store.train) == [(folder / "text.txt").read_text()[:945]]


def test_what_was_prepared_already_is_said_and_not_touched(folder):
    assert run(folder, *COMMAND)[0] == 0
    before = stamps_of(folder / "out")
    code, said = run(folder, *COMMAND)
    assert code == 0
    assert said.startswith("out is prepared already; remove it to prepare it again")
    assert stamps_of(folder / "out") == before


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            ("--data.validation_fraction", "0.5"),
            "--out=out was prepared with data.validation_fraction=None, not 0.5",
        ),
        (("--data.clean", "unicode"), "data.clean=[], not ['unicode']"),
        (("--data.path", "other.txt"), "data.path=text.txt, not other.txt"),
    ],
)
def test_what_was_prepared_with_other_settings_is_refused_by_their_name(folder, option, message):
    assert run(folder, *COMMAND)[0] == 0
    before = stamps_of(folder / "out")
    code, said = run(folder, *COMMAND, *option)
    assert code == 2
    assert message in said
    assert len(said.splitlines()) == 1
    assert stamps_of(folder / "out") == before


def test_a_damaged_folder_is_said_to_be_with_65(folder):
    assert run(folder, *COMMAND)[0] == 0
    (folder / "out" / "tokenizer").write_text("another")
    code, said = run(folder, *COMMAND)
    assert code == 65
    assert "out/tokenizer" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data.path", ".", "--out", "out"), "--out=out must not lie in data.path=."),
        (("--data.path", ".", "--out", "a/b"), "--out=a/b must not lie in data.path=."),
        (("--data.path", "text.txt", "--out", "text.txt/out"), "--out=text.txt/out cannot be made"),
        (("--data.path", "text.txt", "--out", "/proc/1/out"), "--out=/proc/1/out cannot be made"),
        (("--data.path", "text.txt"), "--out must name the folder to make"),
        (("--out", "out"), "data.path=None must name what to prepare"),
        (("--data.path", "no.txt", "--out", "out"), "data.path=no.txt does not exist"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(folder, options, message):
    code, said = run(folder, "prepare", *options)
    assert code == 2
    assert message in said
    assert len(said.splitlines()) == 1
    assert not (folder / "out").exists()


def test_a_prepared_folder_is_no_text(folder):
    assert run(folder, *COMMAND)[0] == 0
    code, said = run(folder, "prepare", "--data.path", "out", "--out", "again")
    assert code == 2
    assert "data.path=out is prepared already" in said
    assert not (folder / "again").exists()


def test_json_ends_with_what_was_made(folder):
    code, said = run(folder, *COMMAND, "--json")
    assert code == 0
    found = json.loads(said.splitlines()[-1])
    store = open_store(folder / "out")
    assert (found["out"], found["digest"]) == ("out", store.digest)
    assert found["train"] == {
        "tokens": store.train.num_tokens,
        "documents": 1,
        "characters": 945,
        "bytes": 945,
    }
    assert found["sec"] > 0


def test_the_command_makes_the_tokens_that_a_run_would_make(folder):
    assert run(folder, *COMMAND)[0] == 0
    implicit = prepare_here(data_config(folder / "text.txt"), folder / "cache")
    assert implicit.digest == open_store(folder / "out").digest
    named = {name for name in content_of(implicit.folder) if name != MANIFEST}
    assert {name: content_of(implicit.folder)[name] for name in named} == {
        name: content_of(folder / "out")[name] for name in named
    }
