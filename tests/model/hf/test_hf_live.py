"""Held against `transformers` itself, in an environment of its own, with models made by chance."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import ROOT, call
from small_goldens import import_hf_model, largest_difference
from small_model import mesh_of

from model.inputs import Inputs
from train.state import shape_of

HERE = ROOT / "tests/model/hf/goldens"
SEEDS = (1, 2, 3)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reference():
    """Runs reference.py in its environment, made once below .cache, or at TESSERA_REFERENCE."""
    given = os.environ.get("TESSERA_REFERENCE")
    python = Path(given) if given else ROOT / ".cache" / "reference" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
        packages = [python, "-m", "pip", "install", "-q", "-r", HERE / "requirements.txt"]
        subprocess.run(packages, check=True)

    def run(*arguments: str) -> str:
        environment = {name: v for name, v in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [python, HERE / "reference.py", *arguments],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("seed", SEEDS)
def test_models_of_any_size_are_those_of_the_reference_both_ways(
    reference, tmp_path, monkeypatch, seed
):
    monkeypatch.chdir(tmp_path)
    reference("random", str(seed), str(tmp_path / "hf"))
    folders = sorted((tmp_path / "hf").iterdir())
    assert len(folders) == 18
    pairs = []
    for folder in folders:
        assert largest_difference(folder) <= 2e-5, folder.name
        exported = tmp_path / "tessera" / folder.name
        run = str(tmp_path / "runs" / folder.name)
        assert call("import", str(folder), "--run-dir", run, "--dtype", "float32")[0] == 0
        assert call("export", run, str(exported), "--shard-size", "10KB")[0] == 0
        pairs.append((str(exported), str(folder)))
    found = json.loads(reference("check", json.dumps(pairs)))
    for export, changes in found.items():
        assert changes.pop("difference") <= 1e-6, export
        assert not changes, (export, changes)


def test_minilm_gives_the_sentence_embeddings_of_its_package(reference, tmp_path):
    reference("embed", str(tmp_path))
    config, params = import_hf_model(tmp_path / "model")
    assert config.num_layers == 6
    with np.load(tmp_path / "sentences.npz") as arrays:
        tokens_BT, mask_BT, wanted = arrays["tokens"], arrays["mask"], arrays["embeddings"]
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    with jax.set_mesh(mesh_of()):
        hidden_BTD = shape_of(config).merge(params)(Inputs(tokens_BT, positions_BT, mask_BT))
    sums_BD = (np.asarray(hidden_BTD) * mask_BT[..., None]).sum(axis=1)
    found = sums_BD / np.linalg.norm(sums_BD, axis=-1, keepdims=True)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
