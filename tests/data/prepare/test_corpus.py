"""What a corpus is: the standard library or one's own text, how it is split, and its digest."""

import dataclasses
import json
import sysconfig
from pathlib import Path

import pytest
from small_corpora import (
    corpus_config,
    documents_of,
    prepared,
    records_of,
    stored_documents,
    texts_of,
)
from small_data import sides, write_folder

from configs.data import STDLIB
from configs.errors import SettingsError
from data.prepare.text.corpus import Corpus, open_corpus
from data.prepare.text.text_records import ReadReport


@pytest.fixture
def fake_stdlib(tmp_path, monkeypatch) -> Path:
    """A standard library of 60 modules, and of what must not be read."""
    root = tmp_path / "python"
    for name in [f"m{i:02}.py" for i in range(60)] + ["package/inner.py"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {name}\n")
    for name in ("test/a.py", "package/tests/a.py", "idlelib/idle_test/a.py"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text("# a test\n")
    for name in ("site-packages/other/a.py", "dist-packages/a.py"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text("# not of the standard library\n")
    (root / "latin.py").write_bytes("# café\n".encode("latin-1"))
    (root / "empty.py").write_bytes(b"")
    monkeypatch.setattr(sysconfig, "get_path", {"stdlib": str(root)}.__getitem__)
    return root


def refusal(path: Path | str | None) -> str:
    with pytest.raises(SettingsError) as error:
        open_corpus(corpus_config(path))
    assert error.value.exit_code == 2
    return str(error.value)


@pytest.fixture(scope="module")
def stdlib_texts() -> dict[str, str]:
    return dict(documents_of(corpus_config(STDLIB)))


def test_the_standard_library_is_where_sysconfig_says(stdlib_texts):
    root = Path(sysconfig.get_path("stdlib"))
    for name in ("argparse.py", "json/decoder.py"):
        assert stdlib_texts[name] == (root / name).read_bytes().decode()


def test_the_topics_of_pydoc_are_documents_not_source(stdlib_texts):
    assert "pydoc_data/topics.py" not in stdlib_texts
    assert stdlib_texts["pydoc_data/assert"].startswith('The "assert" statement')


def test_tests_and_installed_packages_are_not_read(fake_stdlib):
    documents = documents_of(corpus_config(STDLIB))
    names = [f"m{i:02}.py" for i in range(60)] + ["package/inner.py"]
    assert documents == [(name, f"# {name}\n") for name in names]


def test_modules_that_are_not_utf8_are_left_out_and_counted(fake_stdlib):
    (fake_stdlib / "another.py").write_bytes(b"\xff")
    for bad_records in ("stop", "skip"):
        reading = ReadReport(skip=bad_records == "skip")
        config = corpus_config(STDLIB, bad_records=bad_records)
        assert "latin.py" not in dict(documents_of(config, reading))
        assert reading.counts == {"another.py": 1, "latin.py": 1}
        assert reading.examples[0] == "another.py is not UTF-8 (offset 0)"


def test_the_split_of_a_module_is_that_of_its_name_alone(fake_stdlib):
    def validating() -> list[str]:
        corpus = open_corpus(corpus_config(STDLIB))
        return [
            corpus.document_name(file, number)
            for file, number, _ in records_of(corpus_config(STDLIB))
            if corpus.split_of(file, number) == "validation"
        ]

    # [n for n in names if int(hashlib.sha256(n.encode()).hexdigest()[:16], 16) % 20 == 0]
    golden = ["m32.py", "m49.py"]
    assert validating() == golden
    for path in fake_stdlib.glob("m0*.py"):
        path.unlink()
    (fake_stdlib / "m32.py").write_text("# another text\n")
    assert validating() == golden


def test_modules_are_prepared_into_the_split_of_their_names(tmp_path, fake_stdlib):
    store = prepared(corpus_config(STDLIB, validation_fraction=0.9), tmp_path / "out")
    assert stored_documents(store, "validation") == ["# m32.py\n", "# m49.py\n"]
    assert len(stored_documents(store, "train")) == 59
    assert store.report["unread"] == {"latin.py": 1}


def test_a_standard_library_without_sources_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", {"stdlib": str(tmp_path)}.__getitem__)
    assert f"no .py files in {tmp_path}" in refusal(STDLIB)


@pytest.mark.parametrize(
    "fraction",
    [0.001, 0.1, 0.25, 0.5, 0.8, 0.9, 0.97],  # 1 - 0.8 is 0.19999999999999996
)
def test_whole_documents_validate_by_their_digest(tmp_path, fraction):
    documents = write_folder(tmp_path / "texts")
    config = corpus_config(tmp_path / "texts", validation_fraction=fraction)
    store = prepared(config, tmp_path / "out")
    train, validation = sides(documents, fraction)
    assert stored_documents(store, "train") == train
    assert stored_documents(store, "validation") == validation


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    documents = write_folder(tmp_path / "texts")
    names = ["a.txt", "b.jsonl:1", "b.jsonl:3", "b.jsonl:4", "nested/c.txt", "z.txt"]
    found = documents_of(corpus_config(tmp_path / "texts"))
    assert found == list(zip(names, documents, strict=True))


def test_a_corpus_is_the_same_after_it_was_written_down(tmp_path):
    write_folder(tmp_path / "texts")
    corpus = open_corpus(corpus_config(tmp_path / "texts"))
    assert Corpus.from_json(json.loads(json.dumps(dataclasses.asdict(corpus)))) == corpus


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path):
    write_folder(tmp_path / "texts")
    corpus = open_corpus(corpus_config(tmp_path / "texts"))
    assert corpus.changed_files() == []
    with (tmp_path / "texts/z.txt").open("a") as file:
        file.write("more")
    (tmp_path / "texts/nested/c.txt").unlink()
    assert corpus.changed_files() == ["nested/c.txt", "z.txt"]


def test_a_name_that_is_not_utf8_is_a_name(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "caf\udce9.txt").write_text("text")
    config = corpus_config(tmp_path / "texts")
    assert texts_of(config) == ["text"]
    assert len(open_corpus(config).digest()) == 64


def test_no_path_is_refused_with_the_ways_out():
    message = refusal(None)
    assert message.startswith("data.path=None must name a text")
    assert "--data.path FILE_OR_DIR" in message
    assert "stdlib" in message
