"""Which files a path names, under which names, in which order, and the parts they are read in."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_corpora import corpus_config, texts_of, write_dataset

import data.prepare.text.source_files
from configs.errors import SettingsError
from data.prepare.text.corpus import open_corpus
from data.prepare.text.source_files import (
    ByteRange,
    SourceFile,
    find_files,
    plan_ranges,
    plan_tasks,
)

READ = ["a.txt", "b.jsonl", "c.txt.gz", "d.jsonl.zst", "e.parquet", "f.arrow", "g.arrayrecord"]
READ += ["h.csv", "h.py", "h.tsv.gz", "i.md"]
NOT_READ = ["a.txt.bz2", "c.gz", "d.parquet.gz", "e.json", "txt"]


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def names_of(path: Path | str) -> list[str]:
    return [file.name for file in find_files(corpus_config(path))[1]]


def refusal(path: Path | str) -> str:
    with pytest.raises(SettingsError) as error:
        open_corpus(corpus_config(path))
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_is_every_file_below_it_that_can_be_read(tmp_path):
    touch(tmp_path, *READ, *NOT_READ, *(f"deep/er/{name}" for name in [*READ, *NOT_READ]))
    assert names_of(tmp_path) == sorted([*READ, *(f"deep/er/{name}" for name in READ)])


@pytest.mark.parametrize("name", [*READ, "h.npy", "i.bin"])
def test_a_single_file_is_named_without_its_folder(tmp_path, name):
    touch(tmp_path, name)
    assert names_of(tmp_path / name) == [name]


def test_files_are_read_in_the_order_of_their_names_not_of_the_disk(tmp_path):
    names = ["b.txt", "a/z.txt", "10.txt", "9.txt", "a/b/c.txt", "B.txt", "é.txt"]
    for order in (names, names[::-1]):
        folder = touch(tmp_path / order[0], *order)
        found = texts_of(corpus_config(folder))
        assert found == ["10.txt", "9.txt", "B.txt", "a/b/c.txt", "a/z.txt", "b.txt", "é.txt"]


FILES = ["a.txt", "b1.txt", "b2.txt", "b22.txt", "c.jsonl", "deep/a.txt", "deep/er/b1.txt", "x.pdf"]


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("*.txt", ["a.txt", "b1.txt", "b2.txt", "b22.txt"]),
        ("b?.txt", ["b1.txt", "b2.txt"]),
        ("b[2-9]*.txt", ["b2.txt", "b22.txt"]),
        ("**/b1.txt", ["b1.txt", "deep/er/b1.txt"]),
        ("*", ["a.txt", "b1.txt", "b2.txt", "b22.txt", "c.jsonl", "deep/a.txt", "deep/er/b1.txt"]),
        ("**", ["a.txt", "b1.txt", "b2.txt", "b22.txt", "c.jsonl", "deep/a.txt", "deep/er/b1.txt"]),
        ("dee?", ["deep/a.txt", "deep/er/b1.txt"]),  # a folder that matches is read whole
        ("deep/*", ["a.txt", "er/b1.txt"]),  # names begin below the last folder without a wildcard
        ("d*p/*.txt", ["deep/a.txt"]),
        ("[d]eep/*.txt", ["deep/a.txt"]),
        ("dee?/*.txt", ["deep/a.txt"]),
    ],
)
def test_a_glob_is_what_it_matches_named_below_its_fixed_part(tmp_path, pattern, wanted):
    touch(tmp_path, *FILES)
    assert names_of(f"{tmp_path}/{pattern}") == wanted


def test_a_glob_is_relative_to_where_one_stands_and_knows_home(tmp_path, monkeypatch):
    touch(tmp_path, *FILES)
    monkeypatch.chdir(tmp_path / "deep")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names_of("*.txt") == ["a.txt"]
    assert names_of("../b?.txt") == ["b1.txt", "b2.txt"]
    assert names_of("~/b?.txt") == ["b1.txt", "b2.txt"]
    assert names_of("~/deep") == names_of(".") == ["a.txt", "er/b1.txt"]


def test_a_file_whose_name_looks_like_a_glob_is_itself(tmp_path):
    touch(tmp_path, "a[1].txt", "a1.txt")
    assert names_of(tmp_path / "a[1].txt") == ["a[1].txt"]
    touch(tmp_path / "what?", "b.txt")
    assert names_of(tmp_path / "what?") == ["b.txt"]


def test_the_digest_is_of_names_and_bytes_not_of_the_place(tmp_path):
    corpora = {}
    for place in ("here", "there", "changed", "renamed", "moved"):
        corpora[place] = touch(tmp_path / place, *FILES)
    (tmp_path / "changed/b2.txt").write_text("b3.txt")
    (tmp_path / "renamed/b2.txt").rename(tmp_path / "renamed/b3.txt")
    (tmp_path / "moved/deep/a.txt").rename(tmp_path / "moved/deep/er/a.txt")
    digests = {place: open_corpus(corpus_config(path)).digest() for place, path in corpora.items()}
    assert digests["here"] == digests["there"]
    assert len(set(digests.values())) == 4
    assert open_corpus(corpus_config(f"{tmp_path}/there/**")).digest() == digests["here"]
    os.utime(tmp_path / "here/a.txt", (0, 0))
    assert open_corpus(corpus_config(tmp_path / "here")).digest() == digests["here"]


def test_a_link_is_read_under_its_own_name(tmp_path):
    """As the Hugging Face cache has them: names that lead to blobs without a suffix."""
    (touch(tmp_path, "blobs/0123abcd") / "snapshot").mkdir()
    (tmp_path / "snapshot/a.txt").symlink_to("../blobs/0123abcd")
    for path in ("snapshot", "snapshot/a.txt", "snapshot/*.txt", "snap*/*"):
        assert [Path(name).name for name in names_of(f"{tmp_path}/{path}")] == ["a.txt"]
        assert texts_of(corpus_config(f"{tmp_path}/{path}")) == ["blobs/0123abcd"]


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    assert refusal(tmp_path / "no.txt").startswith(f"data.path={tmp_path}/no.txt does not exist")


def test_a_glob_without_a_match_is_refused(tmp_path):
    said = f"data.path={tmp_path}/*.txt matches no file; quote the pattern"
    assert refusal(tmp_path / "*.txt").startswith(said)


@pytest.mark.parametrize("pattern", ["", "*"])
def test_a_folder_without_anything_to_read_is_refused_with_what_is_read(tmp_path, pattern):
    touch(tmp_path / "some", *NOT_READ)
    message = refusal(f"{tmp_path}/some/{pattern}")
    assert message.startswith(f"data.path={tmp_path}/some/{pattern} has no file that can be read: ")
    assert ".txt .jsonl .json .csv .tsv (also .gz .zst) .parquet" in message


@pytest.mark.parametrize("name", NOT_READ)
def test_a_file_of_another_kind_is_refused_with_what_is_read(tmp_path, name):
    touch(tmp_path, name)
    message = refusal(tmp_path / name)
    assert f"{name} must " in message
    if name != "e.json":  # which is of a kind that is read, and holds none of it
        assert f"{name} must end in .txt .jsonl .json .csv .tsv (also .gz .zst)" in message


def test_a_folder_that_mixes_tokens_with_text_is_refused_with_both(tmp_path):
    touch(tmp_path, "a.txt", "b.txt", "c/d.bin", "c/e.npy")
    message = refusal(tmp_path)
    assert "must not mix text with arrays of tokens: a.txt, c/d.bin; name one kind" in message
    assert names_of(f"{tmp_path}/c/*") == ["d.bin", "e.npy"]


def test_what_lies_beside_data_and_describes_it_is_not_read(tmp_path):
    touch(tmp_path, "records/README.md", "records/a.jsonl", "records/notes.md")
    touch(tmp_path, "tokens/README.md", "tokens/a.bin", "tokens/x.csv", "tokens/vocab.json")
    assert names_of(tmp_path / "records") == ["a.jsonl", "notes.md"]
    found = find_files(corpus_config(tmp_path / "tokens"))
    assert [file.name for file in found[1]] == ["a.bin"]
    assert found[2] == {".csv": 1, ".json": 1, ".md": 1}
    assert names_of(touch(tmp_path / "alone", "README.md")) == ["README.md"]


def test_folders_behind_links_are_read_once_each(tmp_path):
    touch(tmp_path, "elsewhere/b.txt", "some/a.txt")
    (tmp_path / "some" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "some" / "above").symlink_to(tmp_path / "some")
    assert names_of(tmp_path / "some") == ["a.txt", "link/b.txt"]


def test_hidden_folders_are_not_read(tmp_path):
    touch(tmp_path, "a.txt", ".git/b.txt", "runs/.data/0123/c.arrayrecord", ".d.txt")
    assert names_of(tmp_path) == [".d.txt", "a.txt"]


def test_a_link_that_leads_nowhere_is_refused(tmp_path):
    touch(tmp_path, "a.txt")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone.txt")
    assert f"has a broken link: {tmp_path}/b.txt" in refusal(tmp_path)


def test_suffixes_are_known_in_any_case(tmp_path):
    touch(tmp_path, "a.TXT", "b.Jsonl.GZ")
    files = find_files(corpus_config(tmp_path))[1]
    assert [(f.kind, f.compression) for f in files] == [("text", None), ("jsonl", ".gz")]


def test_a_saved_dataset_that_was_not_copied_whole_is_refused(tmp_path):
    path = write_dataset(tmp_path, ["one", "two"])
    assert len(json.loads((path / "state.json").read_text())["_data_files"]) == 2
    (path / "data-00001-of-00002.arrow").unlink()
    message = refusal(path)
    assert "is a saved dataset without its data-00001-of-00002.arrow; copy it again" in message


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"_data_files": 3}'])
def test_a_saved_dataset_whose_state_is_torn_is_refused(tmp_path, content):
    path = write_dataset(tmp_path, ["one", "two"])
    (path / "state.json").write_text(content)
    assert "has a state.json that `datasets` did not write (" in refusal(path)


kinds = st.sampled_from(["a.txt", "a.txt.gz", "a.jsonl", "a.jsonl.zst", "a.parquet", "a.npy"])


@given(
    sizes=st.lists(st.tuples(kinds, st.integers(0, 300)), min_size=1, max_size=12),
    part=st.integers(1, 100),
    task=st.integers(1, 200),
)
def test_tasks_are_all_bytes_of_all_files_once_and_in_order(sizes, part, task):
    files = []
    for name, num_bytes in sizes:
        kind = data.prepare.text.source_files.kind_of(Path(name))
        assert kind is not None
        files.append(SourceFile(name, name, kind, num_bytes, 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.prepare.text.source_files, "RANGE_BYTES", part)
        patch.setattr(data.prepare.text.source_files, "TASK_BYTES", task)
        parts = plan_ranges(files)
        tasks = plan_tasks(files, parts)
    assert [each for group in tasks for each in group] == parts
    can_be_cut = {"a.txt", "a.jsonl", "a.npy"}
    for i, file in enumerate(files):
        own = [each for each in parts if each.file == i]
        assert own[0].start == 0
        assert [each.stop for each in own] == [*(each.start for each in own[1:]), None]
        assert len(own) == (max(1, -(-file.num_bytes // part)) if file.name in can_be_cut else 1)
    assert [each.file for each in parts] == sorted(each.file for each in parts)

    def size_of(group: list[ByteRange]) -> int:
        return sum((p.stop or files[p.file].num_bytes) - p.start for p in group)

    # A task ends with the part that fills it, and only then.
    assert all(size_of(group[:-1]) < task <= size_of(group) for group in tasks[:-1])
