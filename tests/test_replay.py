"""A step computed twice: the same run as without, and a device that computes wrongly is named."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from small_model import small_batch, small_model, small_run

from configs.errors import Corrupted, SettingsError
from configs.run import GuardConfig
from launch.faults.worker import wrong_in_a_call
from sharding.processes import ALONE
from sharding.rules import sharding
from train.digest import params_digest
from train.replay import check_can_replay, step_twice
from train.state import TrainState, init_state
from train.step import compile_train_step


@pytest.fixture
def run(mesh, rng):
    """A step, a maker of the state that it takes, and a batch."""
    config = small_run(small_model(dropout=0.1))
    batch = jax.device_put(small_batch(rng, 8), sharding(mesh, "act_batch", "act_len"))

    def fresh() -> TrainState:
        return init_state(config, jax.random.key(0), mesh)

    return compile_train_step(config, fresh(), batch), fresh, batch


def test_a_step_computed_twice_is_the_step(run):
    step, fresh, batch = run
    expected, metrics = step(fresh(), batch)
    state, again = step_twice(step, fresh(), batch, step=1, processes=ALONE)
    assert params_digest(state.params) == params_digest(expected.params)
    assert float(again.loss) == float(metrics.loss)
    jax.block_until_ready(step(state, batch))  # it can be given to the next step


@pytest.mark.parametrize("number", [1, 2])
def test_a_flipped_bit_names_the_device_and_the_array(run, number: int):
    step, fresh, batch = run
    wrong = wrong_in_a_call(step, number, jax.devices()[5])
    told: list[tuple[str, dict]] = []
    with pytest.raises(Corrupted) as caught:
        step_twice(
            wrong,
            fresh(),
            batch,
            step=7,
            processes=ALONE,
            say=lambda event, **details: told.append((event, details)),
        )
    ((event, details),) = told
    assert (event, details["step"]) == ("corrupted", 7)
    assert details["devices"] == [f"{jax.devices()[5]}"]
    assert all("norm" in array for array in details["arrays"])
    message = str(caught.value)
    assert "step 7" in message
    assert "norm" in message
    assert [i for i in range(8) if f"{jax.devices()[i]}" in message] == [5]


def test_what_is_not_finite_is_the_same_twice(run):
    step, fresh, batch = run
    state = fresh()
    broken = state._replace(params=jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state.params))
    _, metrics = step_twice(step, broken, batch, step=1, processes=ALONE)
    assert not metrics.finite


def test_a_gpu_needs_deterministic_kernels():
    config = dataclasses.replace(small_run(small_model()), guard=GuardConfig(replay_every_steps=5))
    check_can_replay(config, "cpu")
    with pytest.raises(SettingsError, match=r"guard\.replay_every_steps=5.*train\.deterministic"):
        check_can_replay(config, "gpu")
