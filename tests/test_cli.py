"""The commands around a run: what they print, and what the folder of a run holds."""

import dataclasses
import json
import shlex
import signal
from pathlib import Path

import pytest
from small_runs import (
    PROMPT,
    RUN,
    call,
    content_of,
    finish,
    has_reached,
    start,
    tiny_run,
    wait_until,
    write_text,
)

from configs.presets.table import PRESETS
from configs.run import RunConfig
from launch.cli import COMMANDS
from launch.hints import generate_hint
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


@pytest.mark.parametrize("preset", ["quickstart", "llama3_8b"])
def test_help_of_a_preset_lists_every_field(preset: str):
    code, output = call("train", preset, "--help")
    assert code == 0
    words = output.replace(",", " ").split()
    for group in dataclasses.fields(RunConfig):
        for field in dataclasses.fields(getattr(PRESETS[preset](), group.name)):
            assert f"--{group.name}.{field.name}" in words


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "train"])
def test_every_command_has_help(command: str):
    code, output = call(command, "--help")
    assert code == 0
    assert f"./tessera {command}" in output


def test_status_of_a_running_run_names_its_process(story: Story):
    said = story.said["alive"]
    assert said["state"] == f"alive (process {story.process})"
    assert said["num_steps"] == 60
    assert "SIGTERM" in said["next_step"]


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
