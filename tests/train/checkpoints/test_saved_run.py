"""A run that was saved, used on other devices than it was trained on."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from commands import call
from small_model import refusal, small_model, small_run
from small_runs import PROMPT, tiny_run, write_text

from configs.run import MeshConfig
from launch.saved_run import fully_sharded, on_devices, open_run
from train.evaluate import Evaluator
from train.record.run_folder import RunFolder, read_metrics

STAGES = MeshConfig(data=1, fsdp=4, stage=2, num_stage_groups=2)
MESHES = {
    "as it was trained": (None, STAGES),
    "fsdp": (MeshConfig(data=1, fsdp=8), MeshConfig(data=1, fsdp=8)),
    "tensor": (MeshConfig(fsdp=2, tensor=2), MeshConfig(fsdp=2, tensor=2)),
    "stage": (MeshConfig(stage=2), MeshConfig(stage=2)),
    "whole": (MeshConfig(), MeshConfig()),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps over two stages; the first holds layers 1 and 3, the second 2 and 4."""
    folder = tmp_path_factory.mktemp("saved")
    run = folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        write_text(folder)
        patch.chdir(folder)
        code, output = call(
            "train",
            *tiny_run("--run-dir", str(run), "--train.num_steps", "2", "--optim.peak_lr", "0.1"),
            *("--model.num_layers", "4", "--model.num_kv_heads", "2", "--model.init_std", "0.3"),
            *("--mesh.data", "1", "--mesh.fsdp", "4"),
            *("--mesh.stage", "2", "--mesh.num_stage_groups", "2"),
        )
    assert code == 0, output
    return run


@pytest.fixture
def loss(run: Path) -> float:
    return read_metrics(RunFolder(run).metrics)[2]["eval/loss"]


@pytest.mark.parametrize("name", MESHES)
def test_the_loss_of_a_run_is_the_same_wherever_its_model_lies(run: Path, loss: float, name: str):
    asked, expected = MESHES[name]
    saved = open_run(run, None, run.parent / ".data", asked)
    assert saved.config.mesh == expected
    assert saved.data is not None
    with saved.on_mesh():
        evaluation = Evaluator(saved.config, saved.data, saved.mesh)(saved.params)
    assert evaluation.loss == pytest.approx(loss, rel=2e-6)  # the order of float32 additions


def test_fully_sharded_each_device_holds_an_eighth_of_every_matrix(run: Path):
    saved = open_run(run, None, run.parent / ".data", MeshConfig(data=1, fsdp=8))
    matrices = [leaf for leaf in jax.tree.leaves(saved.params) if leaf.size >= 1024]
    assert len(matrices) > 5
    for leaf in matrices:
        assert {shard.data.size * 8 for shard in leaf.addressable_shards} == {leaf.size}


def test_on_one_device_a_run_of_eight_is_evaluated_with_the_same_loss(
    run: Path, loss: float, environment: dict[str, str]
):
    words = ["-m", "launch", "eval", str(run), "--json", "--virtual-devices", "1"]
    done = subprocess.run(
        [sys.executable, *words], cwd=run.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["loss"] == pytest.approx(loss, rel=2e-6)


def test_generate_writes_the_same_over_stages_and_sharded(run: Path, monkeypatch):
    monkeypatch.chdir(run.parent)
    ask = ("generate", str(run), "--prompt", PROMPT, "--num_tokens", "8", "--temperature", "0")
    sharded = ("--mesh.stage", "1", "--mesh.num_stage_groups", "1", "--mesh.fsdp", "8")
    code, output = call(*ask)
    assert (code, output.startswith(PROMPT)) == (0, True), output
    assert call(*ask, *sharded) == (0, output)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--mesh.fsdp 16 RUN", ("mesh.stage=2 x mesh.fsdp=16 is a mesh of 32", "8 devices")),
        ("RUN --mesh.fsdp 1 --mesh.stage 8", ("model.num_layers=4", "mesh.stage=8")),
        ("--mesh.fsdp rest --mesh.tensor rest RUN", ("mesh.fsdp and mesh.tensor", "rest")),
        ("RUN --mesh.fspd 4", ("did you mean --mesh.fsdp?",)),
    ],
)
@pytest.mark.parametrize("command", ["eval", "generate"])
def test_a_mesh_that_does_not_fit_is_refused(
    run: Path, monkeypatch, command: str, words: str, said: tuple[str, ...]
):
    monkeypatch.chdir(run.parent)
    code, output = call(command, *words.replace("RUN", str(run)).split())
    assert code == 2, output
    for each in said:
        assert each in output


def test_help_needs_no_run():
    code, output = call("eval", "--help")
    assert code == 0
    assert "--mesh.fsdp" in output
    assert "--virtual" in output


def test_a_run_that_does_not_fit_is_sharded_as_far_as_its_width_allows():
    for width, parts in ((64, 8), (12, 4), (9, 1)):
        config = small_run(small_model(embed_dim=width))
        assert fully_sharded(config) == MeshConfig(fsdp=parts)
    said = refusal(on_devices, config, MeshConfig(data=1, fsdp=8))
    assert "model.embed_dim=9" in said


def test_a_batch_of_evaluation_is_a_multiple_of_the_shards_of_a_batch():
    config = small_run(small_model(num_heads=8, num_kv_heads=8, num_layers=4))
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch_size=6))
    for mesh, size in (
        (MeshConfig(tensor=4), 6),
        (MeshConfig(data=4, tensor=2), 8),
        (MeshConfig(fsdp=8, data=1), 8),
        (MeshConfig(stage=2), 8),
        (MeshConfig(stage=2, num_stage_microbatches=4), 16),
    ):
        assert on_devices(config, mesh)[0].eval.batch_size == size
