"""`./tessera inspect DATASET`: what it counts is what is there, and its page is harmless."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import call
from s3_server import s3_server
from small_inspect import HOSTILE_NAME, HOSTILE_TEXT, Page, inspect_json, prepare

from data.remote_folders import push_folder
from data.token_statistics import count_split
from data.token_store import open_store
from launch.pages.page import join, tag
from launch.reading.dataset_report import read_data
from launch.reading.exclusion_tables import excluded_sections


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder whose text and file names would do harm, and that left out a line."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "raw").mkdir()
    (folder / "raw" / HOSTILE_NAME).write_text(HOSTILE_TEXT * 40)
    lines = [json.dumps({"text": f"sheep {i} " * (i % 9 + 1)}) for i in range(80)]
    lines[5] = "<img src=x onerror=alert(1)>"
    (folder / "raw" / "b.jsonl").write_text("\n".join(lines))
    skip = ("--data.bad_records", "skip", "--data.special_tokens", "masked")
    return prepare(folder / "raw", folder / "out\x1b[1m<i>", *skip)


def test_a_folder_holds_what_its_manifest_says(hostile: Path):
    found = inspect_json(str(hostile))
    manifest = json.loads((hostile / "manifest.json").read_text())
    assert set(found["splits"]) == {"train", "validation"}
    for name, split in found["splits"].items():
        said = manifest["splits"][name]
        for count in ("tokens", "documents", "characters", "bytes"):
            assert split[count] == said[count]
        assert split["shards"] == len(said["shards"])
        num_text_tokens = said["tokens"] - said["documents"] - 1
        assert split["bytes_per_token"] == said["bytes"] / num_text_tokens == 1  # of bytes
    assert found["tokenizer"] == manifest["tokenizer"]
    assert found["made_with"] == manifest["made_with"]
    assert found["report"]["unread"] == {"b.jsonl": 1}


def test_files_share_all_documents_and_tokens(tmp_path: Path):
    (tmp_path / "raw").mkdir()
    sizes = {f"{i:02}.txt": 10 + 7 * i % 200 for i in range(33)}
    for name, size in sizes.items():
        (tmp_path / "raw" / name).write_text("x" * size)
    all_of_it = ("--data.validation_fraction", "0")
    split = inspect_json(str(prepare(tmp_path / "raw", tmp_path / "out", *all_of_it)))
    split = split["splits"]["train"]
    falling = sorted(sizes, key=lambda name: -sizes[name])
    assert [file["name"] for file in split["files"]] == falling[:20]
    assert [file["tokens"] for file in split["files"]] == [sizes[n] + 1 for n in falling[:20]]
    assert split["other_files"]["name"] == "13 others"
    files = [*split["files"], split["other_files"]]
    assert sum(file["documents"] for file in files) == split["documents"] == 33
    assert sum(file["tokens"] for file in files) == split["tokens"] - 1  # the last separator


def test_the_histogram_counts_every_document_in_the_bin_of_its_length(hostile: Path):
    store = open_store(hostile, "sizes")
    for name, split in read_data(
        str(hostile), hostile, sequence_len=64, checksums=False
    ).splits.items():
        stream = store.train if name == "train" else store.validation
        lengths = [len(stream.document(i)) for i in range(stream.num_documents)]
        assert sum(bin.documents for bin in split.lengths) == len(lengths)
        for bin in split.lengths:
            assert bin.documents == sum(bin.first <= n <= bin.last for n in lengths)


def test_a_packing_has_room_for_each_input_once(hostile: Path):
    split = count_split(open_store(hostile, "sizes"), "train", 64)
    assert [packing.packing for packing in split.packings] == ["concat", "best_fit"]
    for packing in split.packings:
        assert packing.rows * 64 - packing.padding == split.tokens - 1
        assert packing.padding_share == packing.padding / (packing.rows * 64)
    assert split.packings[0].padding < 64


def test_frequencies_are_those_of_the_tokens(hostile: Path):
    store = open_store(hostile, "sizes")
    count_V = np.bincount(store.train.read(0, store.train.num_tokens), minlength=261)
    found = count_split(store, "train", 64).frequencies
    assert found.is_whole
    assert found.counted_tokens == count_V.sum() == store.train.num_tokens
    assert found.unseen == (count_V == 0).sum()
    assert len(found.frequent) == 30
    for token in found.frequent:
        assert token.count == count_V[token.token]
    assert [t.count for t in found.frequent] == sorted(count_V, reverse=True)[:30]
    texts = {token.token: token.text for token in found.frequent}
    assert texts[store.tokenizer.separator] == "<separator>"
    assert texts[ord("s")] == "s"
    assert found.ranks[0] == (1, max(count_V))


def test_frequencies_of_a_large_split_come_from_all_over_it(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text("a" * 10_000 + "b" * 10_000 + "c" * 20_000)
    folder = prepare(path, tmp_path / "out", "--data.validation_fraction", "0")
    found = count_split(open_store(folder, "sizes"), "train", 64, max_counted=8192).frequencies
    assert not found.is_whole
    assert found.counted_tokens == 8192
    shares = {token.text: token.count / found.counted_tokens for token in found.frequent}
    # Each of the 2048 parts that are read stands for as much of the text.
    assert shares["a"] == pytest.approx(0.25, abs=2 / 2048)
    assert shares["c"] == pytest.approx(0.5, abs=2 / 2048)


def test_samples_are_the_beginnings_of_documents(hostile: Path):
    store = open_store(hostile, "sizes")
    split = count_split(store, "train", 64)
    assert [sample.document for sample in split.samples][:: len(split.samples) - 1] == [
        0,
        split.documents - 1,
    ]
    for sample in split.samples:
        text = store.tokenizer.decode(store.train.document(sample.document).tolist())
        assert text.startswith(sample.text)
        assert sample.is_cut == (text != sample.text)


def test_the_terminal_shows_all_parts_and_nothing_acts(hostile: Path):
    code, output = call("inspect", str(hostile), "--sequence-len", "64")
    assert code == 0
    assert not {"\x1b", "\x07", "\u202e"} & set(output)
    for said in (
        *("train", "validation", HOSTILE_NAME, "b.jsonl:", "best_fit", "<separator>", "[MASK]"),
        *("unread", "line 6 is not JSON", "data.bad_records=skip", "--verify", "sequences of 64"),
    ):
        assert said in output


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ({"unread": {}, "cleaning": [], "duplicates": {}}, []),
        ({"unread": {"<a>": 3}}, [("unread", [["<a>", 3]])]),
        ({"odd": None}, [("odd", [["None"]])]),
        ({"odd": [1, "two", [3]]}, [("odd", [[1], ["two"], ["[3]"]])]),
        (
            {"cleaning": [{"step": "c4", "dropped": 2, "rules": {"short": 2}, "examples": []}]},
            [("cleaning", [["c4", 2]]), ("cleaning: c4: rules", [["short", 2]])],
        ),
        (
            {"duplicates": {"near": {"groups": 1, "examples": [{"kept": "a", "is": "b"}]}}},
            [("duplicates: near", [["groups", 1]]), ("duplicates: near: examples", [["a", "b"]])],
        ),
        ({"long": {str(i): i for i in range(25)}}, [("long", [[str(i), i] for i in range(20)])]),
    ],
)
def test_a_report_of_any_form_is_shown(report: dict, said: list):
    assert [(section.title, section.rows) for section in excluded_sections(report)] == said


@pytest.fixture(scope="module")
def page(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "page.html"
    code, output = call("inspect", str(hostile), "--html", str(path))
    assert code == 0, output
    return path.read_text()


def test_the_page_is_well_formed_and_whole(page: str):
    found = Page(page)
    assert page.startswith("<!doctype html>")
    assert {"html", "head", "title", "style", "body", "table", "svg", "polyline"} <= found.elements
    for said in ("Split: train", "Split: validation", "line 6 is not JSON", "sha256", "best_fit"):
        assert said in found.text


def test_the_page_asks_for_nothing_from_elsewhere(page: str):
    found = Page(page)
    loading = {"src", "href", "srcset", "data", "action", "background", "poster", "xlink:href"}
    assert not loading & {name for name, _ in found.attributes}
    assert not {"script", "link", "iframe", "object", "embed", "base", "img"} & found.elements
    style = page[page.index("<style>") : page.index("</style>")]
    assert not any(word in style for word in ("url(", "@import", "http"))
    assert not any(value.startswith(("http", "//")) for _, value in found.attributes)


def test_hostile_text_in_a_page_is_text(page: str):
    found = Page(page)
    assert "script" not in found.elements
    assert not any(name.startswith("on") for name, _ in found.attributes)
    assert HOSTILE_NAME in found.text
    assert HOSTILE_TEXT.split("\x1b")[0] + "\\x1b[31mred\\x07 \\u202e" in found.text
    assert not {"\x1b", "\x07", "\u202e"} & set(page)


def test_any_text_comes_back_from_a_page_as_it_was():
    text = "\"'><script>&amp;&lt;</p> \u4e2d `=\\"
    found = Page(tag("p", text, title=text))
    assert (found.text, found.attributes, found.elements) == (text, [("title", text)], {"p"})
    assert Page(join([text, tag("p", tag("b", text))])).text == text * 2


def test_the_page_follows_the_light_or_dark_of_the_reader(page: str):
    assert "prefers-color-scheme: dark" in page
    assert "color-scheme: light dark" in page


@pytest.mark.parametrize("kind", ["arrayrecord", "index"])
def test_verify_names_the_shard_that_has_changed(tmp_path: Path, hostile: Path, kind: str):
    entry = json.loads((hostile / "manifest.json").read_text())["splits"]["train"]["shards"][0]
    name = (entry if kind == "arrayrecord" else entry["index"])["file"]
    code, output = call("inspect", str(hostile), "--verify")
    assert code == 0
    assert "checksums match" in output
    assert inspect_json(str(hostile), "--verify")["checked"]["every_byte"]
    content = (hostile / name).read_bytes()
    flipped = bytearray(content)
    flipped[-5] ^= 1
    try:
        (hostile / name).write_bytes(flipped)
        code, output = call("inspect", str(hostile), "--verify")
        assert code == 65
        assert name in output
        assert "Traceback" not in output
    finally:
        (hostile / name).write_bytes(content)


def test_a_folder_in_an_object_store_is_shown_like_a_local_one(
    tmp_path: Path, hostile: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with s3_server(tmp_path) as server:
        url = f"{server.make_bucket('bucket')}/prepared"
        push_folder(hostile, url)
        found = inspect_json(url)
    assert found == {**inspect_json(str(hostile)), "folder": url}


def test_what_cleaning_did_is_shown(tmp_path: Path):
    texts = ["good text here " * 20, "good text here " * 20, "tiny"]
    texts += [f"document {i} is like no other, of {i * i} words " * 9 for i in range(20)]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    steps = ("--data.clean", "html", "length", "exact_duplicates", "--data.min_characters", "9")
    folder = prepare(path, tmp_path / "out", *steps)
    code, output = call("inspect", str(folder), "--html", str(tmp_path / "page.html"))
    assert code == 0
    shown = " ".join(output.split())
    page = Page((tmp_path / "page.html").read_text()).text
    for said in ("html", "too short", "tiny", "exact duplicates", "text.jsonl:2"):
        assert said in shown
        assert said in page
