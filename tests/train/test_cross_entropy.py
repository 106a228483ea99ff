"""The loss in chunks of tokens is that of whole logits, and so are its gradients, on any mesh."""

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_model
from jax.core import ShapedArray
from small_families import KINDS
from small_model import flat, mesh_of, quick_jit, random_params, small_batch
from traced_programs import equations

import train.cross_entropy
from configs.model import ModelConfig
from data.batch import Batch
from model.language_model import LanguageModel
from train.cross_entropy import cross_entropy
from train.optimizer import Params
from train.state import shape_of

MESHES: dict[str, dict[str, int]] = {
    "none": {},
    "data": {"data": 8},
    "context and vocabulary": {"fsdp": 2, "context": 2, "tensor": 2},
    "vocabulary over two axes": {"stage": 2, "tensor": 4},
}


def whole(model: LanguageModel, hidden_BTD: jax.Array, batch: Batch) -> jax.Array:
    return small_model.cross_entropy(model.logits(hidden_BTD), batch)


def loss_and_grads(
    loss: Any, model: ModelConfig, hidden_BTD: np.ndarray, batch: Batch
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns a third of a loss, and its gradients to the parameters and to hidden states."""
    shape = shape_of(model)

    @quick_jit
    @jax.value_and_grad
    def run(inputs: Params) -> jax.Array:
        return loss(shape.merge(inputs["params"]), inputs["x"].astype(model.dtype), batch) / 3

    value, grads = run({"params": random_params(model, std=0.3), "x": jnp.asarray(hidden_BTD)})
    return value, flat(grads)


@pytest.fixture
def batch(rng) -> Batch:
    """Rows in which some targets have no weight, and others have two."""
    batch = small_batch(rng, 8)
    weights_BT = np.array(rng.integers(0, 3, batch.targets_BT.shape), np.float32)
    return batch._replace(weights_BT=weights_BT)


def hidden(rng: np.random.Generator, batch: Batch, model: ModelConfig) -> np.ndarray:
    return rng.standard_normal((*batch.targets_BT.shape, model.embed_dim), np.float32)


@pytest.mark.parametrize("chunk_len", [4096, 8])
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", ["t5", "gemma", "bert"])
def test_it_is_that_of_whole_logits(rng, monkeypatch, batch, name, mesh, chunk_len):
    """A head of its own; tied and with a softcap; with a bias and transformed states. float32."""
    model = KINDS[name].model
    x_BTD = hidden(rng, batch, model)
    loss, grads = loss_and_grads(whole, model, x_BTD, batch)
    monkeypatch.setattr(train.cross_entropy, "CHUNK_LEN", chunk_len)
    on_mesh = jax.set_mesh(mesh_of(**MESHES[mesh])) if MESHES[mesh] else contextlib.nullcontext()
    with on_mesh:
        found, found_grads = loss_and_grads(cross_entropy, model, x_BTD, batch)
    assert float(found) == pytest.approx(float(loss), rel=1e-6)
    for path, grad in grads.items():
        difference = np.linalg.norm(found_grads[path] - grad)
        assert difference <= 2e-6 * np.linalg.norm(grad), path


def test_of_bfloat16_it_is_as_near_to_float32_as_whole_logits_are(rng, monkeypatch, batch):
    monkeypatch.setattr(train.cross_entropy, "CHUNK_LEN", 8)
    model = KINDS["gemma"].model
    narrow = dataclasses.replace(model, dtype="bfloat16")
    x_BTD = np.asarray(jnp.asarray(hidden(rng, batch, model), jnp.bfloat16), np.float32)
    _, exact = loss_and_grads(whole, model, x_BTD, batch)
    for path, grad in exact.items():
        near, found = (
            np.linalg.norm(loss_and_grads(loss, narrow, x_BTD, batch)[1][path] - grad)
            for loss in (whole, cross_entropy)
        )
        assert found <= max(1.1 * near, 1e-6 * np.linalg.norm(grad)), path


@pytest.mark.parametrize("with_gradients", [False, True])
def test_no_array_holds_the_logits_of_more_than_a_chunk(rng, monkeypatch, batch, with_gradients):
    monkeypatch.setattr(train.cross_entropy, "CHUNK_LEN", 8)
    model = KINDS["t5"].model
    shape, x_BTD = shape_of(model), hidden(rng, batch, model)

    def run(params: Params) -> jax.Array:
        return cross_entropy(shape.merge(params), jnp.asarray(x_BTD), batch)

    program = jax.make_jaxpr(jax.grad(run) if with_gradients else run)(random_params(model))
    results = [x.aval for eqn in equations(program.jaxpr) for x in eqn.outvars]
    sizes = [array.size for array in results if isinstance(array, ShapedArray)]
    largest = max(x.size for x in jax.tree.leaves(shape.params))
    assert max(sizes) <= max(8 * model.num_padded_tokens, largest)
