"""`./tessera inspect RUN`: what it shows is what the step saw; and what is refused."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import call
from rich.cells import cell_len
from small_data import open_quietly, steps_of
from small_inspect import (
    HOSTILE_NAME,
    HOSTILE_TEXT,
    begin_run,
    inspect_json,
    prepare,
    write_texts,
)
from small_runs import write_text

from configs.data import DataConfig
from data.batch_report import RowReport, report_step
from data.batches import batch_digest, train_batches
from launch.printable import first_lines, visible, visible_lines

BATCH_SIZE, SEED = 6, 3
PASSED_OVER = (0, 2, 3)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a text."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    return tmp_path


def mixture(folder: Path, packing: str) -> DataConfig:
    return DataConfig(
        mixture=(f"first={folder / 'a'}", f"second={folder / 'b'}"),
        weights=(1, 3),
        tokenizer="bytes",
        sequence_len=48,
        packing=packing,  # type: ignore[arg-type]
    )


def report_rows(folder: Path, **settings: Any) -> list[RowReport]:
    """Returns what a step saw of two texts under another objective."""
    write_texts(folder)
    config = dataclasses.replace(mixture(folder, "concat"), **settings)
    data = open_quietly(config, folder / "cache")
    report = report_step(data, config, steps_of(config, batch_size=BATCH_SIZE, seed=SEED), 2)
    return list(report.rows)


def test_masked_spans_are_shown_where_they_were(tmp_path: Path):
    rows = report_rows(tmp_path, objective="span", target_len=40, special_tokens=("span",))
    names = [f"<extra_id_{i}>" for i in range(100)]
    for row in rows:
        texts = []
        for segment in row.segments:
            text = segment.inputs.removeprefix("<|endoftext|>")
            found = re.split("(<extra_id_[0-9]+>)", segment.targets.removesuffix("<|endoftext|>"))
            assert found[1::2] == names[: len(found) // 2]
            for name, span in zip(found[1::2], found[2::2], strict=True):
                text = text.replace(name, span)
            texts.append(text)
        assert texts
        assert set(texts) <= {piece.text for piece in row.spans}  # nothing is masked in short ones
        assert row.num_padding > 0
        content = row.to_json()  # its keys are a format
        assert set(content["questions"][0]) == {"reads", "finds", "follows"}
        assert [piece["text"] for piece in content["pieces"]] == [span.text for span in row.spans]
        assert not {"spans", "segments"} & set(content)


def test_masked_tokens_are_shown_with_what_they_were(tmp_path: Path):
    rows = report_rows(tmp_path, objective="masked_pairs", special_tokens=("masked",))
    found = [segment for row in rows for segment in row.segments if segment.targets]
    assert {True, False} <= {segment.is_next for segment in found}
    for segment in found:
        assert segment.inputs.count("[SEP]") == (0 if segment.is_next is None else 2)
        num_masked = sum(map(len, segment.targets.split(" ... ")))
        assert 0 < segment.inputs.count("[MASK]") <= num_masked


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
@pytest.mark.parametrize("passed_over", [(), PASSED_OVER])
def test_the_pieces_of_a_row_are_its_tokens(
    tmp_path: Path, packing: str, passed_over: tuple[int, ...]
):
    write_texts(tmp_path)
    config = mixture(tmp_path, packing)
    data = open_quietly(config, tmp_path / "cache")
    stores, separator = dict(data.sources), data.tokenizer.separator
    steps = steps_of(config, batch_size=BATCH_SIZE, seed=SEED, passed_over=passed_over)
    batches = train_batches(data, config, steps)
    for step in (1, 2, 3, 40):
        report = report_step(data, config, steps, step)
        batch = batches[step - 1]
        assert batch is not None
        assert report.batch_sha256 == batch_digest(batch)
        assert {row.source for row in report.rows} == {"first", "second"}
        for row in report.rows:
            tokens = []
            for piece in row.spans:
                ids = stores[row.source].train.document(piece.document).tolist()
                own = [separator] * piece.begins + ids[piece.start : piece.stop]
                assert len(own) == piece.num_tokens
                tokens += own
            assert tokens + [0] * row.num_padding == batch.tokens_BT[row.index].tolist()


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_a_piece_shows_the_text_of_its_document(tmp_path: Path, packing: str):
    texts = write_texts(tmp_path)
    config = mixture(tmp_path, packing)
    data = open_quietly(config, tmp_path / "cache")
    names = set()
    for step in range(1, 30):
        report = report_step(data, config, steps_of(config, batch_size=BATCH_SIZE, seed=SEED), step)
        for row in report.rows:
            for piece in row.spans:
                name = f"{'a' if row.source == 'first' else 'b'}/{piece.name}"
                assert piece.text == texts[name][piece.start : piece.stop]
                assert piece.begins == (piece.start == 0 and piece.num_tokens == piece.stop + 1)
                names.add(name)
    assert {"a/one.txt", "b/lines.jsonl:1", "b/lines.jsonl:40"} <= names


def test_an_epoch_shows_each_row_of_each_source_once(tmp_path: Path):
    write_texts(tmp_path)
    config = mixture(tmp_path, "best_fit")
    data = open_quietly(config, tmp_path / "cache")
    seen: dict[str, list[tuple[int, int]]] = {"first": [], "second": []}
    for step in range(1, 41):
        for row in report_step(
            data, config, steps_of(config, batch_size=BATCH_SIZE, seed=SEED), step
        ).rows:
            seen[row.source].append((row.epoch, row.row))
            num_rows = row.num_rows
    for places in seen.values():
        num_rows = sum(epoch == 0 for epoch, _ in places)
        assert sorted(row for epoch, row in places if epoch == 0) == list(range(num_rows))
        assert len(set(places)) == len(places)


def test_rows_selects_rows_of_the_same_batch(folder: Path):
    begin_run(folder / "run")
    whole = inspect_json("run", "--step", "3")
    some = inspect_json("run", "--step", "3", "--rows", "5", "0")
    assert some["rows"] == [whole["rows"][5], whole["rows"][0]]
    assert some["batch_sha256"] == whole["batch_sha256"]
    assert len(whole["rows"]) == whole["num_rows"] == 8


def test_rows_that_were_skipped_are_not_seen(folder: Path):
    begin_run(folder / "plain", passed_over=())
    begin_run(folder / "moved", passed_over=(0, 2))
    found = inspect_json("moved", "--step", "2")
    assert found["first_row"] == 3 * 8
    assert found["batch_sha256"] == inspect_json("plain", "--step", "4")["batch_sha256"]


def test_rows_are_shown_though_they_were_skipped(folder: Path):
    begin_run(folder / "plain", passed_over=())
    begin_run(folder / "moved", passed_over=(0, 2))
    for item in (0, 1, 2, 3):
        wanted = inspect_json("plain", "--step", str(item + 1))
        for run in ("plain", "moved"):
            found = inspect_json(run, "--first_row", str(8 * item))
            assert found == {**wanted, "run": run, "step": None}
    code, output = call("inspect", "moved", "--first_row", "16")
    assert code == 0
    assert "from sequence 16 of the data order" in output


def test_a_run_is_shown_without_its_text_and_without_a_device(
    folder: Path, environment: dict[str, str]
):
    begin_run(folder / "run", passed_over=(1,))
    before = inspect_json("run", "--step", "2")
    (folder / "text.txt").unlink()
    finished = subprocess.run(
        [sys.executable, "-m", "launch", "inspect", "run", "--step", "2", "--json"],
        env={**environment, "JAX_PLATFORMS": "none_such"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    (line,) = finished.stdout.splitlines()
    assert json.loads(line) == before


def test_runs_of_the_same_settings_saw_the_same(folder: Path):
    begin_run(folder / "one")
    begin_run(folder / "two")
    found = inspect_json("one", "--step", "9", "--diff", "two")
    assert found["is_same"]
    assert (found["settings"], found["different_rows"]) == ({}, [])
    code, output = call("inspect", "one", "--step", "9", "--diff", "two")
    assert code == 0
    assert "the same batch" in output


def test_a_run_of_another_seed_saw_something_else(folder: Path):
    begin_run(folder / "one")
    begin_run(folder / "two", "--train.seed", "1")
    found = inspect_json("one", "--step", "1", "--diff", "two", code=1)
    assert not found["is_same"]
    assert found["settings"] == {"train.seed": [0, 1]}
    rows = [inspect_json(run, "--step", "1")["rows"] for run in ("one", "two")]
    assert found["different_rows"] == [
        [one, two] for one, two in zip(*rows, strict=True) if one["row"] != two["row"]
    ]
    code, output = call("inspect", "one", "--step", "1", "--diff", "two")
    assert code == 1
    for said in ("different batches", "train.seed: 0 | 1", "sequences that differ", "text.txt"):
        assert said in output


def test_a_larger_batch_differs_by_the_rows_that_it_has_more(folder: Path):
    begin_run(folder / "one")
    begin_run(folder / "two", "--train.batch_size", "10")
    found = inspect_json("one", "--step", "1", "--diff", "two", code=1)
    assert found["settings"] == {"train.batch_size": [8, 10]}
    assert [(one, two["index"]) for one, two in found["different_rows"]] == [(None, 8), (None, 9)]
    code, output = call("inspect", "one", "--step", "1", "--diff", "two")
    assert code == 1
    assert "not in this batch" in output


def test_a_text_at_another_place_is_the_same_text(folder: Path):
    (folder / "moved").mkdir()
    (folder / "moved" / "text.txt").write_bytes((folder / "text.txt").read_bytes())
    begin_run(folder / "one")
    begin_run(folder / "two", "--data.path", "moved/text.txt")
    found = inspect_json("one", "--step", "1", "--diff", "two")
    assert found["is_same"]
    assert list(found["settings"]) == ["data.path"]


@pytest.mark.parametrize("full", [(), ("--full",)])
def test_text_of_a_row_cannot_act_on_the_terminal(folder: Path, full: tuple[str, ...]):
    (folder / "text.txt").unlink()
    (folder / HOSTILE_NAME).write_text(HOSTILE_TEXT * 40)
    begin_run(folder / "run", "--data.path", HOSTILE_NAME, "--data.sequence_len", "256")
    code, output = call("inspect", "run", "--step", "1", *full)
    assert code == 0, output
    assert not {"\x1b", "\x07", "\u202e"} & set(output)
    for said in ("[bold]x[/bold]", "\\x1b[31mred\\x07", "\\u202e", HOSTILE_NAME):
        assert said in output


def test_full_shows_all_of_the_text(folder: Path):
    begin_run(folder / "run", "--data.sequence_len", "1024")
    (row,) = inspect_json("run", "--step", "1", "--rows", "0")["rows"]
    words = row["pieces"][0]["text"].split()
    code, short = call("inspect", "run", "--step", "1", "--rows", "0")
    assert code == 0
    code, full = call("inspect", "run", "--step", "1", "--rows", "0", "--full")
    assert code == 0
    assert words == full.split()[-len(words) :]
    assert len(short.splitlines()) == 6  # a title, a gap, the row, the piece, two lines of text
    assert "…" in short


@pytest.mark.parametrize(
    "text", ["", "short", "word " * 99, "\u4e2d" * 99, "a\u4e2d\n" * 99, "e\u0301" * 99]
)
def test_the_first_lines_of_a_text_fit_the_terminal(text: str):
    lines = first_lines(text, 21).split("\n")
    assert len(lines) <= 2
    assert all(cell_len(line) <= 21 for line in lines)
    shown = "".join(lines)
    assert visible(text).startswith(shown.removesuffix("…"))
    assert shown.endswith("…") == (visible(text) != shown)


def test_every_character_is_shown_so_that_it_does_nothing():
    points = [*range(0x20000), *range(0xE0000, 0xE0200), 0x10FFFF]
    everything = "".join(map(chr, points))
    for shown in (visible(everything), visible_lines(everything).translate({9: None, 10: None})):
        odd = {c for c in shown if not c.isprintable() and not c.isspace()}
        assert odd == {"\u200c", "\u200d"}  # the joiners
        assert not set(shown) & set("\r\x0b\x0c\x85\u2028\u2029")
        shown.encode("utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("nowhere", ("nowhere", "config.json", "manifest.json", "runs/quickstart")),
        ("raw", ("raw is neither", "config.json", "manifest.json")),
        ("run", ("--step", "from 1 to train.num_steps=9")),
        ("run --step 0", ("--step=0", "from 1", "train.num_steps=9")),
        ("run --step 10", ("--step=10", "from 1", "train.num_steps=9")),
        ("run --step 1 --rows 3 8", ("--rows=8", "train.batch_size=8", "from 0 to 7")),
        ("run --step 1 --rows -1", ("--rows=-1", "train.batch_size=8", "from 0 to 7")),
        ("run --first-row -1", ("--first-row=-1", "at least 0")),
        ("run --first-row 1 --diff run", ("--first-row=1", "--diff=run")),
        ("run --diff run", ("--diff=run needs --step", "train.num_steps=9")),
        ("run --step 1 --diff nowhere", ("nowhere", "not a run folder")),
        ("run --step 1 --diff data", ("data", "not a run folder")),
        ("run --step 7 --diff short", ("--step=7", "short", "train.num_steps=5")),
        ("run --step 1 --verify", ("--verify=True", "run", "prepared folder")),
        ("run --step 1 --html x.html", ("--html=x.html", "run", "prepared folder")),
        ("run --step 1 --sequence-len 8", ("--sequence-len=8", "run", "prepared folder")),
        ("data --step 0", ("--step=0", "data", "a run")),
        ("data --rows 1", ("--rows=(1,)", "data", "a run")),
        ("data --diff run", ("--diff=run", "data", "a run")),
        ("data --sequence-len 0", ("--sequence-len=0", "at least 1")),
        ("data --html nowhere/x.html", ("--html=nowhere/x.html", "a folder that exists")),
        ("data --html raw", ("--html=raw", "must be a file")),
        ("run --steps 1", ("--steps", "did you mean --step?")),
    ],
)
def test_bad_input_is_refused_in_plain_words(folder: Path, arguments: str, said: tuple[str, ...]):
    (folder / "raw").mkdir()
    begin_run(folder / "run")
    begin_run(folder / "short", "--train.num_steps", "5")
    prepare(folder / "text.txt", folder / "data")
    code, output = call("inspect", *arguments.split())
    assert code == 2, output
    assert len(output.splitlines()) < 4
    for part in said:
        assert part in output


def test_a_run_whose_text_has_changed_is_refused(folder: Path):
    begin_run(folder / "run", passed_over=())
    for store in (folder / "runs" / ".data").iterdir():
        if store.is_dir():
            (store / "manifest.json").unlink()
    (folder / "text.txt").write_text("another text " * 100)
    code, output = call("inspect", "run", "--step", "1")
    assert code == 2
    assert "another text" in output
