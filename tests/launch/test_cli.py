"""The commands around a run: what they print, and what the folder of a run holds."""

import dataclasses
import json
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
from commands import call, finish, start, wait_until
from small_runs import PROMPT, RUN, content_of, has_reached, tiny_run, write_text

from configs.flat_settings import flatten
from configs.presets.table import PRESETS
from launch.cli import COMMANDS
from launch.next_commands import generate_hint
from launch.train_settings import parse
from train.record.run_folder import RunFolder, read_json_lines, read_metrics

CORE_KEYS = {
    *("step", "tokens", "loss", "bits_per_byte", "grad_norm", "learning_rate"),
    *("tokens_per_second", "step_sec", "data_wait_sec", "mfu_causal", "mfu_full"),
    "device_memory_bytes",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Story:
    """What `status` said while a run was alive, after it was killed, and once it had finished."""

    folder: Path
    process: int
    said: dict[str, dict]
    """The object of `status --json` by the moment."""
    shown: dict[str, str]
    """The text of `status` by the moment."""


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A run that is halted, killed, started again and finished."""
    folder = tmp_path_factory.mktemp("story")
    write_text(folder)
    said, shown = {}, {}

    def look(moment: str) -> None:
        code, shown[moment] = call("status", str(folder / RUN))
        assert code == 0
        code, printed = call("status", str(folder / RUN), "--json")
        assert code == 0
        (line,) = printed.splitlines()
        said[moment] = json.loads(line)

    process = start(folder, "train", *tiny_run())
    wait_until(lambda: has_reached(folder / RUN, 12), process)
    process.send_signal(signal.SIGSTOP)  # alive, but it does not finish while we look
    look("alive")
    process.kill()
    finish(process)
    look("killed")
    code, output = finish(start(folder, "train", *tiny_run()))
    assert code == 0, output
    look("finished")
    return Story(folder=folder, process=process.pid, said=said, shown=shown)


@pytest.fixture
def run(story: Story, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """The finished run, from the folder that it was started in."""
    monkeypatch.chdir(story.folder)
    return RunFolder(RUN)


def test_help_names_every_command():
    code, output = call("--help")
    assert code == 0
    for command in COMMANDS:
        assert f"  {command} " in output


def test_help_of_train_names_every_preset():
    code, output = call("train", "--help")
    assert code == 0
    for preset in PRESETS:
        assert f"  {preset} " in output


def test_the_list_of_presets_has_size_tokens_cost_and_hardware_in_80_columns():
    code, output = call("train")
    assert code == 2
    assert call("train", "--help") == (0, output)
    lines = output.splitlines()
    assert max(map(len, lines)) <= 80
    for preset in PRESETS:
        (line,) = [line for line in lines if line.startswith(f"  {preset} ")]
        assert re.match(r"  \w+ +[\d.]+ [MB] +[\d.]+ [MBT]  (about |a few )?\w", line)
        assert re.search(r"(cores|GPU|H100|chips|H100 days \(\S+ FLOP\))$", line)


@pytest.mark.parametrize("preset", ["quickstart", "llama3_8b"])
def test_the_whole_help_of_a_preset_lists_every_field_with_its_docstring(preset: str):
    code, output = call("train", preset, "--help-all")
    assert code == 0
    words = output.replace(",", " ").split()
    for name in flatten(PRESETS[preset]()):
        assert f"--{name.replace('_', '-')}" in words
    for doc in ("Learning rate at the end of the warmup. (default: ", "Query heads [N]."):
        assert doc in output
    assert max(map(len, output.splitlines())) <= 80


def test_the_short_help_of_a_preset_has_what_it_sets_and_what_is_changed_most():
    code, output = call("train", "quickstart", "--help")
    assert code == 0
    assert len(output.splitlines()) < 60
    assert max(map(len, output.splitlines())) <= 80
    for part in ("model.qk_norm=True", "--help-all", "3 minutes on 2 CPU cores"):
        assert part in output
    table = dict(line.split()[:2] for line in output.splitlines() if line.startswith("  --"))
    assert table["--model.num-layers"] == "4"
    assert table["--optim.peak-lr"] == "0.004"
    groups = [line[:-1] for line in output.splitlines() if re.fullmatch(r"[a-z]+:", line)]
    assert groups[:4] == ["train", "optim", "data", "model"]


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("status", "RUN"),
        ("export", "RUN OUT"),
        ("import", "FOLDER"),
        ("inspect", "FOLDER"),
        ("chaos", "PRESET"),
    ],
)
def test_positional_arguments_have_names(command: str, arguments: str):
    _, output = call(command, "--help")
    assert output.startswith(f"usage: ./tessera {command} {arguments} [--flag value ...]")
    code, output = call(command)
    assert code == 2
    assert f"{arguments.split()[0]} must be given" in output


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "train"])
def test_every_command_has_a_short_help_in_80_columns(command: str):
    code, output = call(command, "--help")
    assert code == 0
    assert output.startswith(f"usage: ./tessera {command} ")
    assert len(output.splitlines()) < 50
    assert max(map(len, output.splitlines())) <= 80


def test_the_usage_and_the_version_are_short():
    code, output = call()
    assert code == 0
    assert max(map(len, output.splitlines())) <= 80
    code, output = call("--version")
    assert code == 0
    assert re.fullmatch(r"tessera \d+\.\d+\.\d+ \(Python 3\.\d+\.\d+, JAX [\d.]+\)\n", output)


@pytest.mark.parametrize("name", ["num_warmup_steps", "num-warmup-steps"])
def test_a_flag_is_read_with_hyphens_and_with_underscores(name: str):
    _, parsed = parse(["quickstart", f"--optim.{name}", "7", "--run_dir", "a", "--allow-changes"])
    assert parsed.config.optim.num_warmup_steps == 7
    assert (parsed.run_dir, parsed.allow_changes) == (Path("a"), True)


def test_bash_completes_commands_presets_and_flags(tmp_path: Path):
    code, script = call("--completion")
    assert code == 0
    (tmp_path / "script").write_text(script)

    def complete(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in ("./tessera", *words))
        done = subprocess.run(
            ["bash", "--norc", "-c", f". ./script; COMP_WORDS=({line}); "
             f"COMP_CWORD={len(words)}; _tessera; printf '%s\n' \"${{COMPREPLY[@]}}\""],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.split()

    assert complete("ch") == ["checkpoints", "chaos"]
    assert complete("train", "quickstart_") == [p for p in PRESETS if p.startswith("quickstart_")]
    assert complete("train", "quickstart", "--optim.num-w") == ["--optim.num-warmup-steps"]
    assert complete("export", "--sh") == ["--shard-size"]


@pytest.mark.slow
def test_status_of_a_running_run_names_its_process(story: Story):
    said = story.said["alive"]
    assert said["state"] == f"alive (process {story.process})"
    assert said["num_steps"] == 60
    assert "SIGTERM" in said["next_step"]


@pytest.mark.slow
def test_status_of_a_killed_run_gives_the_command_that_resumes_it(story: Story):
    said = story.said["killed"]
    assert said["state"] == "not running"
    resume = f"cd {story.folder} && ./tessera train quickstart --data.path text.txt "
    assert said["next_step"].startswith(resume)  # it is asked from another folder
    assert said["last_checkpoint"] in range(5, 60, 5)
    assert said["last_checkpoint"] <= said["step"] < 60
    assert said["last_event"].startswith("saved at 20")


def test_status_of_a_finished_run_says_so(story: Story):
    said = story.said["finished"]
    assert (said["state"], said["step"], said["last_checkpoint"]) == ("finished", 60, 60)
    assert said["loss"] == read_metrics(story.folder / RUN / "metrics.jsonl")[60]["loss"]
    assert said["last_event"].startswith("finished at 20")
    assert said["next_step"].startswith("./tessera generate ")


@pytest.mark.parametrize("moment", ["alive", "killed", "finished"])
def test_status_shows_a_person_what_it_tells_a_tool(story: Story, moment: str):
    told, shown = story.said[moment], story.shown[moment]
    for name in ("state", "last_event", "next_step"):
        assert told[name] in shown
    for name in ("loss", "eval_loss"):
        assert told[name] is None or f"{told[name]:.4f}" in shown
    assert f"{told['step']} of 60" in shown
    assert (told["eta_sec"] == 0) == (moment == "finished")


def test_status_changes_nothing(run: RunFolder):
    before = content_of(run.path)
    assert call("status", str(RUN))[0] == 0
    assert content_of(run.path) == before


def test_eval_agrees_with_the_last_evaluation_of_the_run(run: RunFolder):
    record = read_metrics(run.metrics)[60]
    before = content_of(run.path)
    code, output = call("eval", str(RUN), "--json")
    assert code == 0, output
    said = json.loads(output.splitlines()[-1])
    assert (said["step"], said["tokens"]) == (60, record["eval/tokens"])
    # Here on eight devices, there on one: sums of float32 in another order.
    assert said["loss"] == pytest.approx(record["eval/loss"], rel=1e-6)
    assert said["bits_per_byte"] == pytest.approx(record["eval/bits_per_byte"], rel=1e-6)
    assert content_of(run.path) == before


def test_eval_takes_an_older_checkpoint(run: RunFolder):
    code, output = call("eval", str(RUN), "--step", "55")
    assert code == 0, output
    assert "at step 55" in output
    code, output = call("eval", str(RUN), "--step", "7")
    assert code == 2
    for said in ("--step=7", "55", "60"):
        assert said in output


def test_generate_goes_on_from_the_prompt(run: RunFolder):
    ask = ("generate", str(RUN), "--prompt", PROMPT, "--num_tokens", "12")
    code, output = call(*ask)
    assert code == 0, output
    assert output.startswith(PROMPT)
    assert len(output.rstrip("\n")) > len(PROMPT)
    assert call(*ask) == (0, output)


def test_the_run_folder_holds_what_the_design_says(run: RunFolder):
    names = {path.name for path in run.path.iterdir()} - {".lock", ".ledger.json"}
    assert names == {
        *("config.json", "environment.json", "metrics.jsonl", "events.jsonl"),
        *("tensorboard", "checkpoints", "samples", "logs"),
    }
    assert {path.name for path in run.samples.iterdir()} == {"step-000030.txt", "step-000060.txt"}
    assert {path.name for path in run.logs.iterdir()} == {"process-0.log"}
    for checkpoint in run.checkpoints.iterdir():
        assert {path.name for path in checkpoint.iterdir()} == {"manifest.json", "state"}
    environment = json.loads((run.path / "environment.json").read_text())
    assert {"python", "packages", "num_devices", "host", "commit"} <= set(environment)


def test_every_line_of_metrics_has_the_core_keys_and_only_namespaced_ones_beside(run: RunFolder):
    lines = read_json_lines(run.metrics)
    assert {line["step"] for line in lines} == set(range(1, 61))
    for line in lines:
        assert set(line) >= CORE_KEYS
        assert all("/" in key for key in set(line) - CORE_KEYS)
    evaluated = {line["step"] for line in lines if "eval/loss" in line}
    assert evaluated == {30, 60}


def test_a_sample_begins_with_its_prompt(run: RunFolder):
    for sample in run.samples.iterdir():
        assert sample.read_text().startswith(PROMPT)


def test_events_tell_the_story_in_order(run: RunFolder):
    events = run.read_events()
    told = [event["event"] for event in events if event["event"] != "saved"]
    beginning = ["started", "compiled", "started", "resumed", "compiled", "finished"]
    assert told[: len(beginning)] == beginning
    times = [event["time"] for event in events]
    assert times == sorted(times)


def test_the_same_command_on_a_finished_run_changes_no_result(run: RunFolder):
    before = results(run)
    code, output = call("train", *tiny_run())
    assert code == 0, output
    assert results(run) == before
    assert run.holder() is None


def test_a_finished_run_that_is_started_again_shows_its_results_and_claims_no_new_work(
    run: RunFolder,
):
    code, output = call("train", *tiny_run())
    assert code == 0, output
    assert "nothing was left to do: the run had finished 60 steps" in output
    assert " min; " not in output.splitlines()[-1]
    record = read_metrics(run.metrics)[60]
    assert f"validation: {record['eval/loss']:.4f}" in output
    assert output.splitlines()[-1].endswith(generate_hint(run.path, run.read_config()))


def test_a_refusal_of_changed_settings_offers_a_command_that_works(run: RunFolder):
    wide = ("--model.embed-dim", "48", "--train.num-steps", "2", "--run-dir", str(RUN))
    code, output = call("train", *tiny_run(*wide))
    assert code == 2
    offered = output.strip().splitlines()[-1].partition("begin a new run: ")[2]
    program, command, *words = shlex.split(offered)
    assert (program, command) == ("./tessera", "train")
    code, output = call("train", *words)
    assert code == 0, output
    assert RunFolder(Path(f"{RUN}-2")).newest_step() == 2


def results(run: RunFolder) -> dict[str, bytes]:
    """Returns the files that only training changes."""
    passing = ("events.jsonl", "logs/", ".lock", ".ledger.json")
    return {k: v for k, v in content_of(run.path).items() if not k.startswith(passing)}


def test_a_run_is_used_though_its_text_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    assert call("train", *tiny_run("--train.num_steps", "2"))[0] == 0
    (tmp_path / "text.txt").unlink()
    code, output = call("eval", "runs/quickstart-text", "--json")
    assert code == 0, output
    assert json.loads(output.splitlines()[-1])["step"] == 2
