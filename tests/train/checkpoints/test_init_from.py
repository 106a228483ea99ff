"""Runs that begin with the checkpoint of another one, or go on for longer; what each refuses."""

import json
import shutil
from pathlib import Path

import jax
import pytest
from commands import call
from small_runs import content_of, tiny_run, write_text

from sharding.mesh import make_mesh
from train.checkpoints.folders import checkpoint_steps
from train.checkpoints.manifest import read_manifest
from train.checkpoints.parameter_digest import params_digest
from train.checkpoints.restore import restore_params
from train.checkpoints.verify import verify
from train.record.run_folder import RunFolder, read_metrics
from train.state import abstract_state

CONSTANT = (
    *("--optim.schedule", "constant", "--eval.every_steps", "None", "--sample.every_steps", "None"),
    *("--checkpoint.keep_every_steps", "5"),
)


def arguments(run: str, num_steps: int, *more: str) -> list[str]:
    steps = ("--train.num_steps", str(num_steps))
    return ["train", *tiny_run(*CONSTANT, *steps, "--run-dir", run, *more)]


def train(run: str, num_steps: int, *more: str) -> RunFolder:
    code, output = call(*arguments(run, num_steps, *more))
    assert code == 0, output
    return RunFolder(Path(run))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """A folder with a run of 20 steps, called source."""
    folder = tmp_path_factory.mktemp("branches")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_text(folder)
        train("source", 20)
    return folder


@pytest.fixture
def source(made: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.chdir(made)
    return RunFolder(Path("source"))


def last_event(run: RunFolder, name: str) -> dict:
    return [event for event in run.read_events() if event["event"] == name][-1]


def losses(run: RunFolder) -> dict[int, float]:
    return {step: record["loss"] for step, record in read_metrics(run.metrics).items()}


def test_a_branch_with_its_optimizer_is_the_run_that_went_on(source):
    branch = train("with", 20, "--init-from", "source@10", "--with-optimizer")
    assert losses(branch) == {step: loss for step, loss in losses(source).items() if step > 10}
    digests = [last_event(run, "finished")["params_sha256"] for run in (branch, source)]
    assert digests[0] == digests[1]
    tokens = [read_metrics(run.metrics)[20]["tokens"] for run in (branch, source)]
    assert tokens[0] == tokens[1]
    assert last_event(branch, "branched")["step"] == 10
    # What it remembers of losses is its own: another text may have others.
    assert len(read_manifest(source.checkpoints, 10).progress.guard["window"]) == 10
    assert read_manifest(branch.checkpoints, 10).progress.guard == {}


def test_a_branch_without_it_begins_with_the_weights_alone(source):
    branch = train("without", 5, "--init-from", "source@10")
    assert list(losses(branch)) == [1, 2, 3, 4, 5]
    assert losses(branch)[1] < 0.9 * losses(source)[1]
    config = source.read_config()
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        like = abstract_state(config, mesh).params
        found = params_digest(restore_params(branch.checkpoints.absolute(), 0, like))
        wanted = params_digest(restore_params(source.checkpoints.absolute(), 10, like))
    assert found == wanted


@pytest.mark.slow
def test_a_branch_stands_alone(source, made):
    """Its source may go; the same command goes on."""
    shutil.copytree("source", "going")
    train("alone", 12, "--init-from", "going@10", "--with-optimizer")
    shutil.rmtree("going")
    before = losses(RunFolder(Path("alone")))
    branch = train("alone", 14, "--init-from", "going@10", "--with-optimizer")
    assert list(losses(branch)) == [11, 12, 13, 14]
    assert before.items() <= losses(branch).items()


def test_a_run_that_is_extended_is_the_longer_run(source):
    train("short", 10)
    longer = train("short", 20)
    assert losses(longer) == losses(source)
    digests = [last_event(run, "finished")["params_sha256"] for run in (longer, source)]
    assert digests[0] == digests[1]
    assert last_event(longer, "changed")["settings"] == {"train.num_steps": [10, 20]}


@pytest.mark.slow
def test_a_run_whose_rates_depend_on_its_length_needs_a_word_to_be_extended(source):
    cosine = ("--optim.schedule", "cosine")
    train("cosine", 4, *cosine)
    code, output = call(*arguments("cosine", 6, *cosine))
    assert code == 2
    for said in ("train.num_steps", "4", "6", "--allow-changes"):
        assert said in output


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--init-from", "nowhere"), ("nowhere", "run folder")),
        (("--init-from", "source@7"), ("source@7", "step 7", "20")),
        (("--init-from", "source@x"), ("source@x", "RUN@STEP")),
        (("--with-optimizer",), ("--with-optimizer=True", "--init-from=None")),
        (
            ("--init-from", "source@10", "--model.embed_dim", "64"),
            ("source@10", "model.embed_dim=32 there, 64 here"),
        ),
        (
            ("--init-from", "source@10", "--with-optimizer", "--optim.optimizer", "sgd"),
            ("optim.optimizer=adamw there, sgd here",),
        ),
        (
            ("--init-from", "source@20", "--with-optimizer"),
            ("train.num_steps=12", "20", "source@20"),
        ),
    ],
)
def test_a_branch_that_does_not_fit_is_refused(source, more, said):
    code, output = call(*arguments("refused", 12, *more))
    assert code == 2, output
    for part in said:
        assert part in output
    assert not Path("refused").exists()


def test_a_branch_from_something_else_than_it_began_with_is_refused(source):
    train("other", 12, "--init-from", "source@10", "--with-optimizer")
    before = content_of(Path("other/checkpoints"))
    code, output = call(*arguments("other", 12, "--init-from", "source@15", "--with-optimizer"))
    assert code == 2
    for said in ("source@15", "source@10", "other"):
        assert said in output
    assert content_of(Path("other/checkpoints")) == before


def test_another_jax_is_told_of_when_a_run_goes_on(source):
    train("moved", 4)
    run = RunFolder(Path("moved"))
    lines = [json.loads(line) for line in run.events.read_text().splitlines()]
    for line in lines:
        if line["event"] == "started":
            line["environment"]["packages"]["jax"] = "0.1.2"
            line["environment"]["xla_flags"] = "--xla_other"
    run.events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, output = call(*arguments("moved", 6))
    assert code == 0, output
    changes = last_event(run, "environment_changed")["changes"]
    assert changes["jax"][0] == "0.1.2"
    assert changes["xla_flags"][0] == "--xla_other"
    assert "jax" in output


@pytest.mark.slow
def test_another_dtype_is_told_of_and_needs_a_word(source):
    train("dtype", 4, "--model.dtype", "float32")
    command = arguments("dtype", 6, "--model.dtype", "bfloat16")
    code, output = call(*command)
    assert code == 2
    assert "model.dtype: the run has float32, now bfloat16 (changes training results)" in output
    code, output = call(*command, "--allow-changes")
    assert code == 0, output
    changed = last_event(RunFolder(Path("dtype")), "changed")["settings"]
    assert changed["model.dtype"] == ["float32", "bfloat16"]


@pytest.mark.slow
def test_the_checkpoint_of_another_model_is_refused(source):
    train("narrow", 5)
    train("wide", 5, "--model.mlp_dim", "96")
    shutil.rmtree("narrow/checkpoints/5")
    shutil.copytree("wide/checkpoints/5", "narrow/checkpoints/5")
    before = content_of(Path("narrow/checkpoints"))
    code, output = call(*arguments("narrow", 8))
    assert code == 2, output
    for said in ("narrow/checkpoints/5", "model.mlp_dim=96 there, 64 here"):
        assert said in output
    assert content_of(Path("narrow/checkpoints")) == before


@pytest.mark.parametrize("what", ["run", "checkpoint"])
def test_what_a_newer_version_has_made_is_refused_and_left_alone(source, what):
    run = RunFolder(Path(f"newer-{what}"))
    train(str(run.path), 5)
    path = run.config if what == "run" else run.checkpoints / "5" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    before = content_of(run.path)
    code, output = call(*arguments(str(run.path), 8))
    assert code == 2, output
    for said in (str(path), "format_version=99", "newer"):
        assert said in output
    after = content_of(run.path)
    for name in before.keys() - {".ledger.json", ".lock", "events.jsonl", "config.json"}:
        if not name.startswith("logs/"):
            assert after[name] == before[name]
    assert checkpoint_steps(run.checkpoints) == [5]


def test_weights_alone_are_restored_without_reading_the_moments(source):
    """As on a laptop: the moments of the checkpoint may be gone."""
    config = source.read_config()
    mesh = make_mesh(config.mesh)
    step = checkpoint_steps(source.checkpoints)[-1]
    verify(source.checkpoints, step)
    assert read_manifest(source.checkpoints, step).progress.step == 20
    with jax.set_mesh(mesh):
        params = restore_params(
            source.checkpoints.absolute(), step, abstract_state(config, mesh).params
        )
    assert params_digest(params) == last_event(source, "finished")["params_sha256"]
