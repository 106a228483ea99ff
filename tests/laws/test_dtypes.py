"""In the step of a bfloat16 model no matmul multiplies float32, but for the router's."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.core import ShapedArray
from jax.extend.core import JaxprEqn
from small_families import KINDS
from small_model import mesh_of
from traced_programs import equations

from configs.model import ModelConfig
from configs.run import RunConfig
from sharding.rules import sharding
from train.loader import abstract_batch
from train.state import abstract_state
from train.step import make_train_step

MATMULS = ("dot_general", "ragged_dot", "ragged_dot_general")


def matmuls_of_step(config: RunConfig) -> list[JaxprEqn]:
    mesh = mesh_of(data=8)
    batch = abstract_batch(
        sharding(mesh, "act_batch", "act_len"), config.train.batch_size, config.data
    )
    with jax.set_mesh(mesh):
        step = jax.make_jaxpr(make_train_step(config, mesh))
        program = step(abstract_state(config, mesh), batch)
    return [eqn for eqn in equations(program.jaxpr) if eqn.primitive.name in MATMULS]


def shapes_and_dtypes(variables: Sequence[Any]) -> list[ShapedArray]:
    return [x.aval for x in variables if isinstance(x.aval, ShapedArray)]


def dtypes_of(eqn: JaxprEqn) -> set[jnp.dtype]:
    return {array.dtype for array in shapes_and_dtypes(eqn.invars[:2])}


def is_of_router(eqn: JaxprEqn, model: ModelConfig) -> bool:
    kernel = {model.embed_dim, model.num_experts}
    arrays = shapes_and_dtypes((*eqn.invars, *eqn.outvars))
    return any({*array.shape} == kernel for array in arrays)


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("name", KINDS)
def test_no_matmul_of_a_bfloat16_step_is_float32_but_the_routers(name, remat):
    kind = KINDS[name].changed(dtype="bfloat16", remat=remat)
    found = matmuls_of_step(kind.run())
    wide = [e for e in found if jnp.dtype(jnp.float32) in dtypes_of(e)]
    assert len(found) > 8
    assert all(is_of_router(eqn, kind.model) for eqn in wide), wide
    assert bool(wide) == (kind.model.num_experts is not None)


def test_blockwise_attention_multiplies_bfloat16():
    kind = KINDS["llama"].changed(dtype="bfloat16", attention_backend="blockwise")
    found = matmuls_of_step(kind.run())
    assert {dtype for eqn in found for dtype in dtypes_of(eqn)} == {jnp.dtype(jnp.bfloat16)}
