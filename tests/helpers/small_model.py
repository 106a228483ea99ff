"""Small settings, parameters and batches that several tests share; everything is float32."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.data import DataConfig
from configs.errors import SettingsError
from configs.model import ModelConfig
from configs.run import (
    CheckpointConfig,
    EvalConfig,
    MeshConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from data.batch import Batch
from data.objectives.causal import causal_batch
from sharding.mesh import make_mesh
from train.optimizer import Params
from train.state import TrainState, shape_of
from train.step import Metrics, TrainStep, make_train_step

SEQUENCE_LEN = 16
SMALL = ModelConfig(
    num_layers=2,
    embed_dim=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=32,
    vocab_size=100,
    rope_theta=100.0,
    init_std=0.2,
    dtype="float32",
    num_unrolled_layers=1,  # a loop over layers, as on large machines, which is soon compiled
)
GPT2_LIKE: Mapping[str, Any] = {
    "num_kv_heads": 4,
    "norm": "layer",
    "position": "learned",
    "num_positions": SEQUENCE_LEN,
    "mlp": "gelu_tanh",
    "bias": True,
}
VARIANTS = {
    name: dataclasses.replace(SMALL, **changes)
    for name, changes in {
        "llama": {},
        "gpt2": GPT2_LIKE,
        "nanogpt": {**GPT2_LIKE, "mlp": "gelu", "bias": False},
        "every_head_its_own_key": {"num_kv_heads": 4},
        "all_heads_one_key": {"num_kv_heads": 1},
        "qk_norm": {"qk_norm": True},
        "relu2": {"mlp": "relu2"},
        "untied_head": {"tied_embeddings": False},
        "softcap": {"logit_softcap": 3.0},
        "bias": {"bias": True},
    }.items()
}

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""jax.jit that compiles up to five times faster, to a program that is slower than it could be."""


def small_model(**changes: Any) -> ModelConfig:
    """Returns the settings of a Llama-like decoder of two layers, with changes."""
    return dataclasses.replace(SMALL, **changes)


def small_run(
    model: ModelConfig = SMALL,
    *,
    optim: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Returns the settings of a run of 100 steps of 8 rows at a constant learning rate."""
    optim = {"peak_lr": 0.01, "num_warmup_steps": 0, "schedule": "constant", **(optim or {})}
    return RunConfig(
        model=model,
        data=DataConfig(**{"sequence_len": SEQUENCE_LEN, "tokenizer": "bytes", **(data or {})}),
        optim=OptimConfig(**optim),
        train=TrainConfig(**{"num_steps": 100, "batch_size": 8, **(train or {})}),
        checkpoint=CheckpointConfig(every_steps=100),
        eval=EvalConfig(every_steps=None),
    )


def small_batch(rng: np.random.Generator, batch_size: int, *, num_ids: int = 100) -> Batch:
    """Returns rows of a few short documents each, every row with another amount of padding."""
    T = SEQUENCE_LEN
    rows = []
    for _ in range(batch_size):
        window = rng.integers(1, num_ids, rng.integers(T // 3, T + 2)).astype(np.int32)
        window[rng.random(len(window)) < 0.2] = 0
        rows.append([window])
    return causal_batch(rows, T, separator=0)


def random_params(config: ModelConfig, *, std: float = 0.3, seed: int = 0) -> Params:
    """Returns parameters none of which is at its first value: biases not 0, norms not 1."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        middle = 1.0 if path[-1].key == "scale" and not config.norm_zero_centered else 0.0
        return jnp.asarray(middle + std * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map_with_path(draw, nnx.to_pure_dict(shape_of(config).state))


def mesh_of(**sizes: int) -> jax.sharding.Mesh:
    """Returns a mesh of the first devices; axes that are not given have one."""
    asked: dict[str, Any] = {"data": 1, **sizes}
    config = MeshConfig(**asked)
    return make_mesh(config, jax.devices()[: math.prod(sizes.values())])


def flat(params: Params) -> dict[str, Any]:
    """Returns {"layers/attention/query": leaf} for a tree of parameters."""
    leaves = jax.tree.leaves_with_path(params)
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}


@functools.cache
def step_on_one_device(config: RunConfig) -> TrainStep:
    """Returns the training step, compiled quickly."""
    mesh = mesh_of()
    step = quick_jit(make_train_step(config, mesh))

    def run(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with jax.set_mesh(mesh):
            return step(state, batch)

    return run


def refusal(call: Callable[..., Any], *arguments: Any, **settings: Any) -> str:
    """Returns the words that a call refuses its settings with, as bad usage (exit code 2)."""
    with pytest.raises(SettingsError) as error:
        call(*arguments, **settings)
    assert error.value.exit_code == 2
    return str(error.value)


def cross_entropy(logits_BTV: jax.Array, batch: Batch) -> jax.Array:
    """Returns the sum over the batch of weight * -log p(target), in nats, by its formula."""
    nll_BTV = -jax.nn.log_softmax(logits_BTV, axis=-1)
    nll_BT = jnp.take_along_axis(nll_BTV, batch.targets_BT[..., None], axis=-1)[..., 0]
    return jnp.sum(nll_BT * batch.weights_BT)
