"""Data sets of the Hugging Face hub, from a server on loopback that answers as it does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import hub
from small_corpora import jsonl
from small_data import data_config

from launch.absolute_paths import with_whole_paths

PREPARE = ["-m", "launch", "prepare", "--data.tokenizer", "bytes", "--num_workers", "1"]


@pytest.fixture
def environment(tmp_path, environment):
    return {**environment, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}


def test_a_data_set_of_the_hub_is_read_as_its_splits_and_kept(tmp_path, environment):
    pytest.importorskip("datasets")
    files = {f"{split}.jsonl": jsonl([f"{split} {i}" for i in range(9)]) for split in SPLITS}
    command = [sys.executable, *PREPARE, "--data.path", "hf:own/web", "--json", "--out"]
    with hub("own/web", files) as url:
        online = {**environment, "HF_ENDPOINT": url}
        ran = subprocess.run(
            [*command, "out"], cwd=tmp_path, env=online, capture_output=True, text=True
        )
    assert ran.returncode == 0, ran.stderr
    made = json.loads(ran.stdout.splitlines()[-1])
    assert (made["train"]["documents"], made["validation"]["documents"]) == (9, 9)
    assert "hf:own/web: " in ran.stderr
    assert "(test.parquet) excluded" in ran.stderr
    offline = {**environment, "HF_ENDPOINT": "http://127.0.0.1:9"}
    ran = subprocess.run(
        [*command, "again"], cwd=tmp_path, env=offline, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1])["train"] == made["train"]


SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("hf:own/none", "data.path=hf:own/none cannot be fetched from the hub: "),
        ("hf:none", "data.path=hf:none must be hf:OWNER/NAME or hf:OWNER/NAME:CONFIG"),
        ("hf:../here", "data.path=hf:../here must be hf:OWNER/NAME or hf:OWNER/NAME:CONFIG"),
    ],
)
def test_a_data_set_that_cannot_be_had_is_said_in_a_line(tmp_path, environment, path, says):
    command = [sys.executable, *PREPARE, "--data.path", path, "--out", "out"]
    with hub("own/web", {}) as url:
        online = {**environment, "HF_ENDPOINT": url}
        ran = subprocess.run(command, cwd=tmp_path, env=online, capture_output=True, text=True)
    assert ran.returncode == 2
    assert says in ran.stderr.splitlines()[-1]
    assert not os.path.exists(tmp_path / "out")


def test_without_the_package_the_way_out_is_said(tmp_path, environment):
    (tmp_path / "datasets.py").write_text("raise ImportError\n")  # found before any other
    environment["PYTHONPATH"] = f"{tmp_path}:{environment['PYTHONPATH']}"
    command = [sys.executable, *PREPARE, "--data.path", "hf:own/web", "--out", "out"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 2
    assert "needs the package datasets: run " in ran.stderr
    assert "bin/pip install -c " in ran.stderr


def test_the_hub_is_no_folder_of_this_machine():
    """So that config.json names it as it was given, and eval finds what train has fetched."""
    config = data_config("hf:own/web", validation=("more=hf:own/other",), tokenizer="x.tiktoken")
    found = with_whole_paths(config)
    assert (found.path, found.validation) == ("hf:own/web", ("more=hf:own/other",))
    assert found.tokenizer == str(Path("x.tiktoken").absolute())
