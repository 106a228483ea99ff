"""Cleaning in a preparation: what is dropped is told, and what is not dropped is there once."""

import json
import unicodedata
from pathlib import Path

import pytest
from small_data import data_config, sides
from small_prepare import (
    RANGE_BYTES,
    TASK_BYTES,
    documents_in,
    prepare_here,
    run,
    sentences,
    small_sizes,
)
from small_runs import content_of

from configs.data import CleanStep, DataConfig
from data.prepare.engine import Workers
from data.token_store import TokenStore, open_store

STEPS: tuple[CleanStep, ...] = ("unicode", "html", "length", "exact_duplicates", "near_duplicates")
SIZES = [(1000, 1), (1000, 4000), (10**6, 10**6)]
"""Bytes of a part and of a task: very many tasks, many, one."""

PAGE = "<html><body><nav><a href='/'>Home</a></nav><p>{}</p></body></html>"


def write_planted(folder: Path) -> list[str]:
    """Writes a corpus of which the steps have each something to do; returns what is to be left.

    Lines 10, 20, ... of a.jsonl are planted, and b.txt.
    """
    folder.mkdir()
    lines = [text.strip() + " and so on, and on" for text in sentences(200)]
    planted: dict[int, str | None] = {  # what takes the place of a line, and what is left of it
        10: "cafe\u0301 au lait, a composed accent\r\nand a line end of Windows",
        20: PAGE.format("A page of some length, with a menu that is left out."),
        30: "too short",
        40: lines[5].upper() + "  ",
        50: " ".join([*(text for text in lines[60:66]), "but for the end"]),
        60: " ".join([*(text for text in lines[60:66]), "but for this end"]),
        70: "too short",
        80: PAGE.format(lines[5]),
    }
    kept: dict[int, str | None] = {
        10: unicodedata.normalize("NFC", planted[10] or "").replace("\r\n", "\n"),
        20: "A page of some length, with a menu that is left out.",
        30: None,
        40: None,
        50: planted[50],
        60: None,
        70: None,
        80: None,
    }
    written = [planted.get(i, text) for i, text in enumerate(lines)]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in written))
    (folder / "b.txt").write_text("The last text, which is kept as it is.\n")
    left = [kept.get(i, text) for i, text in enumerate(lines)]
    return [text for text in left if text] + ["The last text, which is kept as it is.\n"]


def characters_in(folder: Path) -> int:
    lines = (folder / "a.jsonl").read_text().splitlines()
    return sum(len(json.loads(line)["text"]) for line in lines) + len(
        (folder / "b.txt").read_text()
    )


def config(folder: Path, **changes) -> DataConfig:
    return data_config(folder, **{"clean": STEPS, "min_characters": 20, **changes})


def texts_of(store: TokenStore) -> list[str]:
    return [
        text
        for stream in (store.train, store.validation)
        if stream.num_tokens
        for text in documents_in(store, stream)
    ]


@pytest.mark.parametrize("sizes", SIZES)
def test_every_document_is_there_once_but_for_those_the_report_says_were_dropped(
    tmp_path, monkeypatch, sizes
):
    small_sizes(monkeypatch, *sizes)
    kept = write_planted(tmp_path / "texts")
    store = prepare_here(config(tmp_path / "texts", validation_fraction=0.0), tmp_path / "cache")
    assert texts_of(store) == kept
    report = store.report
    cleaning = {said["step"]: said for said in report["cleaning"]}
    assert list(cleaning) == list(STEPS[:3])
    did = {name: (s["documents"], s["changed"], s["dropped"]) for name, s in cleaning.items()}
    assert did == {"unicode": (201, 1, 0), "html": (201, 2, 0), "length": (201, 0, 2)}
    assert {name: said["dropped"] for name, said in report["duplicates"].items()} == {
        "exact_duplicates": 2,
        "near_duplicates": 1,
    }
    removed = [said["characters_removed"] for said in cleaning.values()]
    removed += [said["characters_removed"] for said in report["duplicates"].values()]
    assert characters_in(tmp_path / "texts") == sum(map(len, kept)) + sum(removed)
    said = store.manifest["splits"]["train"]
    assert said["characters"] == sum(map(len, kept))
    assert said["documents"] == len(kept)
    assert said["tokens"] == sum(len(text.encode()) for text in kept) + len(kept) + 1


@pytest.mark.parametrize("sizes", SIZES)
def test_examples_name_the_line_of_the_file(tmp_path, monkeypatch, sizes):
    """Lines count from 1, through all parts of the file."""
    small_sizes(monkeypatch, *sizes)
    write_planted(tmp_path / "texts")
    report = prepare_here(config(tmp_path / "texts"), tmp_path / "cache").report
    unicode, html, length = report["cleaning"]
    assert [e["document"] for e in unicode["changed_examples"]] == ["a.jsonl:11"]
    assert [e["document"] for e in html["changed_examples"]] == ["a.jsonl:21", "a.jsonl:81"]
    assert [(e["document"], e["rule"], e["text"]) for e in length["dropped_examples"]] == [
        ("a.jsonl:31", "too short", "too short"),
        ("a.jsonl:71", "too short", "too short"),
    ]
    assert length["rules"] == {"too short": 2}
    assert report["duplicates"]["exact_duplicates"]["examples"] == [
        {"document": "a.jsonl:41", "repeats": "a.jsonl:6"},
        {"document": "a.jsonl:81", "repeats": "a.jsonl:6"},
    ]
    assert report["duplicates"]["near_duplicates"]["examples"] == [
        {"document": "a.jsonl:61", "repeats": "a.jsonl:51"}
    ]


def test_a_document_keeps_its_line_though_others_are_dropped(tmp_path, monkeypatch):
    small_sizes(monkeypatch, 1000, 4000)
    write_planted(tmp_path / "texts")
    store = prepare_here(config(tmp_path / "texts", validation_fraction=0.0), tmp_path / "cache")
    places = [store.train.locate(int(start)) for start in store.train.starts]
    assert [place.document for place in places] == list(range(len(places)))
    numbers = [place.number for place in places if place.file == 0]
    assert numbers == [i for i in range(200) if i not in (30, 40, 60, 70, 80)]
    assert places[-1].file == 1


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_the_split_is_of_what_is_kept(tmp_path, monkeypatch, fraction):
    small_sizes(monkeypatch, 1000, 4000)
    kept = write_planted(tmp_path / "texts")
    settings = config(tmp_path / "texts", validation_fraction=fraction)
    store = prepare_here(settings, tmp_path / "cache")
    train, validation = sides(kept, fraction)
    assert documents_in(store, store.train) == train
    assert documents_in(store, store.validation) == validation


def test_the_report_and_the_tokens_depend_on_no_task_and_no_worker(tmp_path, monkeypatch):
    """The learned tokenizer among them."""
    write_planted(tmp_path / "texts")
    settings = ["prepare", "--data.path", "texts", "--data.vocab_size", "400"]
    settings += ["--data.clean", *STEPS, "--data.min_characters", "20"]
    found = []
    for name, sizes in (("many", (1000, 4000)), ("one", (RANGE_BYTES * 100, TASK_BYTES * 100))):
        options = ["--num_workers", "2", "--out", name]
        code, said = run(tmp_path, *settings, *options, sizes=sizes)
        assert code == 0, said
        store = open_store(tmp_path / name)
        ids = [s.read(0, s.num_tokens).tolist() for s in (store.train, store.validation)]
        found.append((store.report, store.tokenizer.content(), ids))
        assert len(content_of(tmp_path / name)) > 6
    assert found[0] == found[1]


def test_the_order_in_which_tasks_are_done_does_not_matter(tmp_path, monkeypatch):
    small_sizes(monkeypatch, 1000, 4000)
    write_planted(tmp_path / "texts")
    settings = config(tmp_path / "texts", tokenizer="sentencepiece", vocab_size=400)
    forwards = prepare_here(settings, tmp_path / "forwards").folder
    run_in_order = Workers.run
    monkeypatch.setattr(Workers, "run", lambda *of: reversed(list(run_in_order(*of))))
    assert content_of(prepare_here(settings, tmp_path / "backwards").folder) == content_of(forwards)


@pytest.mark.parametrize("clean", [("unicode",), ("exact_duplicates",)])
def test_a_long_text_that_is_cleaned_is_cut_into_documents_and_none_of_it_is_lost(
    tmp_path, monkeypatch, clean
):
    """A part may be dropped, and the next must not join another text."""
    small_sizes(monkeypatch, 1000, 4000)
    text = "".join(sentences(200))
    (tmp_path / "a.txt").write_text(text)
    settings = data_config(tmp_path / "a.txt", clean=clean, validation_fraction=0.0)
    found = texts_of(prepare_here(settings, tmp_path / "cache"))
    assert "".join(found) == text
    assert len(found) > 5


def test_cleaning_that_leaves_nothing_is_refused(tmp_path):
    write_planted(tmp_path / "texts")
    (tmp_path / "texts" / "b.txt").unlink()
    settings = ["--data.clean", "length", "--data.min_characters", "100000", "--out", "out"]
    code, said = run(tmp_path, "prepare", "--data.path", "texts", *settings)
    assert code == 2
    assert "data.path=texts holds no text after cleaning" in said
