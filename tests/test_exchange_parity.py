"""Logits and hidden states are those of `transformers`, from weights that it has written."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from small_model import mesh_of, quick_jit

from model.exchange.files import stored_tensors
from model.exchange.registry import read_settings
from model.exchange.weights import match_tensors, read_weights
from model.inputs import Inputs
from train.state import shape_of

GOLDENS = sorted(path.parent for path in (ROOT / "tests" / "huggingface").glob("*/golden.npz"))


def import_golden(folder: Path):
    said = json.loads((folder / "config.json").read_text())
    stored = stored_tensors(folder)
    family, config = read_settings(said, stored.keys(), dtype="float32")
    shape = shape_of(config)
    with jax.set_mesh(mesh_of()):
        params = read_weights(
            match_tensors(family, config, stored), shape.params, shape.layout(mesh_of())
        )
    return config, params


def inputs_of_golden(golden) -> Inputs:
    def plain(tokens_BT, mask_BT=None) -> Inputs:
        positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        segments_BT = np.ones_like(tokens_BT) if mask_BT is None else mask_BT
        return Inputs(tokens_BT, positions_BT, segments_BT)

    text = plain(golden["input_ids"], golden["attention_mask"])
    if "decoder_input_ids" in golden:
        return plain(golden["decoder_input_ids"])._replace(encoder=text)
    return text._replace(types_BT=golden.get("token_type_ids"))


@pytest.mark.parametrize("folder", GOLDENS, ids=lambda folder: folder.name)
def test_logits_are_those_of_the_reference(folder):
    config, params = import_golden(folder)
    with np.load(folder / "golden.npz") as arrays:
        golden = dict(arrays)

    @quick_jit
    def run(params, inputs):
        model = shape_of(config).merge(params)
        hidden_BTD = model(inputs)
        return hidden_BTD, model.logits(hidden_BTD)

    inputs = inputs_of_golden(golden)
    hidden_BTD, logits_BTV = run(params, inputs)
    is_token = np.asarray(inputs.segments_BT) > 0
    for found, wanted in ((hidden_BTD, golden["hidden"]), (logits_BTV[..., :61], golden["logits"])):
        wanted = wanted[is_token]
        difference = np.abs(np.asarray(found)[is_token] - wanted).max()
        assert difference <= 2e-5 * np.abs(wanted).max()
