"""What validates: whole documents by their digest, of a single text the end; and format 2."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from commands import call
from small_corpora import corpus_config, prepared, stored_documents
from small_data import data_config, open_quietly, prepare_quietly, sides
from small_prepare import run as run_command
from small_prepare import sentences, small_sizes
from small_runs import RUN, content_of, tiny_run, write_text

import data.open_data
import data.prepare.corpus_preparation
import data.prepare.plan
import data.prepare.text.token_files
import data.token_store
from configs.errors import SettingsError
from data.open_data import open_data
from data.prepare.validation_split import validation_fraction
from data.token_store import MANIFEST, open_store

NUM_DOCUMENTS, NUM_TOPICS = 10_000, 5


def write_topics(folder: Path) -> list[str]:
    draw = random.Random(0)
    texts = [
        f"topic{i * NUM_TOPICS // NUM_DOCUMENTS} {i} " + "word " * draw.randrange(1, 20)
        for i in range(NUM_DOCUMENTS)
    ]
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": x}) + "\n" for x in texts))
    return texts


def test_topics_of_a_sorted_corpus_validate_evenly_whatever_the_workers(tmp_path):
    """Shares of a draw without return: within three standard deviations."""
    texts = write_topics(tmp_path / "texts")
    settings = ["prepare", "--data.path", "texts", "--data.tokenizer", "bytes"]
    sizes = (20_000, 80_000)
    made = []
    for number in "14":
        options = ["--out", number, "--num_workers", number]
        code, said = run_command(tmp_path, *settings, *options, sizes=sizes)
        assert code == 0, said
        assert "validation: whole documents, by digest; 10." in said or "; 9." in said, said
        made.append(content_of(tmp_path / number))
    assert made[0] == made[1]
    store = open_store(tmp_path / "1")
    found = stored_documents(store, "train"), stored_documents(store, "validation")
    assert found == sides(texts)
    for topic in range(NUM_TOPICS):
        num, share = NUM_DOCUMENTS // NUM_TOPICS, len(found[1]) / NUM_DOCUMENTS
        deviation = (num * share * (1 - share) * (1 - 1 / NUM_TOPICS)) ** 0.5
        num_found = sum(text.startswith(f"topic{topic} ") for text in found[1])
        assert abs(num_found - num * share) < 3 * deviation
    assert store.manifest["validation"] == {"rule": "whole documents, by digest", "fraction": 0.1}


@pytest.mark.slow
def test_ray_splits_topics_the_same_way(tmp_path):
    pytest.importorskip("ray", reason="the package ray is an extra, and not installed")
    write_topics(tmp_path / "texts")
    settings = ["prepare", "--data.path", "texts", "--data.tokenizer", "bytes", "--out"]
    for engine in ("ray", "local"):
        code, said = run_command(tmp_path, *settings, engine, "--engine", engine)
        assert code == 0, said
    assert content_of(tmp_path / "ray") == content_of(tmp_path / "local")


def test_copies_are_on_one_side_and_another_seed_chooses_others(tmp_path):
    texts = [text for text in sentences(300) for _ in range(2)]
    random.Random(0).shuffle(texts)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": x}) + "\n" for x in texts))
    chosen = []
    for seed in (0, 1):
        config = corpus_config(tmp_path / "a.jsonl", validation_seed=seed)
        store = prepared(config, tmp_path / f"{seed}")
        train, validation = (stored_documents(store, split) for split in ("train", "validation"))
        assert not set(train) & set(validation)
        assert (train, validation) == sides(texts, seed=seed)
        chosen.append(set(validation))
    assert chosen[0] != chosen[1]


@pytest.mark.parametrize("lengths", [(50, 50), (99, 1), (1, 99), (30, 30, 40), (60, 40)])
@pytest.mark.parametrize("fraction", [0.1, 0.9])
def test_of_few_documents_both_splits_have_one_and_most_of_the_text_trains(
    tmp_path, lengths, fraction
):
    for i, length in enumerate(lengths):
        (tmp_path / f"{i}.txt").write_text("abc"[i] * 10 * length)
    store = prepared(corpus_config(tmp_path, validation_fraction=fraction), tmp_path / "out")
    train, validation = (stored_documents(store, split) for split in ("train", "validation"))
    assert train
    assert validation
    assert fraction > 0.5 or len("".join(train)) >= len("".join(validation))


def test_documents_that_are_all_alike_are_still_in_both_splits(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "the same"}\n' * 20)
    store = prepared(corpus_config(tmp_path / "a.jsonl"), tmp_path / "out")
    assert stored_documents(store, "validation") == ["the same"]


def test_a_text_of_many_pieces_beside_others_is_whole_on_one_side(tmp_path, monkeypatch):
    """Its pieces are in several tasks, and what comes after it is split as ever."""
    small_sizes(monkeypatch, part_bytes=100, task_bytes=200, block_len=50)
    texts = ["".join(sentences(60, seed=i)) for i in range(6)]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    store = prepared(corpus_config(tmp_path, validation_fraction=0.4), tmp_path / "out")
    found = [stored_documents(store, split) for split in ("train", "validation")]
    assert sorted(found[0] + found[1]) == sorted(texts)
    assert all(found)


@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_copies_are_on_one_side_wherever_reading_cuts_them(tmp_path, monkeypatch, kind):
    texts = ["".join(sentences(20, seed=i)) for i in range(8)] * 5
    random.Random(0).shuffle(texts)
    if kind == "text":
        (path := tmp_path / "a.txt").write_text("<eos>".join(texts), "utf-8")
        config = corpus_config(path, document_separator="<eos>", validation_fraction=0.4)
    else:
        ids = [np.array([256, *text.encode()], "<u2") for text in texts]
        (path := tmp_path / "a.bin").write_bytes(np.concatenate(ids).tobytes())
        monkeypatch.setattr(data.prepare.text.token_files, "_TOKENS_AT_ONCE", 170)
        config = corpus_config(path, token_dtype="uint16", validation_fraction=0.4)
    chosen = []
    for part_bytes in (700, 998, 5000, 100_000):
        small_sizes(monkeypatch, part_bytes, 2 * part_bytes)
        store = prepared(config, tmp_path / f"{part_bytes}")
        train, validation = (stored_documents(store, split) for split in ("train", "validation"))
        assert sorted(train + validation) == sorted(texts)
        assert not set(train) & set(validation)
        chosen.append(sorted(validation))
    assert chosen == chosen[:1] * 4
    assert len(chosen[0]) > 1


def test_a_document_whose_separator_ends_a_task_is_judged_by_itself(tmp_path, monkeypatch):
    texts = [f"{i:09}" for i in range(60)]
    ids = [[*text.encode(), 256] for text in texts]
    (path := tmp_path / "a.bin").write_bytes(np.array(ids, "<u2").tobytes())
    chosen = []
    for part_bytes in (20, 60, 100_000):
        small_sizes(monkeypatch, part_bytes, part_bytes)
        config = corpus_config(path, token_dtype="uint16", validation_fraction=0.4)
        store = prepared(config, tmp_path / f"{part_bytes}")
        chosen.append([x for x in stored_documents(store, "validation") if x])
    assert len(chosen[0]) > 10
    assert chosen == chosen[:1] * 3


@pytest.mark.parametrize("num_good", [1, 3])
def test_a_text_whose_first_tasks_cannot_be_read_begins_with_what_can(
    tmp_path, monkeypatch, num_good
):
    """Beside others it joins none of them, and alone it is split as a single text is."""
    small_sizes(monkeypatch, 200, 400)
    (folder := tmp_path / "texts").mkdir()
    texts = ["".join(sentences(30, seed=i)) for i in range(num_good)]
    for i, text in enumerate(texts):
        (folder / f"{i}.txt").write_bytes(b"b\xc3d\n" * 100 + text.encode())
    for fraction in (0, 0.4):
        config = corpus_config(folder, bad_records="skip", validation_fraction=fraction)
        store = prepared(config, tmp_path / f"out{fraction}")
        found = stored_documents(store, "train")
        found += stored_documents(store, "validation") if fraction else []
        assert sorted(found) == sorted(texts) or "".join(found) == texts[0]
        said = json.loads((store.folder / "report.json").read_text())
        assert [file["documents"] for file in said["files"]] == [1] * num_good


def test_a_single_text_is_cut_after_the_last_line_before_its_last_tenth(tmp_path):
    text = "".join(sentences(200))
    (tmp_path / "a.txt").write_text(text)
    store = prepared(corpus_config(tmp_path / "a.txt"), tmp_path / "out")
    cut = text.rindex("\n", 0, len(text) - round(len(text) * 0.1)) + 1
    assert stored_documents(store, "train") == [text[:cut]]
    assert stored_documents(store, "validation") == [text[cut:]]
    assert store.manifest["validation"]["rule"] == "the end of the one text"


def test_no_more_than_100_megabytes_validate_unless_it_is_wished():
    for num_bytes, fraction in ((10**6, 0.1), (10**9, 0.1), (10**10, 0.01), (10**13, 1e-5)):
        assert validation_fraction(corpus_config("a.txt"), num_bytes) == fraction
        assert (
            validation_fraction(corpus_config("a.txt", validation_fraction=0.2), num_bytes) == 0.2
        )


def as_before(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "format_version": 2}))


def test_a_new_run_refuses_a_folder_of_format_2_with_the_command_that_prepares_anew(tmp_path):
    (tmp_path / "a.txt").write_text("".join(sentences(30)))
    config = data_config(tmp_path / "a.txt", clean=("unicode", "html"))
    folder = prepare_quietly(config, tmp_path / "cache").folder
    as_before(folder)
    for changes in ({"path": folder}, {"path": tmp_path / "a.txt", "validation": (f"x={folder}",)}):
        with pytest.raises(SettingsError) as error:
            open_quietly(data_config(**changes), tmp_path / "other")
        assert f"{folder}: format_version=2 must be 3 for a new run" in str(error.value)
        assert re.search(
            r"prepare --data\.path \S*a\.txt --data\.tokenizer bytes --data\.clean unicode html "
            r"--out NEW_FOLDER$",
            str(error.value),
        )
    found = open_data(data_config(folder), tmp_path / "other", lambda line: None, known_folders={})
    assert found.sources[0].store.folder == folder


@pytest.mark.slow
def test_a_run_that_began_on_format_2_goes_on_is_evaluated_and_branches(tmp_path, monkeypatch):
    """Its text was prepared by a version with another rule, under a name of its own."""
    monkeypatch.chdir(tmp_path)
    path = write_text(tmp_path)
    command = ("train", *tiny_run("--train.num_steps", "5", "--optim.schedule", "constant"))
    modules = (data.prepare.plan, data.prepare.corpus_preparation, data.token_store, data.open_data)
    with monkeypatch.context() as earlier:
        for module in modules:
            earlier.setattr(module, "FORMAT_VERSION", 2)
        code, said = call(*command, "--data.validation_fraction", "0.1")
        assert code == 0, said
    (folder,) = (path for path in (tmp_path / "runs/.data").iterdir() if path.is_dir())
    assert json.loads((folder / MANIFEST).read_text())["format_version"] == 2
    code, said = call(*command, "--train.num_steps", "10")
    assert code == 0, said
    assert "10/10" in said
    code, said = call("eval", str(RUN))
    assert code == 0, said
    branch = ("--init-from", str(RUN), "--with-optimizer", "--run-dir", "branch")
    code, said = call(*command, "--train.num_steps", "12", *branch)
    assert code == 0, said
    assert f"with the weights, optimizer state and data position of {RUN}@10" in said
    path.write_text(path.read_text() * 2)
    code, said = call(*command, "--data.path", "text.txt", "--run-dir", "runs/new")
    assert code == 0, said
    assert len([path for path in (tmp_path / "runs/.data").iterdir() if path.is_dir()]) == 2
