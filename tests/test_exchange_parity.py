"""Logits and hidden states are those of `transformers`, from weights that it has written."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from small_model import mesh_of, quick_jit

from model.exchange.folder import open_published
from model.inputs import Inputs
from train.state import shape_of

GOLDENS = sorted(path.parent for path in (ROOT / "tests" / "huggingface").glob("*/golden.npz"))


def import_published(folder: Path):
    """Returns the settings and parameters of a model, in float32."""
    found = open_published(folder, dtype="float32")
    shape, mesh = shape_of(found.config), mesh_of()
    with jax.set_mesh(mesh):
        return found.config, found.read(shape.params, shape.layout(mesh))


def inputs_of_golden(golden) -> Inputs:
    def plain(tokens_BT, mask_BT=None) -> Inputs:
        positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        segments_BT = np.ones_like(tokens_BT) if mask_BT is None else mask_BT
        return Inputs(tokens_BT, positions_BT, segments_BT)

    text = plain(golden["input_ids"], golden["attention_mask"])
    if "decoder_input_ids" in golden:
        return plain(golden["decoder_input_ids"])._replace(encoder=text)
    return text._replace(types_BT=golden.get("token_type_ids"))


def largest_difference(folder: Path) -> float:
    """Returns how far hidden states and logits are from the golden's, over their scale."""
    config, params = import_published(folder)
    with np.load(folder / "golden.npz") as arrays:
        golden = dict(arrays)

    @quick_jit
    def run(params, inputs):
        model = shape_of(config).merge(params)
        hidden_BTD = model(inputs)
        found = {"hidden": hidden_BTD, "logits": model.logits(hidden_BTD)[..., : config.num_tokens]}
        if config.next_sentence:
            found["next_sentence"] = model.next_sentence_logits(hidden_BTD)[:, 0]
        return found

    inputs = inputs_of_golden(golden)
    is_token = np.asarray(inputs.segments_BT) > 0
    differences = []
    for name, found in run(params, inputs).items():
        wanted, found = golden[name], np.asarray(found)
        if found.ndim == 3:
            wanted, found = wanted[is_token], found[is_token]
        differences.append(np.abs(found - wanted).max() / np.abs(wanted).max())
    return max(differences)


@pytest.mark.parametrize("folder", GOLDENS, ids=lambda folder: folder.name)
def test_hidden_states_and_logits_are_those_of_the_reference(folder):
    assert largest_difference(folder) <= 2e-5
