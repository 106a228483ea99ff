import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.run import OptimConfig
from train.schedule import make_schedule

NUM_STEPS = 10


def rates(schedule, *, num_warmup_steps, **more) -> list[float]:
    """Returns the learning rate at steps 0 to 10, with a peak of 2 and 0.2 at the end of 10."""
    config = OptimConfig(peak_lr=2.0, schedule=schedule, num_warmup_steps=num_warmup_steps, **more)
    rate_at = make_schedule(config, NUM_STEPS)
    rate_S = jax.vmap(rate_at)(jnp.arange(NUM_STEPS + 1))
    return [float(rate) for rate in np.asarray(rate_S)]


@pytest.mark.parametrize(
    ("schedule", "more", "expected"),
    [
        ("linear", {}, [2, 1.82, 1.64, 1.46, 1.28, 1.1, 0.92, 0.74, 0.56, 0.38, 0.2]),
        (
            "cosine",
            {},
            [0.2 + 0.9 * (1 + math.cos(math.pi * step / 10)) for step in range(11)],
        ),
        ("inverse_sqrt", {}, [2 / math.sqrt(step + 1) for step in range(11)]),
        ("wsd", {"num_decay_steps": 4}, [2, 2, 2, 2, 2, 2, 2, 1.55, 1.1, 0.65, 0.2]),
        ("wsd", {"num_decay_steps": 10}, [2, *(2 - 0.18 * step for step in range(1, 11))]),
    ],
)
def test_without_warmup_step_0_is_at_the_peak(schedule, more, expected):
    # float32 arithmetic on numbers up to 2.
    assert rates(schedule, num_warmup_steps=0, **more) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("num_warmup_steps", [0, 1])
def test_constant_is_the_peak_at_every_step(num_warmup_steps):
    config = OptimConfig(peak_lr=2.0, schedule="constant", num_warmup_steps=num_warmup_steps)
    assert [make_schedule(config, NUM_STEPS)(step) for step in (0, 5, 10)] == [2, 2, 2]


@pytest.mark.parametrize(
    ("schedule", "more", "expected"),
    [
        ("constant", {}, [2, 2, 2, 2, 2, 2, 2]),
        ("linear", {}, [2, 1.7, 1.4, 1.1, 0.8, 0.5, 0.2]),
        ("cosine", {}, [2, 1.8794229, 1.55, 1.1, 0.65, 0.3205771, 0.2]),
        ("inverse_sqrt", {}, [4 / math.sqrt(step) for step in range(4, 11)]),
        ("wsd", {"num_decay_steps": 3}, [2, 2, 2, 2, 1.4, 0.8, 0.2]),
        ("wsd", {"num_decay_steps": 6}, [2, 1.7, 1.4, 1.1, 0.8, 0.5, 0.2]),
    ],
)
def test_a_warmup_of_4_rises_from_a_quarter_and_meets_the_schedule_at_its_peak(
    schedule, more, expected
):
    with_warmup = rates(schedule, num_warmup_steps=4, **more)
    assert with_warmup == pytest.approx([0.5, 1, 1.5, 2, *expected], abs=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_a_final_fraction_of_0_ends_at_0(schedule):
    more = {"num_decay_steps": 2} if schedule == "wsd" else {}
    last = rates(schedule, num_warmup_steps=2, final_lr_fraction=0.0, **more)[NUM_STEPS]
    assert last == pytest.approx(0, abs=1e-6)
