"""Settings in a file: `./tessera train PRESET --config FILE`, which `--print-config` writes."""

import dataclasses
import json
from pathlib import Path

import pytest
from commands import call
from small_runs import RUN, content_of, tiny_run, write_text

from configs.flat_settings import flatten
from configs.presets.table import PRESETS
from configs.run import RunConfig
from launch.config_file import apply_config_file, to_toml
from launch.train_settings import default_run_dir, parse
from train.record.run_folder import FORMAT_VERSION, RunFolder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config_of(*arguments: str) -> RunConfig:
    return parse(arguments)[1].config


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", ["run.toml", "config.json"])
def test_a_whole_file_gives_back_every_setting_of_every_preset(preset: str, name: str):
    config = PRESETS[preset]()
    flat = {"format_version": FORMAT_VERSION, **flatten(config)}
    Path(name).write_text(to_toml(config) if name.endswith(".toml") else json.dumps(flat))
    read = apply_config_file(Path(name), None)
    assert read == config
    assert repr(read) == repr(config)  # 1 and 1.0 are equal, but not the same


@pytest.mark.parametrize("value", ['a "b" \\ \n\t', "\x7f\x01 é 漢 🙂", "None ", ""])
def test_text_in_a_file_is_given_back_exactly(value: str):
    config = PRESETS["quickstart"]()
    sample = dataclasses.replace(config.sample, prompts=(value, "--flag"), temperature=1e-300)
    config = dataclasses.replace(config, sample=sample)
    Path("run.toml").write_text(to_toml(config), encoding="utf-8")
    assert apply_config_file(Path("run.toml"), None) == config


def test_print_config_writes_what_config_reads_and_starts_nothing(folder: Path):
    flags = ("--optim.peak-lr", "1e-3", "--data.path", "a b.txt", "--model.no-qk-norm")
    code, printed = call("train", "quickstart", *flags, "--print-config")
    assert code == 0
    assert not list(folder.iterdir())
    Path("run.toml").write_text(printed)
    assert config_of("--config", "run.toml") == config_of("quickstart", *flags)
    assert call("train", "--config=run.toml", "--print_config") == (0, printed)


def test_flags_win_over_the_file_and_the_file_over_the_preset():
    Path("part.toml").write_text(
        "[optim]\npeak_lr = 1\nmax_grad_norm = 'None'\n[train]\nnum_steps = 20\nseed = 5\n"
        "[sample]\nprompts = []\n"
    )
    config = config_of(
        *("quickstart", "--train.seed", "6", "--config", "part.toml"),
        *("--optim.num-warmup-steps", "0"),  # the 50 of the preset do not fit into 20 steps
    )
    assert (config.optim.peak_lr, config.optim.max_grad_norm, config.sample.prompts) == (
        1,
        None,
        (),
    )
    assert isinstance(config.optim.peak_lr, float)
    assert (config.train.num_steps, config.train.seed) == (20, 6)
    assert config.model == PRESETS["quickstart"]().model


def test_settings_of_a_file_that_do_not_fit_together_are_refused_as_flags_are():
    Path("part.json").write_text('{"train.num_steps": 20}')
    code, output = call("train", "quickstart", "--config", "part.json")
    assert code == 2
    for part in ("optim.num_warmup_steps=50", "train.num_steps=20"):
        assert part in output


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.toml",
            "[model]\nnum_layer = 3",
            ("model.num_layer ", "did you mean model.num_layers?"),
        ),
        ("a.toml", "[modle]\nnum_layers = 3", ("modle.num_layers ", "model.num_layers?")),
        ("a.toml", "num_layers = 3", ("num_layers ", "did you mean model.num_layers?")),
        ("a.json", '{"train.num_step": 3}', ("did you mean train.num_steps?",)),
        ("a.toml", "[model]\nnum_layers = '3'", ("model.num_layers='3'", "INT")),
        ("a.toml", "[model]\nnum_layers = true", ("model.num_layers=True", "INT")),
        ("a.toml", "[model]\nnum_layers = 3.0", ("model.num_layers=3.0", "INT")),
        ("a.toml", "[model]\nnum_layers = 'None'", ("model.num_layers='None'", "INT")),
        ("a.toml", "[model]\nqk_norm = 1", ("model.qk_norm=1", "BOOL")),
        ("a.toml", "[model]\nnorm = 'rmss'", ("model.norm='rmss'", "{rms,layer}")),
        ("a.toml", "[sample]\nprompts = 'a'", ("sample.prompts='a'", "[STR ...]")),
        ("a.toml", "[sample]\nprompts = [1]", ("sample.prompts=[1]", "[STR ...]")),
        ("a.json", '{"optim.peak_lr": null}', ("optim.peak_lr=None", "FLOAT")),
        ("a.json", '{"train.seed": 1, "train.seed": 1}', ("train.seed", "twice")),
        ("a.json", '{"train.seed": 1, "train": {"seed": 1}}', ("train.seed", "twice")),
        (
            "a.toml",
            "model.mtp_depth = 1\nmodel.num_future_tokens = 1",
            ("model.mtp_depth", "twice"),
        ),
        ("a.toml", "model.attention = []", ("model.attention=[]", "mha")),
        ("a.toml", "[train]\nseed = 1\nseed = 2", ("cannot be read", "Cannot overwrite")),
        ("a.json", '{"format_version": 99}', ("format_version=99", "newer version")),
        ("a.json", "[1]", ("cannot be read",)),
        ("a.json", "{", ("cannot be read",)),
        ("a.yaml", "", (".toml", ".json")),
        ("none.toml", None, ("cannot be read", "No such file")),
    ],
)
def test_a_wrong_file_is_refused(name: str, content: str | None, said: tuple[str, ...]):
    if content is not None:
        Path(name).write_text(content)
    before = content_of(Path())
    code, output = call("train", "quickstart", "--config", name)
    assert code == 2, output
    assert len(output.splitlines()) < 5
    for part in (name, *said):
        assert part in output, output
    assert content_of(Path()) == before


def test_without_a_preset_the_file_must_be_whole():
    Path("part.toml").write_text("[train]\nnum_steps = 20\n")
    code, output = call("train", "--config", "part.toml")
    assert code == 2
    for part in ("part.toml lacks", "model.num_layers", "optim.peak_lr", "./tessera train PRESET"):
        assert part in output


def test_config_is_given_once():
    code, output = call("train", "quickstart", "--config", "a.toml", "--config", "b.toml")
    assert code == 2
    assert "--config is given twice: a.toml, b.toml" in output


def test_a_replaced_setting_in_a_file_is_ignored_and_named():
    Path("old.json").write_text('{"guard.save_limit_sec": 3.0, "train.seed": 4}')
    code, output = call("train", "quickstart", "--config", "old.json", "--print-config")
    assert code == 0
    assert "guard.save_limit_sec (now guard.hang_limit_sec)" in output
    assert "seed = 4" in output


@pytest.mark.parametrize(
    ("file", "run_dir"),
    [("big.toml", "runs/big"), ("runs/quickstart/config.json", "runs/quickstart")],
)
def test_a_run_without_a_preset_is_named_after_its_file(file: str, run_dir: str):
    config = PRESETS["llama3_8b"]()
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(to_toml(config) if file.endswith("toml") else json.dumps(flatten(config)))
    name, parsed = parse(["--config", file, "--data.path", "text.txt"])
    assert str(default_run_dir(name, parsed.config)).startswith(run_dir)


def test_a_run_is_resumed_from_its_own_config_and_refused_with_another(folder: Path):
    write_text(folder)
    assert call("train", *tiny_run("--train.num_steps", "2"))[0] == 0
    config = (RUN / "config.json").read_text()
    Path("same.json").write_text(config)
    Path("other.json").write_text(config.replace('"train.seed": 0', '"train.seed": 1'))
    same = ["train", "quickstart", "--run-dir", str(RUN), "--config"]
    assert call(*same, "same.json")[0] == 0
    assert "changed" not in {event["event"] for event in RunFolder(RUN).read_events()}
    by_flag = ["train", *tiny_run("--train.num_steps", "2", "--train.seed", "1")]
    for arguments in ([*same, "other.json"], by_flag):
        code, output = call(*arguments)
        assert code == 2
        assert "train.seed: the run has 0, now 1" in output
