"""What is read as text, in which order, and how it is split."""

import json
import re
import sysconfig
from pathlib import Path

import pytest
from small_data import cut, data_config, write_folder

from configs.errors import SettingsError
from configs.run import STDLIB
from data.corpus import Corpus, open_corpus


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


def documents_of(corpus: Corpus, split: str) -> list[str]:
    return [document.text for document in corpus.documents() if document.split == split]


def refusal(path: Path | str | None, **changes) -> str:
    with pytest.raises(SettingsError) as error:
        list(open_corpus(data_config(path, **changes)).documents())
    assert error.value.exit_code == 2
    return str(error.value)


def test_the_standard_library_is_where_sysconfig_says():
    corpus = open_corpus(data_config(STDLIB))
    texts = dict(corpus.texts())
    root = Path(sysconfig.get_path("stdlib"))
    assert texts["argparse.py"] == (root / "argparse.py").read_bytes().decode()
    assert texts["json/decoder.py"] == (root / "json/decoder.py").read_bytes().decode()
    assert {document.split for document in corpus.documents()} == {"train", "validation"}


def test_the_topics_of_pydoc_are_documents_not_source():
    texts = dict(open_corpus(data_config(STDLIB)).texts())
    assert "pydoc_data/topics.py" not in texts
    assert texts["pydoc_data/assert"].startswith('The "assert" statement')


def test_tests_and_installed_packages_are_not_read(fake_stdlib):
    names = [name for name, _ in open_corpus(data_config(STDLIB)).texts()]
    assert names == [f"m{i:02}.py" for i in range(60)] + ["package/inner.py"]


def test_modules_that_are_not_utf8_are_left_out_and_counted(fake_stdlib):
    assert open_corpus(data_config(STDLIB)).num_left_out() == 1
    (fake_stdlib / "another.py").write_bytes(b"\xff")
    corpus = open_corpus(data_config(STDLIB))
    assert corpus.num_left_out() == 2
    assert not {"latin.py", "another.py"} & {name for name, _ in corpus.texts()}


def test_the_split_of_a_module_is_that_of_its_name_alone(fake_stdlib):
    def validating() -> list[str]:
        corpus = open_corpus(data_config(STDLIB))
        return [document.name for document in corpus.documents() if document.split != "train"]

    # [n for n in names if int(hashlib.sha256(n.encode()).hexdigest()[:16], 16) % 20 == 0]
    golden = ["m32.py", "m49.py"]
    assert validating() == golden
    for path in fake_stdlib.glob("m0*.py"):
        path.unlink()
    (fake_stdlib / "m32.py").write_text("# another text\n")
    assert validating() == golden


def test_a_standard_library_without_sources_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", {"stdlib": str(tmp_path)}.__getitem__)
    assert f"no Python sources in {tmp_path}" in refusal(STDLIB)


@pytest.mark.parametrize(
    "fraction",
    [0.001, 0.1, 0.25, 0.5, 0.8, 0.9],  # 1 - 0.8 is 0.19999999999999996
)
def test_exactly_the_last_fraction_of_all_characters_validates(tmp_path, fraction):
    documents = write_folder(tmp_path / "texts")
    corpus = open_corpus(data_config(tmp_path / "texts", validation_fraction=fraction))
    train, validation = cut(documents, 1000 - round(1000 * fraction))
    assert documents_of(corpus, "train") == train
    assert documents_of(corpus, "validation") == validation


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.97])
def test_train_and_validation_are_the_text_in_its_order(tmp_path, fraction):
    documents = write_folder(tmp_path / "texts")
    corpus = open_corpus(data_config(tmp_path / "texts", validation_fraction=fraction))
    found = list(corpus.documents())
    assert "".join(document.text for document in found) == "".join(documents)
    splits = [document.split for document in found]
    assert splits == sorted(splits)  # no training after validation: "train" < "validation"
    assert len(found) == len(documents) + 1  # the document at the cut became two


def test_a_cut_between_two_documents_makes_no_empty_one(tmp_path):
    lines = [json.dumps({"text": text}) for text in ("12345", "67890")]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    corpus = open_corpus(data_config(tmp_path / "a.jsonl", validation_fraction=0.5))
    assert documents_of(corpus, "train") == ["12345"]
    assert documents_of(corpus, "validation") == ["67890"]


def test_a_text_file_is_one_document_byte_for_byte(tmp_path):
    text = "\ufeffone\r\ntwo\rthree\n\n\0\t end "
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert list(open_corpus(data_config(tmp_path / "a.txt")).texts()) == [("a.txt", text)]


def test_each_line_of_jsonl_is_a_document(tmp_path):
    lines = ['{"body": "one\\ntwo", "id": 1}', "", '{"body": ""}', ' {"body": "\u00e9\\u00e9"} ']
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    corpus = open_corpus(data_config(tmp_path / "a.jsonl", text_field="body"))
    assert list(corpus.texts()) == [("a.jsonl:1", "one\ntwo"), ("a.jsonl:4", "éé")]


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    documents = write_folder(tmp_path / "texts")
    corpus = open_corpus(data_config(tmp_path / "texts"))
    names = ["a.txt", "b.jsonl:1", "b.jsonl:3", "b.jsonl:4", "nested/c.txt", "z.txt"]
    assert list(corpus.texts()) == list(zip(names, documents, strict=True))


def test_the_digest_is_of_names_and_bytes_not_of_the_place(tmp_path):
    corpora = []
    for place in ("here", "there", "changed", "renamed"):
        write_folder(tmp_path / place)
        corpora.append(tmp_path / place)
    (tmp_path / "changed/z.txt").write_text("...")
    (tmp_path / "renamed/z.txt").rename(tmp_path / "renamed/y.txt")
    here, there, changed, renamed = (open_corpus(data_config(p)).digest() for p in corpora)
    assert here == there
    assert len({here, changed, renamed}) == 3


def test_no_path_is_refused_with_the_ways_out():
    message = refusal(None)
    assert message.startswith("data.path=None must name a text")
    assert "--data.path FILE_OR_DIR" in message
    assert "stdlib" in message


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    assert refusal(tmp_path / "no.txt").startswith(f"data.path={tmp_path}/no.txt does not exist")


def test_a_folder_without_text_is_refused(tmp_path):
    (tmp_path / "a.md").write_text("no")
    assert f"data.path={tmp_path} is a folder without a .txt or .jsonl" in refusal(tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("no")
    assert "a.csv must end in .txt or .jsonl" in refusal(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_text_that_is_not_utf8_is_refused_and_replaced_on_request(tmp_path, name):
    text = {"a.txt": b"caf\xe9 au lait", "a.jsonl": b'{"text": "caf\xe9 au lait"}'}[name]
    path = tmp_path / name
    path.write_bytes(text)
    message = refusal(path)
    assert f"byte 0xe9 at offset {text.index(0xE9)}" in message
    assert str(path) in message
    assert "--data.invalid_utf8 replace" in message
    corpus = open_corpus(data_config(path, invalid_utf8="replace"))
    assert [text for _, text in corpus.texts()] == ["caf\ufffd au lait"]


def test_a_line_that_is_no_json_is_refused_with_its_number(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": two}\n')
    assert f"{path}, line 3 is not JSON" in refusal(path)


@pytest.mark.parametrize(
    ("line", "has"),
    [
        ('{"title": "x", "body": "y"}', "title, body"),
        ('{"text": 3}', "text"),
        ('["text"]', "list"),
        ('"text"', "str"),
    ],
)
def test_a_line_without_the_field_is_refused_with_what_it_has(tmp_path, line, has):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n' + line)
    message = refusal(path)
    assert re.match(r"data\.text_field=text must be a text in every line", message)
    assert message.endswith(f"{path}, line 2 has: {has}")
