"""The guard: which losses are a divergence, which steps caused it, and that it resumes."""

import json
import math
import random

import pytest

from configs.run import GuardConfig
from train.health.divergence import Divergence, Guard

CONFIG = GuardConfig(
    max_nonfinite_steps=3, num_spike_steps=2, num_window_steps=8, spike_deviations=10.0
)
NAN = math.nan


def check_all(guard: Guard, losses: list[float], first: int = 1) -> list[Divergence | None]:
    """Returns what the guard says of each step; NaN stands for a nonfinite step."""
    return [
        guard.check(step, loss, math.isfinite(loss))
        for step, loss in enumerate(losses, start=first)
    ]


def normal(num: int) -> list[float]:
    draw = random.Random(0)
    return [3.0 + draw.uniform(-0.1, 0.1) for _ in range(num)]


def test_so_many_nonfinite_steps_in_a_row_are_a_divergence_from_the_first_of_them():
    said = check_all(Guard(CONFIG), [3.0, 3.0, NAN, NAN, NAN])
    assert said[:4] == [None] * 4
    assert said[4] is not None
    assert (said[4].first_step, said[4].last_step) == (3, 5)
    assert "guard.max_nonfinite_steps" in said[4].cause


def test_nonfinite_steps_apart_are_no_divergence():
    assert check_all(Guard(CONFIG), [3.0, NAN, NAN, 3.0] * 10) == [None] * 40


def test_a_spike_is_a_divergence_from_the_step_whose_update_made_it():
    said = check_all(Guard(CONFIG), [*normal(20), 9.0, 9.5])
    assert said[:21] == [None] * 21
    assert said[21] is not None
    # The loss of step 21 was high before its own update: that of step 20 did it.
    assert (said[21].first_step, said[21].last_step) == (20, 22)


@pytest.mark.parametrize(
    ("losses", "why"),
    [
        ([*normal(20), 9.0, *normal(20)], "one high loss is a bad batch, which did no harm"),
        ([*normal(2), 9.0, 9.0, 9.0], "too few losses to judge by"),
        ([3.0 - 0.05 * i for i in range(40)], "falling is what losses should do"),
        ([3.0 + 0.01 * i for i in range(40)], "a slow rise"),
        ([3.0] * 20 + [3.05] * 20, "a small step after equal losses"),
        ([*normal(20), 1.0, 1.0, 1.0], "a low loss is good news"),
    ],
)
def test_what_is_no_spike_is_no_divergence(losses: list[float], why: str):
    assert check_all(Guard(CONFIG), losses) == [None] * len(losses), why


def test_spikes_can_be_left_alone():
    config = GuardConfig(spike_deviations=None, num_window_steps=8, num_spike_steps=2)
    assert check_all(Guard(config), [*normal(20), *[1e6] * 20]) == [None] * 40


def test_nonfinite_and_high_losses_are_not_in_the_statistics():
    guard = Guard(CONFIG)
    check_all(guard, [*normal(20), 9.0])
    before = guard.memory()["window"]
    check_all(guard, [NAN, NAN], first=22)
    assert guard.memory()["window"] == before
    assert max(before) < 4


def test_where_the_weights_of_a_batch_change_the_losses_may_jump():
    losses = [*normal(20), *[9.0] * 20]
    guard = Guard(CONFIG)
    weights = [(1.0, 2.0)] * 20 + [(1.0, 0.0)] * 20
    said = [
        guard.check(step, loss, True, weights[step - 1])
        for step, loss in enumerate(losses, start=1)
    ]
    assert said == [None] * 40
    assert any(check_all(Guard(CONFIG), losses))


def test_a_guard_that_resumes_knows_the_weights_of_the_step_before():
    guard = Guard(CONFIG)
    for step, loss in enumerate(normal(20), start=1):
        guard.check(step, loss, True, (1.0, 2.0))
    again = Guard(CONFIG, memory=json.loads(json.dumps(guard.memory())))
    assert [again.check(step, 9.0, True, (1.0, 0.0)) for step in range(21, 30)] == [None] * 9
    older = Guard(CONFIG, memory={"window": normal(20)})  # of a checkpoint without weights
    assert [older.check(step, 9.0, True, (1.0, 2.0)) is None for step in (21, 22)] == [True, False]


def test_it_is_suspect_from_the_first_bad_step_to_the_next_normal_one():
    guard = Guard(CONFIG)
    seen = []
    for step, loss in enumerate([*normal(8), 9.0, 3.0, NAN, 3.0], start=1):
        guard.check(step, loss, math.isfinite(loss))
        seen.append(guard.is_suspect)
    assert seen == [False] * 8 + [True, False, True, False]


def test_a_guard_that_resumes_says_what_one_would_have_said_that_was_never_interrupted():
    losses = [*normal(20), 9.0, NAN, 9.0, *normal(4), NAN, NAN, NAN, 3.0]
    expected = check_all(Guard(CONFIG), losses)
    assert sum(said is not None for said in expected) == 2
    for cut in range(len(losses)):
        guard = Guard(CONFIG)
        said = check_all(guard, losses[:cut])
        guard = Guard(CONFIG, memory=json.loads(json.dumps(guard.memory())))
        assert said + check_all(guard, losses[cut:], first=cut + 1) == expected, cut
