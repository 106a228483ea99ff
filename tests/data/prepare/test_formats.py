"""What people bring as data: names of splits, widths of token ids, marks, fields and encodings."""

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from small_corpora import (
    corpus_config,
    documents_of,
    jsonl,
    prepared,
    stored_documents,
    texts_of,
    write_dataset,
    write_texts,
    zst,
)
from small_prepare import run, sentences, small_sizes
from small_runs import tiny_run

import data.prepare.text.json_csv
from configs.data import PrepareConfig
from configs.errors import SettingsError
from data.prepare.text.corpus import open_corpus
from data.prepare.text.text_records import ReadReport
from launch.cli import main

SPLITS = {  # layout: (trains, validates, left out)
    "hub": ("train-00000-of-00001.jsonl", "validation-00000-of-00001.jsonl", "test-0.jsonl"),
    "dots": ("wiki.train.jsonl", "wiki.valid.jsonl", "wiki.test.jsonl"),
    "folders": ("train/0.jsonl", "val/0.jsonl", "test/0.jsonl"),
    "other words": ("x_Training_1.jsonl", "x_dev_1.jsonl", "x_test.jsonl"),
}


def refusal(config: PrepareConfig) -> str:
    with pytest.raises(SettingsError) as error:
        list(texts_of(config))
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("layout", SPLITS)
def test_files_named_as_splits_train_validate_or_are_left_out(tmp_path, layout):
    for name in SPLITS[layout]:
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jsonl([f"{name} {i}" for i in range(9)]))
    config = corpus_config(tmp_path / "texts", validation_fraction=0.5)
    store = prepared(config, tmp_path / "out")
    train, validation, test = SPLITS[layout]
    assert stored_documents(store, "train") == [f"{train} {i}" for i in range(9)]
    assert stored_documents(store, "validation") == [f"{validation} {i}" for i in range(9)]
    (note,) = store.report["notes"]
    for said in (f"({train}) to train on", f"({validation}) to validate on", f"({test}) excluded"):
        assert said in note
    alike = corpus_config(tmp_path / "texts", split_files="ignore")
    assert len(texts_of(alike)) == 27
    only_validates = corpus_config(tmp_path / "texts", validation_fraction=1)
    assert texts_of(only_validates) == [f"{validation} {i}" for i in range(9)]


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (["val.txt", "test.txt"], ["test.txt", "val.txt"]),  # nothing else trains
        (["train.txt", "other.txt"], ["other.txt", "train.txt"]),
        (["train.txt", "latest.txt", "testing_ground.txt"], None),
        (["train.py", "test.py"], ["test.py", "train.py"]),  # source code
        (["train.txt", "test.txt"], ["train.txt"]),
    ],
)
def test_held_out_names_count_only_beside_train_ones(tmp_path, names, read):
    for name in names:
        (tmp_path / name).write_text(name)
    corpus = open_corpus(corpus_config(tmp_path))
    assert [file.name for file in corpus.files] == (sorted(names) if read is None else read)
    assert {file.split for file in corpus.files} == {None}  # a fraction of them validates


def test_a_dataset_of_several_splits_is_read_by_their_names(tmp_path):
    for split in ("train", "validation", "test"):
        (tmp_path / split).mkdir()
        write_dataset(tmp_path / split, [split, f"{split} 2"]).rename(tmp_path / f"{split}-saved")
        (tmp_path / split).rmdir()
        (tmp_path / f"{split}-saved").rename(tmp_path / split)
        (tmp_path / split / "cache-0123456789abcdef.arrow").write_bytes(b"of a map")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "validation", "test"]}')
    corpus = open_corpus(corpus_config(tmp_path))
    assert {file.split for file in corpus.files} == {"train", "validation"}
    assert texts_of(corpus_config(tmp_path)) == ["train", "train 2", "validation", "validation 2"]
    assert texts_of(corpus_config(tmp_path / "test")) == ["test", "test 2"]


WIDE = np.arange(40, dtype="<u4") * 5 % 199


def index(lengths: list[int], code: int) -> bytes:
    """Megatron's .idx, as far as its lengths of sequences."""
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, len(lengths), 1)
    return head + np.array(lengths, "<i4").tobytes()


def ids_of(config: PrepareConfig, vocab_size: int | None = None) -> tuple[list[int], str]:
    from data.prepare.text.readers import read_range

    corpus = open_corpus(config, vocab_size)
    (part,) = corpus.tasks[0]
    records = read_range(part, corpus.files[0], config, ReadReport(skip=False))
    return [i for record in records for i in np.asarray(record.ids)], " ".join(corpus.notes)


def test_ids_of_32_bits_are_read_as_such_or_refused(tmp_path):
    path = tmp_path / "a.bin"
    WIDE.tofile(path)
    message = refusal(corpus_config(path))
    assert "every other value is 0" in message
    assert "pass --data.token-dtype uint32, or uint16" in message
    by_setting = ids_of(corpus_config(path, token_dtype="uint32"))
    assert by_setting == (
        WIDE.tolist(),
        "token ids are read as uint32 in 1 .bin (by: data.token_dtype)",
    )
    found, note = ids_of(corpus_config(path), vocab_size=100_000)
    assert found == WIDE.tolist()
    assert "the 100,000 entries of data.tokenizer" in note
    assert len(ids_of(corpus_config(path, token_dtype="uint16"), 300)[0]) == 80


def test_the_index_of_megatron_says_how_wide_ids_are(tmp_path):
    path = tmp_path / "a.bin"
    WIDE.tofile(path)
    (tmp_path / "a.idx").write_bytes(index([10, 30], 4))
    assert ids_of(corpus_config(tmp_path)) == (
        WIDE.tolist(),
        "token ids are read as int32 in 1 .bin (by: the .idx)",
    )
    assert "data.token_dtype=uint16 must be int32" in refusal(
        corpus_config(path, token_dtype="uint16")
    )
    for torn in (index([10, 29], 4), index([10, 30], 0), b"", index([10, 30], 8)):
        (tmp_path / "a.idx").write_bytes(torn)
        assert f"{tmp_path}/a.idx must be the index of {path}" in refusal(corpus_config(path))
        assert ids_of(corpus_config(path, token_dtype="uint32"))[0] == WIDE.tolist()


@pytest.mark.parametrize("form", ["parquet", "dataset"])
def test_a_column_of_token_ids_is_read_as_documents_of_them(tmp_path, form):
    rows = [[1, 2, 256], [3], [4, 256, 5, 6]]
    if form == "parquet":
        path = tmp_path / "a.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"input_ids": rows, "text": ["a"] * 3}), path)
    else:
        import datasets

        path = tmp_path / "saved"
        datasets.Dataset.from_dict({"input_ids": rows}).save_to_disk(path)
    config = corpus_config(path, text_field="input_ids", validation_fraction=0)
    store = prepared(config, tmp_path / "out")
    stream = store.train.read(0, store.train.num_tokens).tolist()
    assert stream == [256, 1, 2, 256, 3, 256, 4, 256, 5, 6, 256]
    assert store.train.num_documents == 4
    assert store.report["notes"] == ["each row of input_ids is a document of token ids"]


MARKED = "\ufeffTürkçe"


@pytest.mark.parametrize(
    "name", ["a.txt", "a.txt.gz", "a.txt.zst", "a.jsonl", "a.csv", "a.json", "b.json", "a.md"]
)
def test_a_byte_order_mark_belongs_to_no_text(tmp_path, name):
    text = MARKED[1:]
    content = {
        ".jsonl": jsonl([text, text]),
        ".csv": f"text\n{text}\n".encode(),
        ".json": jsonl([text]) if name == "b.json" else json.dumps([text]).encode(),
    }.get(Path(name).suffix, text.encode())
    pack = {".gz": gzip.compress, ".zst": zst}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(pack(b"\xef\xbb\xbf" + content))
    assert set(texts_of(corpus_config(tmp_path / name))) == {text}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("text", ["English text\n" * 9, "Русский текст\n" * 9])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.csv"])
def test_wide_encodings_are_refused_by_name(tmp_path, monkeypatch, name, text, encoding):
    small_sizes(monkeypatch, part_bytes=40)
    content = text.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    message = refusal(corpus_config(tmp_path))
    assert f"{tmp_path}/{name} " in message
    assert "UTF-16" in message or "UTF-32" in message
    assert "convert it (iconv -f UTF-16 -t UTF-8)" in message
    reading = ReadReport(skip=True)
    assert texts_of(corpus_config(tmp_path, bad_records="skip"), reading) == []
    assert reading.counts == {name: 1}


@pytest.mark.parametrize("text", ["\0" * 99, "\0\1a" * 99, "\t\t\n" * 99, "a\0b\0c" * 3])
def test_control_characters_are_not_taken_for_another_encoding(tmp_path, text):
    assert texts_of(corpus_config(write_texts(tmp_path, [text]))) == [text]


@pytest.mark.parametrize("part_bytes", [40, 10_000])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_marks_between_documents_are_told_and_split_by_a_setting(
    tmp_path, monkeypatch, part_bytes, suffix
):
    documents = [f"story {i}\nof two lines\n" for i in range(9)]
    content = "<|endoftext|>\n".join(documents).encode()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / f"a.txt{suffix}").write_bytes(
        gzip.compress(content) if suffix else content
    )
    small_sizes(monkeypatch, part_bytes=part_bytes)
    config = corpus_config(tmp_path / "texts", validation_fraction=0)
    whole = prepared(config, tmp_path / "whole")
    assert stored_documents(whole, "train") == [content.decode()]
    (note,) = whole.report["notes"]
    assert note.startswith("text has 8 <|endoftext|>, read as ordinary text; ")
    assert "--data.document-separator '<|endoftext|>'" in note
    config = corpus_config(
        tmp_path / "texts", validation_fraction=0, document_separator="<|endoftext|>"
    )
    split = prepared(config, tmp_path / "split")
    assert stored_documents(split, "train") == documents
    assert split.report["notes"] == ["text has 8 <|endoftext|>, each of which ends a document"]
    with pytest.raises(SettingsError, match=r"data\.document_separator=<eos> must occur in a"):
        prepared(corpus_config(tmp_path / "texts", document_separator="<eos>"), tmp_path / "none")


RECORD = {"title": "A", "data": {"text": "one", "year": 3}, "data.text": "two", "none": None}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"text_field": "data.text"}, "two"),  # a field of that very name wins
        ({"text_field": "title"}, "A"),
        ({"text_template": "{title}\\n\n{data.text}{{}}"}, "A\n\ntwo{}"),
        ({"text_template": "{title} {data.year}"}, "A 3"),
    ],
)
@pytest.mark.parametrize("form", ["jsonl", "json", "parquet"])
def test_a_text_is_a_field_a_dotted_field_or_several_in_a_template(tmp_path, form, settings, text):
    write_records(tmp_path / f"a.{form}", [RECORD, RECORD])
    config = corpus_config(tmp_path / f"a.{form}", **settings)
    assert documents_of(config) == [(f"a.{form}:1", text), (f"a.{form}:2", text)]
    nested = {"data": {"text": "one"}}
    write_records(tmp_path / f"a.{form}", [nested])
    assert texts_of(corpus_config(tmp_path / f"a.{form}", text_field="data.text")) == ["one"]


def write_records(path: Path, records: list[dict]) -> None:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet", "csv"])
def test_a_template_of_unknown_fields_names_those_there_are(tmp_path, form):
    if form == "csv":
        (tmp_path / "a.csv").write_text("title,body\na,b\n")
    else:
        write_records(tmp_path / f"a.{form}", [{"title": "a", "body": "b"}])
    message = refusal(corpus_config(tmp_path / f"a.{form}", text_template="{title} {text}"))
    assert "has no text of data.text_template, but has: title, body" in message


@pytest.mark.parametrize("template", ["no field", "{}", "{a!r}", "{a:>3}", "{a", "}"])
def test_a_template_that_cannot_be_read_is_refused(template):
    with pytest.raises(SettingsError, match=r"data\.text_template=.* must be like"):
        corpus_config(None, text_template=template)
    with pytest.raises(SettingsError, match=r"data\.text_field=a and data\.text_template"):
        corpus_config(None, text_template="{a}", text_field="a")


@pytest.mark.parametrize("block", [1, 3, 50])
def test_an_array_is_read_element_by_element(tmp_path, monkeypatch, block):
    monkeypatch.setattr(data.prepare.text.json_csv, "_BLOCK_CHARACTERS", block)
    values = [{"text": 'a "]" ,{ \\'}, "text itself", {"text": "é€🙂"}, {"text": ""}, {"text": "z"}]
    for indent in (None, 2):
        (tmp_path / "a.json").write_text(" " + json.dumps(values, indent=indent) + "\n")
        assert [text for _, text in documents_of(corpus_config(tmp_path))] == [
            'a "]" ,{ \\',
            "text itself",
            "é€🙂",
            "z",
        ]
    assert texts_of(corpus_config(write_empty(tmp_path))) == []


def write_empty(folder: Path) -> Path:
    (folder / "empty.json").write_text("[ ]")
    return folder / "empty.json"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('[{"text": "a"}, {"text": "b"', "element 2 is not JSON"),
        ('[{"text": "a"}, {"text": b}]', "element 2 is not JSON"),
        ('[{"text": "a"}', "the array has no closing ]"),
        ('[{"text": "a"}] []', "text follows the closing ] of the array"),
        ('[{"text": "a"}, 7]', "element 2 has no data.text_field=text, but has: int"),
        ('[{"text": "a"}, ' + "[" * 100_000, "element 2 is not JSON"),
    ],
)
def test_an_array_that_is_none_is_refused_with_its_place(tmp_path, content, says):
    (tmp_path / "a.json").write_text(content)
    assert says in refusal(corpus_config(tmp_path / "a.json"))
    reading = ReadReport(skip=True)
    found = texts_of(corpus_config(tmp_path / "a.json", bad_records="skip"), reading)
    assert (found, reading.counts) == (["a"], {"a.json": 1})


def test_an_element_without_an_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(data.prepare.text.json_csv, "_BLOCK_CHARACTERS", 100)
    monkeypatch.setattr(data.prepare.text.json_csv, "_RECORD_CHARACTERS", 1000)
    (tmp_path / "a.json").write_text('["' + "a" * 10_000 + '"]')
    assert "element 1 is not JSON (Unterminated string" in refusal(corpus_config(tmp_path))


def test_rows_of_csv_that_cannot_be_read_are_told(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n1,"two\nlines, one field"\n2\n\n3,"x"y\n4,last\n')
    assert "a.csv, row 2 has 1 fields, but the header has 2" in refusal(corpus_config(tmp_path))
    reading = ReadReport(skip=True)
    found = texts_of(corpus_config(tmp_path, bad_records="skip"), reading)
    assert (found, reading.counts) == (["two\nlines, one field"], {"a.csv": 2})
    assert ", line 6 is not CSV" in reading.examples[1]


def test_writing_and_source_code_are_a_document_each_and_counted(tmp_path):
    for name in ("a.py", "b.py", "deep/c.md", "d.GO"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    (tmp_path / "package.json").write_text('{\n "name": 1\n}')
    corpus = open_corpus(corpus_config(tmp_path))
    assert corpus.notes == ("each of these files is one document: 1 .GO, 1 .md, 2 .py",)
    assert corpus.not_read == {".json": 1}
    assert [name for name, _ in documents_of(corpus_config(tmp_path))] == [
        "a.py",
        "b.py",
        "d.GO",
        "deep/c.md",
    ]


def test_the_report_says_what_became_of_each_file_of_a_folder(tmp_path, capsys):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbfmarked\n<|endoftext|>\nfor two")
    (folder / "b.json").write_text('[{"text": "one"}, {"text": "two"}]')
    (folder / "c.csv").write_text('id,text\n1,"of two\nlines"\n2\n')
    (folder / "d.jsonl").write_bytes(jsonl(["one", "two", "three"]))
    (folder / "e.py").write_text("import this\n")
    (folder / "f.txt").write_bytes("wide".encode("utf-16"))
    (folder / "g.pdf").write_bytes(b"%PDF")
    settings = ["--data.path", str(folder), "--data.tokenizer", "bytes"]
    command = ["prepare", *settings, "--num_workers", "1", "--out", str(tmp_path / "out")]
    code = main(command)
    said = capsys.readouterr()
    assert code == 2
    assert "c.csv, row 2 has 1 fields" in said.out + said.err
    assert main([*command, "--data.bad_records", "skip"]) == 0
    said = capsys.readouterr().out
    assert "other files are ignored: 1 .pdf" in said
    assert "note: each of these files is one document: 1 .py" in said
    assert "note: text has 1 <|endoftext|>, read as ordinary text" in said
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [tuple(file.values())[:2] + tuple(file.values())[3:] for file in report["files"]] == [
        ("a.txt", "text", 1, 0),
        ("b.json", "json", 2, 0),
        ("c.csv", "csv", 1, 1),
        ("d.jsonl", "jsonl", 3, 0),
        ("e.py", "text", 1, 0),
        ("f.txt", "text", 0, 1),
    ]
    assert report["not_read"] == {".pdf": 1}
    assert "f.txt is UTF-16, by its byte-order mark" in report["unread_examples"]
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert "f.txt is UTF-16, by its byte-order mark" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_trains_resumes_and_evaluates_on_what_it_was_given(tmp_path):
    """As JSON, a template, and files named as splits, through the command line."""
    folder = tmp_path / "texts"
    folder.mkdir()
    lines = list(sentences(300))
    for name, part in (("train", lines[:250]), ("val", lines[250:])):
        records = [{"title": f"{i}", "body": line} for i, line in enumerate(part)]
        (folder / f"{name}.json").write_text(json.dumps(records))
    settings = ["--data.path", "texts", "--data.text_template", "{title}: {body}"]
    settings += ["--optim.schedule", "constant", "--checkpoint.every_steps", "2"]
    for num_steps in ("2", "4"):
        command = tiny_run(*settings, "--train.num_steps", num_steps)
        code, said = run(tmp_path, "train", *command)
        assert code == 0, said
        assert f"finished {num_steps} steps" in said
        note = "note: files are named as splits: 1 (train.json) to train on, 1 (val.json) to v"
        assert (note in said) == (num_steps == "2")  # it was prepared then
    for command in (("eval",), ("inspect", "--step", "3")):
        code, said = run(tmp_path, command[0], "runs/quickstart-texts", *command[1:])
        assert code == 0, said
