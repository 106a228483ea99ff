"""The commands that are offered next: they fit the run, the folder one is in, and a shell."""

import dataclasses
import shlex
import sys
from pathlib import Path

import pytest

from configs.presets.table import PRESETS
from configs.suggested_commands import of_environment, tessera
from launch.next_commands import generate_hint, look_hints, new_run_hint, resume_hint

OWN = Path("runs/a b")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TESSERA_COMMAND", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("preset", "path", "prompt"),
    [
        ("quickstart", "stdlib", "def "),
        ("quickstart", "my.txt", "The "),
        ("quickstart_lstm", "my.txt", "The "),
        ("quickstart_bert", "stdlib", "def [MASK](self):"),
        ("quickstart_bert", "my.txt", "The [MASK]"),
        ("quickstart_t5", "stdlib", "def <extra_id_0>(self):"),
        ("quickstart_t5", "my.txt", "The <extra_id_0>"),
        ("first_transformer", "my.txt", "The "),
    ],
)
def test_a_prompt_suits_the_architecture_and_the_text(preset: str, path: str, prompt: str):
    config = PRESETS[preset]()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=path))
    words = shlex.split(generate_hint(OWN, config))
    assert words == ["./tessera", "generate", "runs/a b", "--prompt", prompt]


def test_a_model_of_characters_is_offered_no_prompt_that_it_may_not_know():
    assert generate_hint(Path("run"), PRESETS["shakespeare_cpu"]()) == "./tessera generate run"


def test_paths_are_as_seen_from_the_folder_one_is_in(here: Path, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("else where")
    assert tessera("status", here / "runs" / "a") == "./tessera status runs/a"
    assert tessera("status", Path("../a")) == "./tessera status ../a"
    assert tessera("status", elsewhere) == f"./tessera status {shlex.quote(str(elsewhere))}"


def test_the_program_is_offered_as_it_was_called(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TESSERA_COMMAND", "/opt/my tessera/tessera")
    assert shlex.split(tessera("status", OWN)) == ["/opt/my tessera/tessera", "status", "runs/a b"]


def test_tensorboard_is_that_of_the_environment_and_shows_the_run():
    hints = look_hints(OWN, PRESETS["quickstart"](), "quickstart")
    tensorboard = str(Path(sys.executable).with_name("tensorboard"))
    assert [tensorboard, "--logdir", "runs/a b"] in map(shlex.split, hints)


def test_a_program_that_the_environment_has_no_script_of_is_run_as_a_module(
    here: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "executable", str(here / "my env" / "python3"))
    command = shlex.split(of_environment("tensorboard.main", "--logdir", OWN))
    assert command == ["my env/python3", "-m", "tensorboard.main", "--logdir", "runs/a b"]


def test_a_text_of_ones_own_is_offered_where_the_run_has_another_one():
    config = PRESETS["quickstart_bert"]()
    own = "./tessera train quickstart_bert --data.path YOUR_TEXT.txt"
    assert own in look_hints(OWN, config, "quickstart_bert")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path="my.txt"))
    assert own not in look_hints(OWN, config, "quickstart_bert")


@pytest.mark.parametrize("given", [[], ["--run-dir", "x y"], ["--run_dir=x y"], ["--run-dir=x y"]])
def test_a_new_run_gets_a_folder_that_is_free_and_all_that_was_typed(here: Path, given: list[str]):
    (here / "x y").mkdir()
    (here / "x y-2").mkdir()
    words = ["quickstart", *given, "--data.path", "a text.txt"]
    assert shlex.split(new_run_hint(words, Path("x y"), "--more", "1")) == [
        *("./tessera", "train", "quickstart", "--data.path", "a text.txt"),
        *("--run-dir", "x y-3", "--more", "1"),
    ]


def test_a_run_is_resumed_from_the_folder_that_it_was_started_in(here: Path):
    first = {"event": "started", "command": "./tessera train old", "cwd": "/old"}
    last = {"event": "started", "command": "./tessera train quickstart", "cwd": "/a b"}
    assert resume_hint([]) is None
    assert resume_hint([first, last]) == "cd '/a b' && ./tessera train quickstart"
    assert resume_hint([first, {**last, "cwd": str(here)}]) == last["command"]
    assert resume_hint([{"event": "started", "command": "of an old run"}]) == "of an old run"
