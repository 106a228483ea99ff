"""Looking tokens up in a table that is cut over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import mesh_of, quick_jit

from model.embedding import look_up
from sharding.rules import sharding


@pytest.mark.parametrize(
    "cut",
    [
        {"tensor": 8},
        {"tensor": 2, "data": 2, "fsdp": 2},
        {"stage": 2, "tensor": 2, "context": 2},
        {"stage": 4, "data": 2},
    ],
    ids=str,
)
def test_a_table_that_is_cut_gives_the_rows_and_gradients_of_a_whole_one(rng, cut):
    mesh = mesh_of(**cut)
    table_VD = rng.standard_normal((128, 8), np.float32)
    tokens_BT = rng.integers(0, 128, (4, 16)).astype(np.int32)
    weights_BTD = rng.standard_normal((4, 16, 8), np.float32)

    def weighted(table_VD):
        x_BTD = look_up(table_VD, tokens_BT)
        return jnp.sum(x_BTD * weights_BTD), x_BTD

    with jax.set_mesh(mesh):
        placed = jax.device_put(table_VD, sharding(mesh, "vocab", None))
        run = quick_jit(jax.value_and_grad(weighted, has_aux=True))
        (_, x_BTD), grad_VD = run(placed)
    np.testing.assert_array_equal(x_BTD, table_VD[tokens_BT])  # nothing is added but zeros
    expected_VD = np.zeros((128, 8))
    np.add.at(expected_VD, tokens_BT, weights_BTD)
    # A few float32 numbers of size one are added up in each row.
    np.testing.assert_allclose(grad_VD, expected_VD, rtol=0, atol=2e-6)


def test_a_single_position_is_looked_up_too():
    table_VD = np.arange(128 * 4, dtype=np.float32).reshape(128, 4)
    with jax.set_mesh(mesh_of(stage=2)):
        x_B1D = quick_jit(look_up)(table_VD, np.array([[3], [127]], np.int32))
    np.testing.assert_array_equal(x_B1D[:, 0], table_VD[[3, 127]])
