"""`./tessera test`: its parts are the whole, and what the workflow runs is what the README says."""

import re

import pytest
from commands import ROOT, call
from parts import part_of


@pytest.mark.parametrize("part", ["3/2", "0/2", "2", "a/b", "1/2/3"])
def test_a_part_that_there_is_not_is_refused(part):
    code, said = call("test", "--part", part)
    assert code == 2
    assert f"--part={part}" in said
    assert "1/4" in said


def test_quick_and_all_are_refused_together():
    code, said = call("test", "--quick", "--all")
    assert code == 2
    assert "--quick" in said
    assert "--all" in said


def test_parts_together_are_all_tests_once():
    split = [part_of(range(7), f"{k}/3") for k in (1, 2, 3)]
    parts = [part for part, _ in split]
    assert sorted(i for part in parts for i in part) == list(range(7))
    assert all(sorted([*part, *others]) == list(range(7)) for part, others in split)
    assert {len(part) for part in parts} == {2, 3}


def test_the_workflow_runs_the_commands_of_the_readme():
    workflow = (ROOT / ".github/workflows/tests.yml").read_text()
    readme = (ROOT / "README.md").read_text()
    told = re.findall(r"^(\./tessera .+?)  +# sets up", readme, re.M)
    assert re.findall(r"- run: (.*)", workflow) == told
    assert "3.11" in workflow
    assert "3.13" in workflow
