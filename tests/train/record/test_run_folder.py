"""The folder of a run: its settings, who holds it, and lines that a killed process tore."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
from commands import finish, start
from small_runs import content_of, tiny_run, write_text

from configs.errors import SettingsError
from configs.presets.table import PRESETS
from configs.run import RunConfig
from train.record.metrics_writer import MetricsWriter
from train.record.run_folder import RunFolder, read_json_lines, read_metrics


@pytest.fixture
def config() -> RunConfig:
    return PRESETS["quickstart"]()


@pytest.fixture
def folder(tmp_path: Path, config: RunConfig) -> RunFolder:
    """A run of `config` that has begun."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.begin(config, {"host": "first"})
    return folder


def changed(config: RunConfig, group: str, **fields: object) -> RunConfig:
    part = dataclasses.replace(getattr(config, group), **fields)
    return dataclasses.replace(config, **{group: part})


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_that_were_written_are_read_back_equal(preset: str, tmp_path: Path):
    folder = RunFolder(tmp_path)
    folder.begin(PRESETS[preset](), {})
    assert folder.read_config() == PRESETS[preset]()


OLD_NAMES = [
    ("mixtral_8x7b", "model.norm_place", "input", "norm_placement", "pre"),
    ("gemma3_1b", "model.norm_place", "both", "norm_placement", "sandwich"),
    ("bert_base", "model.norm_place", "residual", "norm_placement", "post"),
    ("deepseek_v3", "model.attention", "latent", "attention", "mla"),
    ("deepseek_v3", "model.num_future_tokens", 1, "mtp_depth", 1),
    ("deepseek_v3", "model.future_weight", 0.2, "mtp_weight", 0.2),
    ("deepseek_v3", "model.tied_head", False, "tied_embeddings", False),
    ("quickstart", "guard.max_skipped_steps", 7, "max_nonfinite_steps", 7),
]


@pytest.mark.parametrize(("preset", "old", "value", "field", "now"), OLD_NAMES)
def test_a_setting_by_its_old_name_is_read_and_makes_no_difference(
    tmp_path, preset: str, old: str, value: object, field: str, now: object
):
    group = old.split(".")[0]
    config = changed(PRESETS[preset](), group, **{field: now})
    folder = RunFolder(tmp_path)
    folder.begin(config, {})
    flat = json.loads(folder.config.read_text())
    del flat[f"{group}.{field}"]
    folder.config.write_text(json.dumps({**flat, old: value}))
    assert folder.read_config() == config
    assert folder.check_settings(config, allow_changes=False, new_run="") == {}


@pytest.mark.parametrize(
    ("preset", "parts"),
    [
        ("bert_base", ("head_bias", "head_transform", "pooler", "next_sentence")),
        ("modernbert_base", ("head_bias", "head_transform")),
        ("first_transformer", ("head_bias",)),
        ("quickstart", ()),
    ],
)
def test_the_parts_of_a_head_of_an_earlier_version_are_read_as_one_setting(folder, preset, parts):
    folder.begin(PRESETS[preset](), {})
    flat = json.loads(folder.config.read_text())
    del flat["model.head"]
    names = ("head_bias", "head_transform", "pooler", "next_sentence")
    flat |= {f"model.{name}": name in parts for name in names}
    folder.config.write_text(json.dumps(flat))
    assert folder.read_config() == PRESETS[preset]()
    flat["model.next_sentence"] = True
    flat["model.pooler"] = False
    folder.config.write_text(json.dumps(flat))
    with pytest.raises(SettingsError, match=r"model\.head must be one of linear, bias, mlm"):
        folder.read_config()


def test_the_buckets_of_t5_are_read_where_they_are_those_of_t5(folder):
    folder.begin(PRESETS["t5_small"](), {})
    flat = json.loads(folder.config.read_text())
    names = ("model.num_relative_buckets", "model.max_relative_distance")
    folder.config.write_text(json.dumps({**flat, **dict(zip(names, (32, 128), strict=True))}))
    assert folder.read_config() == PRESETS["t5_small"]()
    folder.config.write_text(json.dumps({**flat, names[0]: 8}))
    with pytest.raises(SettingsError, match=r"num_relative_buckets=8 must be 32"):
        folder.read_config()


def test_the_rope_settings_of_an_earlier_version_are_read_as_one(folder):
    config = PRESETS["llama_1b"]()
    folder.begin(config, {})
    flat = json.loads(folder.config.read_text())
    flat = {name: x for name, x in flat.items() if not name.startswith("model.rope_scaling.")}
    old = {"rope_scaling": "llama3", "rope_scaling_factor": 32.0, "rope_original_len": 8192}
    old |= {"rope_low_frequency": 1.0, "rope_high_frequency": 4.0, "rope_beta_fast": 32.0}
    flat |= {f"model.{name}": value for name, value in old.items()}
    folder.config.write_text(json.dumps(flat))
    assert folder.read_config() == config
    assert folder.check_settings(config, allow_changes=False, new_run="") == {}


def test_a_second_start_leaves_the_environment_of_the_first(folder, config):
    first = (folder.path / "environment.json").read_bytes()
    folder.begin(config, {"host": "second"})
    assert (folder.path / "environment.json").read_bytes() == first


def test_the_same_settings_differ_in_nothing(folder, config):
    assert folder.check_settings(config, allow_changes=False, new_run="NEW RUN") == {}


@pytest.mark.parametrize(
    ("group", "field", "old", "new"),
    [
        ("eval", "every_steps", 200, None),
        ("checkpoint", "num_last", 2, 5),
        ("train", "log_every_steps", 10, 1),
        ("data", "num_read_threads", 2, 4),
        ("mesh", "data", "rest", 4),
        ("sample", "prompts", ["def ", "class ", "The "], ["x"]),
    ],
)
def test_a_safe_change_is_returned(folder, config, group, field, old, new):
    value = tuple(new) if isinstance(new, list) else new
    found = folder.check_settings(
        changed(config, group, **{field: value}), allow_changes=False, new_run="NEW RUN"
    )
    assert found == {f"{group}.{field}": (old, new)}


@pytest.mark.parametrize(
    ("group", "field", "old", "new"),
    [
        ("train", "seed", 0, 1),
        ("train", "batch_size", 16, 32),
        ("optim", "peak_lr", 4e-3, 1e-3),
        ("model", "dropout", 0.0, 0.1),
    ],
)
def test_a_change_of_the_trajectory_needs_to_be_allowed(folder, config, group, field, old, new):
    other = changed(config, group, **{field: new})
    with pytest.raises(SettingsError) as refusal:
        folder.check_settings(other, allow_changes=False, new_run="NEW RUN")
    for said in (f"{group}.{field}", str(old), str(new), "--allow-changes", "NEW RUN"):
        assert said in str(refusal.value)
    assert folder.check_settings(other, allow_changes=True, new_run="NEW RUN") == {
        f"{group}.{field}": (old, new)
    }


@pytest.mark.parametrize(
    ("group", "field", "old", "new"),
    [
        ("model", "num_layers", 4, 8),
        ("model", "tied_embeddings", True, False),
        ("optim", "optimizer", "adamw", "sgd"),
        ("data", "tokenizer", "sentencepiece", "bytes"),
    ],
)
def test_a_change_that_does_not_fit_is_never_allowed(folder, config, group, field, old, new):
    with pytest.raises(SettingsError) as refusal:
        folder.check_settings(
            changed(config, group, **{field: new}), allow_changes=True, new_run="NEW RUN"
        )
    for said in (f"{group}.{field}", str(old), str(new), "begin a new run: NEW RUN"):
        assert said in str(refusal.value)
    assert "--allow-changes" not in str(refusal.value)


def test_every_setting_that_is_refused_is_named(folder, config):
    other = changed(changed(config, "model", num_layers=8), "train", seed=7)
    with pytest.raises(SettingsError, match=r"model\.num_layers(?s:.*)train\.seed"):
        folder.check_settings(other, allow_changes=False, new_run="NEW RUN")


def test_a_folder_that_is_not_a_run_is_refused_and_untouched(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("precious")
    folder = RunFolder(tmp_path)
    for look in (folder.check_free, folder.read_config):
        with pytest.raises(SettingsError, match=str(tmp_path)):
            look()
    assert content_of(tmp_path) == {"thesis.txt": b"precious"}


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "run").write_text("precious")
    with pytest.raises(SettingsError, match="--run-dir"):
        RunFolder(tmp_path / "run").check_free()


def test_an_empty_folder_and_a_begun_run_are_free(tmp_path: Path, folder):
    RunFolder(tmp_path / "none").check_free()
    (tmp_path / "empty").mkdir()
    RunFolder(tmp_path / "empty").check_free()
    folder.check_free()


def test_a_folder_is_held_by_one_process(tmp_path: Path):
    write_text(tmp_path)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    (folder.path / ".lock").write_text("999999999")  # of a process that is long gone
    assert folder.holder() is None
    with folder.held():
        assert folder.holder() == os.getpid()
        before = content_of(folder.path)
        code, output = finish(start(tmp_path, "train", *tiny_run("--run-dir", "run")))
        assert (code, content_of(folder.path)) == (2, before)
        assert "--run-dir" in output
        assert str(os.getpid()) in output
    assert folder.holder() is None


def test_a_torn_line_of_metrics_is_closed_and_passed_over(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.5}\n{"step": 2, "lo')
    assert read_metrics(path) == {1: {"step": 1, "loss": 3.5}}
    writer = MetricsWriter(path, tmp_path / "tensorboard")
    writer.begin(first_step=1)
    writer.write({"step": 2, "loss": 3.25}, time=0.0)
    writer.close()
    assert read_metrics(path) == {1: {"step": 1, "loss": 3.5}, 2: {"step": 2, "loss": 3.25}}
    assert path.read_text().startswith('{"step": 1, "loss": 3.5}\n{"step": 2, "lo\n')


def test_a_torn_line_of_events_is_closed_and_passed_over(folder):
    folder.add_event("started")
    with folder.events.open("a") as file:
        file.write('{"time": "2026-')
    folder.add_event("resumed", step=5)
    assert [event["event"] for event in folder.read_events()] == ["started", "resumed"]
    assert folder.events.read_text().count("\n") == 3


def test_the_last_line_of_a_step_supersedes_those_before(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    lines = [(1, 9.0), (2, 8.0), (3, 7.0), (2, 8.5), (3, 7.5), (4, 6.5)]
    path.write_text("".join(f'{{"step": {step}, "loss": {loss}}}\n' for step, loss in lines))
    found = {step: record["loss"] for step, record in read_metrics(path).items()}
    assert list(found.items()) == [(1, 9.0), (2, 8.5), (3, 7.5), (4, 6.5)]


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path):
    assert read_json_lines(tmp_path / "metrics.jsonl") == []
