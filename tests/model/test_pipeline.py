"""Layers in stages: what each stage holds, when it waits, and that the result is the same."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import mesh_of, quick_jit

from model.layers import scan_layers
from sharding.pipeline import Pipeline, run_stages
from sharding.rules import sharding

SCHEDULES = [
    Pipeline(num_stages=2, num_microbatches=2),
    Pipeline(num_stages=2, num_groups=2, num_microbatches=2),
    Pipeline(num_stages=2, num_groups=4, num_microbatches=6),
    Pipeline(num_stages=4, num_microbatches=8),
    Pipeline(num_stages=4, num_groups=2, num_microbatches=4),
    Pipeline(num_stages=8, num_microbatches=8),
]
by_schedule = pytest.mark.parametrize(
    "pipeline", SCHEDULES, ids=lambda p: f"{p.num_stages}x{p.num_groups}x{p.num_microbatches}"
)


def walk(pipeline: Pipeline) -> list[tuple[int, int, int, int]]:
    """Returns (tick, stage, microbatch, group) of all work, each as early as it can be done.

    A stage does one thing a tick. A microbatch goes on to a group once it has left the one before,
    and groups of early rounds come first.
    """
    S, M = pipeline.num_stages, pipeline.num_microbatches
    left_at, busy = {}, set()
    done = []
    for group, micro in itertools.product(range(pipeline.num_groups), range(M)):
        for stage in range(S):
            tick = left_at.get(micro, 0)
            while (tick, stage) in busy:
                tick += 1
            busy.add((tick, stage))
            left_at[micro] = tick + 1
            done.append((tick, stage, micro, group))
    return done


@by_schedule
def test_the_bubble_is_the_time_that_a_stage_waits(pipeline):
    work = walk(pipeline)
    num_ticks = max(tick for tick, *_ in work) + 1
    assert pipeline.num_ticks == num_ticks
    idle = num_ticks * pipeline.num_stages - len(work)
    assert pipeline.bubble_fraction == idle / (num_ticks * pipeline.num_stages)


def test_more_groups_or_microbatches_make_the_bubble_smaller():
    plain, groups, micro = (
        Pipeline(num_stages=4, num_microbatches=4),
        Pipeline(num_stages=4, num_groups=4, num_microbatches=4),
        Pipeline(num_stages=4, num_microbatches=16),
    )
    assert (plain.num_ticks, groups.num_ticks, micro.num_ticks) == (7, 19, 19)
    assert plain.bubble_fraction == 3 / 7
    assert groups.bubble_fraction == micro.bubble_fraction == 3 / 19


def test_a_stage_holds_every_second_group_of_layers():
    pipeline = Pipeline(num_stages=2, num_groups=2, num_microbatches=2)
    assert pipeline.layer_order(8).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]


@by_schedule
@pytest.mark.parametrize("num_unrolled", [1, 3])
def test_stages_apply_all_layers_in_model_order_to_every_row(rng, pipeline, num_unrolled):
    num_layers, B = 8, 24
    mesh = mesh_of(stage=pipeline.num_stages)
    order_L = pipeline.layer_order(num_layers)
    x_BD, shift_BD = rng.standard_normal((2, B, 4), np.float32)
    kernel_LDD = rng.standard_normal((num_layers, 4, 4), np.float32)

    def apply_layer(x_BD, shift_BD, number, kernel_DD):
        return jnp.tanh(x_BD @ kernel_DD + shift_BD * (number + 1))

    def total(kernel_LDD, x_BD):
        layers_L = (jnp.asarray(order_L), kernel_LDD)
        run = functools.partial(scan_layers, [apply_layer], num_unrolled=num_unrolled)
        y_BD = run_stages(run, x_BD, shift_BD, layers_L, pipeline)
        return jnp.sum(y_BD**2), y_BD

    expected_BD = x_BD.astype(np.float64)
    for number, kernel_DD in enumerate(kernel_LDD):
        expected_BD = np.tanh(expected_BD @ kernel_DD + shift_BD * (number + 1))
    with jax.set_mesh(mesh):
        placed = jax.device_put(kernel_LDD[order_L], sharding(mesh, "layers", None, None))
        (_, y_BD), grads = quick_jit(jax.value_and_grad(total, (0, 1), has_aux=True))(placed, x_BD)

    def loop(kernel_LDD, x_BD):
        y_BD = scan_layers([apply_layer], x_BD, shift_BD, (jnp.arange(num_layers), kernel_LDD))
        return jnp.sum(y_BD**2)

    grad_LDD, grad_BD = quick_jit(jax.grad(loop, (0, 1)))(kernel_LDD, x_BD)
    # float32 through eight layers of numbers below one.
    np.testing.assert_allclose(y_BD, expected_BD, rtol=0, atol=1e-5)
    np.testing.assert_allclose(grads[0], grad_LDD[order_L], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(grads[1], grad_BD, rtol=1e-5, atol=1e-5)
