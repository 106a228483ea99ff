"""Five steps of a small model under any layout, to be held against those of one device."""

import ast
import dataclasses
import functools
import math
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from small_families import KINDS, batch_of_kind
from small_model import (
    SEQUENCE_LEN,
    flat,
    mesh_of,
    quick_jit,
    random_params,
    small_batch,
    small_model,
    small_run,
)

from configs.run import MeshConfig, RunConfig
from data.batch import Batch
from data.objectives.causal import causal_batch
from launch.jax_setup import prepare_jax
from sharding.layout_check import check_fit
from sharding.rules import sharding
from train.optimizer import make_optimizer
from train.state import TrainState, in_model_order, in_stage_order, shape_of, state_layout
from train.step import make_train_step

NUM_STEPS, B, T = 5, 16, SEQUENCE_LEN
Cut = tuple[tuple[str, int], ...]
"""A layout: axes of more than one device and their sizes."""

DENSE = small_model(
    num_layers=8,
    embed_dim=32,
    num_heads=8,
    num_kv_heads=8,
    head_dim=4,
    mlp_dim=32,
    dropout=0.1,
    init_std=0.05,
)
MOE = dataclasses.replace(DENSE, num_experts=8, num_active_experts=2, mlp_dim=16)
_WIDE = {"num_layers": 8, "embed_dim": 32, "num_heads": 8, "num_kv_heads": 8, "head_dim": 4}
_SIZES = {**_WIDE, "mlp_dim": 32, "dropout": 0.1, "init_std": 0.05}
NINE = {**_SIZES, "num_layers": 9}
"""Of a model whose first layer is not like the others."""
LATENT = {"query_latent_dim": 16, "kv_latent_dim": 8, "context_attention": "all_gather"}
FAMILIES = {
    "prefix": KINDS["prefix"].changed(**_SIZES),
    "future": KINDS["future"].changed(**_SIZES),
    "gemma": KINDS["gemma"].changed(**_SIZES, attention_pattern=("local", "global")),
    "sinks": KINDS["sinks"].changed(**_SIZES),
    "latent": KINDS["latent"].changed(**NINE, **LATENT),
    "bert": KINDS["bert"].changed(**_SIZES),
    "modernbert": KINDS["modernbert"].changed(**NINE, attention_pattern=("global", "local")),
    "t5": KINDS["t5"].changed(**_SIZES, num_encoder_layers=2),
    "lstm": KINDS["lstm"].changed(**{**_SIZES, "init_std": 0.3}),
}
MODELS = {
    **{name: family.model for name, family in FAMILIES.items()},
    "dense": DENSE,
    "packed": DENSE,
    "window": dataclasses.replace(DENSE, attention_window=5),
    "moe": MOE,
    "moe_capacity": dataclasses.replace(MOE, expert_dispatch="capacity"),
}


class Course(NamedTuple):
    """What five steps came to."""

    losses: np.ndarray
    grad_norms: np.ndarray
    params: dict[str, np.ndarray]
    """Parameters after the last, by path, layers in model order."""


def run_of(name: str, cut: Cut = (), **changes: Any) -> RunConfig:
    """Returns the settings of a model under a layout; changes are {"group.field": value}."""
    sizes = dict(cut)
    mesh = {name.removeprefix("mesh."): v for name, v in changes.items() if name[:5] == "mesh."}
    model = {name.removeprefix("model."): v for name, v in changes.items() if name[:6] == "model."}
    train = {name.removeprefix("train."): v for name, v in changes.items() if name[:6] == "train."}
    optim = {name.removeprefix("optim."): v for name, v in changes.items() if name[:6] == "optim."}
    config = small_run(
        dataclasses.replace(MODELS[name], **model),
        optim={"optimizer": "sgd", "peak_lr": 0.5, **optim},
        train={"batch_size": B, **train},
        data=FAMILIES[name].data if name in FAMILIES else None,
    )
    return dataclasses.replace(config, mesh=MeshConfig(**{"data": 1, **sizes, **mesh}))


def batch_of(name: str, rng: np.random.Generator) -> Batch:
    """Returns a batch: one document a row, or several short ones and padding where packed."""
    if name in FAMILIES:
        return batch_of_kind(rng, run_of(name), B, num_ids=9)
    if name != "dense":
        return small_batch(rng, B, num_ids=10)
    rows = [[rng.integers(1, 10, T + 1).astype(np.int32)] for _ in range(B)]
    return causal_batch(rows, T, separator=0)


def course(name: str, cut: Cut = (), **changes: Any) -> Course:
    """Trains for five steps, each on another batch, under a layout.

    Raises:
        SettingsError: the layout does not fit.
    """
    config = run_of(name, cut, **changes)
    mesh = mesh_of(**dict(cut))
    check_fit(config, dict(mesh.shape))
    layout = state_layout(config, mesh)
    params = random_params(config.model, std=config.model.init_std)
    opt_state = make_optimizer(config.optim, shape_of(config.model).axes()).init(params)
    state = jax.device_put(TrainState(jnp.zeros((), jnp.int32), params, opt_state), layout)
    state = in_stage_order(state, config, mesh)
    rng = np.random.default_rng(0)
    where = sharding(mesh, "act_batch", "act_len")
    losses, grad_norms = [], []
    whole = jax.sharding.NamedSharding(mesh, PartitionSpec())
    with jax.set_mesh(mesh):
        step = quick_jit(make_train_step(config, mesh), out_shardings=(layout, whole))
        for _ in range(NUM_STEPS):
            state, metrics = step(state, jax.device_put(batch_of(name, rng), where))
            losses.append(float(metrics.loss))
            grad_norms.append(float(metrics.grad_norm))
    leaves = flat(in_model_order(state, config, mesh).params)
    arrays = {path: np.asarray(leaf) for path, leaf in leaves.items()}
    return Course(np.array(losses), np.array(grad_norms), arrays)


@functools.cache
def on_one_device(name: str, **changes: Any) -> Course:
    """Returns the course that every layout must repeat."""
    alone = course(name, **changes)
    assert alone.losses[-1] < alone.losses[0] - 0.1  # it learns, or there is little to compare
    return alone


if __name__ == "__main__":  # in a process of its own, which may have more devices than the tests
    path, name, cut = sys.argv[1], sys.argv[2], ast.literal_eval(sys.argv[3])
    prepare_jax(virtual_devices=math.prod(size for _, size in cut))
    found = course(name, cut)
    arrays: dict[str, Any] = {"losses": found.losses, "grad_norms": found.grad_norms}
    np.savez(path, **{**arrays, **found.params})
