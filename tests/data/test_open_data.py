"""What is opened for a run: nothing is taken for something else, or left out without a word."""

import json
from pathlib import Path

import pytest
from small_data import data_config, open_quietly, prepare_quietly

from configs.data import STDLIB
from configs.errors import SettingsError
from data.open_data import open_data
from data.prepare.corpus_preparation import Preparation
from data.prepare.engine import Workers
from data.prepare.text.corpus import open_corpus
from data.prepare.work_folder import WORK
from data.token_store import REPORT
from launch.absolute_paths import with_whole_paths
from launch.cli import main


def write(folder: Path, **texts: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


@pytest.mark.parametrize("tokenizer", ["tokens/wbe", "s3://bucket/tokens/web"])
def test_a_path_that_is_no_tokenizer_is_refused_not_learned(tmp_path, tokenizer):
    config = data_config(write(tmp_path / "texts", a="text " * 50), tokenizer=tokenizer)
    with pytest.raises(SettingsError, match=f"data.tokenizer={tokenizer} must be a .model"):
        open_quietly(config, tmp_path / "cache")


def test_files_that_are_not_read_are_told_and_counted(tmp_path):
    folder = write(tmp_path / "texts", a="text " * 50)
    for name in ("b.json", "c.json", "d.jsonl.bz2", "LICENSE"):
        (folder / name).write_text("{}")
    said: list[str] = []
    data = open_data(data_config(folder), tmp_path / "cache", said.append)
    assert said[0].endswith("files are ignored: 1 .bz2, 2 .json, 1 no suffix"), said
    report = json.loads((data.sources[0].store.folder / REPORT).read_text())
    assert report["not_read"] == {".bz2": 1, ".json": 2, "no suffix": 1}


def test_a_text_that_changes_after_its_digest_was_taken_is_refused(tmp_path):
    folder = write(tmp_path / "texts", a="old text here " * 9)
    config = data_config(folder)
    corpus = open_corpus(config)
    write(folder, a="another text, just as long " * 5)
    with pytest.raises(SettingsError, match=r"changed while it was read, in a\.txt"):
        Preparation(config, tmp_path / "out", Workers(1), lambda *_: None, corpus=corpus)


def test_settings_that_a_prepared_folder_makes_void_are_told(tmp_path):
    folder = write(tmp_path / "texts", a="text " * 50)
    store = prepare_quietly(data_config(folder), tmp_path / "cache")
    said: list[str] = []
    config = data_config(store.folder, tokenizer="characters", clean=("c4",))
    open_data(config, tmp_path / "cache", said.append)
    assert "data.tokenizer=characters (made with bytes)" in said[0]
    assert "data.clean=['c4'] (made with [])" in said[0]
    said.clear()
    open_data(data_config(store.folder), tmp_path / "cache", said.append)
    assert said == []


def test_a_folder_that_is_not_finished_is_no_text(tmp_path):
    folder = write(tmp_path / "texts", a="text " * 50)
    Preparation(data_config(folder), tmp_path / "out", Workers(1), lambda *_: None)
    assert (tmp_path / "out" / WORK).is_dir()
    with pytest.raises(SettingsError, match="is a prepared folder that is not finished"):
        open_quietly(data_config(tmp_path / "out"), tmp_path / "cache")


def test_a_finished_folder_of_other_files_is_not_called_done(tmp_path, capsys):
    folder = write(tmp_path / "texts", a="text " * 50)
    command = ["prepare", "--data.path", str(folder), "--data.tokenizer", "bytes"]
    command += ["--out", str(tmp_path / "out"), "--num_workers", "1"]
    assert main(command) == 0
    assert main(command) == 0
    write(folder, b="more text")
    capsys.readouterr()
    assert main(command) == 2
    assert "was prepared from other files" in (said := capsys.readouterr().err)
    assert "(b.txt)" in said


def test_a_further_validation_set_leaves_the_prepared_text_where_it_is(tmp_path):
    folder = write(
        tmp_path / "texts", a=" ".join(f"sheep {i % 37} crossed bridge {i}" for i in range(900))
    )
    held_out = write(tmp_path / "more", b="other words altogether. " * 20) / "b.txt"
    learned = {"tokenizer": "sentencepiece", "vocab_size": 290}
    alone = open_quietly(data_config(folder, **learned), tmp_path / "cache")
    config = data_config(folder, **learned, validation=(f"more={held_out}",))
    both = open_quietly(config, tmp_path / "cache")
    assert both.folders == alone.folders
    assert both.digest == alone.digest


def test_a_mixture_takes_the_place_of_the_text_of_a_preset():
    config = data_config(STDLIB, mixture=("a=a.txt", "b=b.txt"))
    assert with_whole_paths(config).path is None


def test_what_sentencepiece_does_not_learn_from_is_told_and_stands_in_the_report(tmp_path):
    lines = "".join(f"sheep {i % 37} crossed {'▅' * (i % 3)} bridge {i}\n" for i in range(9000))
    folder = write(tmp_path / "texts", a=lines * 20)
    said: list[str] = []
    config = data_config(folder, tokenizer="sentencepiece", vocab_size=281)
    data = open_data(config, tmp_path / "cache", said.append, workers=Workers(1))
    notes = data.sources[0].store.report["learning"]
    assert notes.startswith("trained on one line of 2, in chunks of 1000 characters, ")
    assert notes.endswith(" lines of its training text are split at U+2585")
    assert any(line.endswith(f"tokens; {notes}") for line in said)
