"""The models that `transformers` wrote, each in a folder with its outputs for two texts."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import ROOT
from small_model import mesh_of, quick_jit

from model.hf.folder import open_hf_model
from model.inputs import Inputs
from train.state import shape_of

GOLDENS = sorted(path.parent for path in (ROOT / "tests/model/hf/goldens").glob("*/golden.npz"))
LLAMA = ROOT / "tests/model/hf/goldens/llama"
by_golden = pytest.mark.parametrize("folder", GOLDENS, ids=lambda folder: folder.name)


def import_hf_model(folder: Path):
    """Returns the settings and parameters of a model, in float32."""
    hf_model = open_hf_model(folder, dtype="float32")
    shape, mesh = shape_of(hf_model.config), mesh_of()
    with jax.set_mesh(mesh):
        return hf_model.config, hf_model.read_params(shape.params, shape.layout(mesh))


def inputs_of_golden(golden) -> Inputs:
    """Returns each text in a row of its own."""

    def plain(tokens_BT, mask_BT=None) -> Inputs:
        positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        segments_BT = np.ones_like(tokens_BT) if mask_BT is None else mask_BT
        return Inputs(tokens_BT, positions_BT, segments_BT)

    text = plain(golden["input_ids"], golden["attention_mask"])
    if "decoder_input_ids" in golden:
        return plain(golden["decoder_input_ids"])._replace(encoder=text)
    return text._replace(types_BT=golden.get("token_type_ids"))


def packed(inputs: Inputs) -> Inputs:
    """Returns all texts in one row, one after the other, without their padding."""

    def one_row(inputs: Inputs) -> Inputs:
        is_token = inputs.segments_BT > 0
        rows = np.broadcast_to(np.arange(1, len(is_token) + 1)[:, None], is_token.shape)
        flat = {name: x[is_token][None] for name, x in inputs._asdict().items() if x is not None}
        return Inputs(**flat)._replace(segments_BT=rows[is_token][None])

    encoder = None if inputs.encoder is None else one_row(inputs.encoder)
    return one_row(inputs._replace(encoder=None))._replace(encoder=encoder)


def largest_difference(folder: Path, *, pack: bool = False) -> float:
    """Returns how far hidden states and logits are from the golden's, over their scale.

    Args:
        pack: read all texts in one row, which the golden has in rows of their own.
    """
    config, params = import_hf_model(folder)
    with np.load(folder / "golden.npz") as arrays:
        golden = dict(arrays)

    @quick_jit
    def run(params, inputs):
        model = shape_of(config).merge(params)
        hidden_BTD = model(inputs)
        found = {"hidden": hidden_BTD, "logits": model.logits(hidden_BTD)[..., : config.num_tokens]}
        if config.next_sentence:
            found["next_sentence"] = model.next_sentence_logits(hidden_BTD)
        return found

    inputs = inputs_of_golden(golden)
    is_token = np.asarray(inputs.segments_BT) > 0
    is_first = np.asarray(inputs.positions_BT)[is_token] == 0
    differences = []
    for name, found in run(params, packed(inputs) if pack else inputs).items():
        found = np.asarray(found)[0] if pack else np.asarray(found)[is_token]
        if name == "next_sentence":
            wanted, found = golden[name], found[is_first]
        else:
            wanted = golden[name][is_token]
        differences.append(np.abs(found - wanted).max() / np.abs(wanted).max())
    return max(differences)
