"""The loop as a whole, in the moments between runs: nothing left to do, copies, old settings."""

import json
import shutil
from pathlib import Path

import pytest
from commands import call
from small_runs import RUN, tiny_run, write_text

from configs.errors import SettingsError
from train.checkpoints.folders import checkpoint_steps
from train.record.run_folder import RunFolder

QUIET = ("--eval.every_steps", "None", "--sample.every_steps", "None")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    return RunFolder(RUN)


def train(*more: str, code: int = 0) -> str:
    found, output = call("train", *tiny_run(*QUIET, *more))
    assert found == code, output
    return output


def events(run: RunFolder, name: str) -> list[dict]:
    return [event for event in run.read_events() if event["event"] == name]


def test_a_run_whose_last_step_was_not_logged_has_nothing_left_to_do(run):
    train("--train.log_every_steps", "7", "--train.num_steps", "20")
    for step in checkpoint_steps(run.checkpoints):
        if step > 15:
            shutil.rmtree(run.checkpoints / str(step))
    output = train("--train.log_every_steps", "7", "--train.num_steps", "15", "--allow-changes")
    assert "nothing is left to do" in output
    assert "the run had finished 15 steps" in output
    assert events(run, "finished")[-1]["step"] == 15


DURABLE = ("--checkpoint.durable_dir", "durable", "--train.num_steps", "10")


def test_a_finished_run_that_is_started_again_completes_its_copies(run):
    train(*DURABLE)
    shutil.rmtree("durable/checkpoints/10")
    output = train(*DURABLE)
    assert "nothing is left to do" in output
    assert Path("durable/checkpoints/10/manifest.json").exists()
    before = Path("durable/checkpoints/10/manifest.json").stat().st_mtime_ns
    train(*DURABLE)  # it is there: nothing is copied again
    assert Path("durable/checkpoints/10/manifest.json").stat().st_mtime_ns == before


def test_a_run_whose_last_copy_fails_has_not_finished(run, monkeypatch):
    monkeypatch.setattr("train.checkpoints.mirror._RETRIES_SEC", (0.0, 0.0))

    def refuse(tier, checkpoint: Path) -> None:
        raise SettingsError(f"durable/checkpoints/{checkpoint.name} cannot be written")

    with monkeypatch.context() as patch:
        patch.setattr("train.checkpoints.durable_storage.DurableTier.copy", refuse)
        output = train(*DURABLE, code=75)
    for part in ("checkpoint.durable_dir=", "cannot be written", "resume with: ./tessera train"):
        assert part in output
    assert not events(run, "finished")
    train(*DURABLE)
    assert Path("durable/checkpoints/10/manifest.json").exists()
    assert events(run, "finished")


OLD = {"guard.step_limit_sec": 600.0, "guard.min_limit_sec": 60.0}


def test_settings_of_an_earlier_version_are_read_and_named_and_go(run):
    train("--train.num_steps", "10")
    before = json.loads(run.config.read_text())
    run.config.write_text(json.dumps({**before, **OLD}))
    output = train("--train.num_steps", "10")
    for part in ("guard.step_limit_sec=600.0", "guard.min_limit_sec=60.0", "guard.hang_limit_sec"):
        assert part in output
    assert json.loads(run.config.read_text()) == before
    assert "earlier version" not in train("--train.num_steps", "10")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--guard.step_limit_sec", "--guard.hang-limit-sec"),
        ("--guard.min-limit-sec", "--guard.hang-limit-sec"),
        ("--model.num-future-tokens", "--model.mtp-depth"),
        ("--model.norm_place", "--model.norm-placement"),
        ("--model.pooler", "--model.head"),
        ("--model.rope-scaling", "--model.rope-scaling.kind"),
        ("--model.rope-original-len", "--model.rope-scaling.original-len"),
        ("--model.num-relative-buckets", "always 32"),
        ("--model.no-head-bias", "--model.head"),
        ("--guard.hang-factor", "--guard.hang-limit-sec"),
        ("--frozen-limit-sec", "--supervise"),
        ("--start-limit-sec", "--rendezvous-timeout-sec"),
    ],
)
def test_settings_of_an_earlier_version_are_refused_on_the_line(run, old: str, new: str):
    output = train(old, "5", code=2)
    assert old in output
    assert new in output
    assert not run.path.exists()


def test_an_exit_names_a_command_only_where_giving_it_again_helps(run):
    more = ("--guard.max_nonfinite_steps", "2", "--guard.max_rollbacks", "0", "--optim.peak_lr")
    output = train(*more, "1e30", code=76)
    assert "resume with" not in output
    assert "guard.max_rollbacks=0" in output
    assert "optim.peak_lr" in output
