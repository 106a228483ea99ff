"""The guard: which losses are trouble, which steps did it, and that it forgets nothing."""

import json
import math
import random

import pytest

from configs.run import GuardConfig
from train.health.divergence import Guard, Trouble

CONFIG = GuardConfig(
    max_nonfinite_steps=3, num_spike_steps=2, num_window_steps=8, spike_deviations=10.0
)
NAN = math.nan


def look_at_all(guard: Guard, losses: list[float], first: int = 1) -> list[Trouble | None]:
    """Returns what the guard says of each step; NaN stands for one that was skipped."""
    return [
        guard.look(step, loss, math.isfinite(loss)) for step, loss in enumerate(losses, start=first)
    ]


def calm(num: int) -> list[float]:
    draw = random.Random(0)
    return [3.0 + draw.uniform(-0.1, 0.1) for _ in range(num)]


def test_so_many_skips_in_a_row_are_trouble_from_the_first_of_them():
    said = look_at_all(Guard(CONFIG), [3.0, 3.0, NAN, NAN, NAN])
    assert said[:4] == [None] * 4
    assert said[4] is not None
    assert (said[4].first_step, said[4].last_step) == (3, 5)
    assert "guard.max_nonfinite_steps" in said[4].cause


def test_skips_apart_are_no_trouble():
    assert look_at_all(Guard(CONFIG), [3.0, NAN, NAN, 3.0] * 10) == [None] * 40


def test_a_spike_is_trouble_from_the_step_whose_update_made_it():
    said = look_at_all(Guard(CONFIG), [*calm(20), 9.0, 9.5])
    assert said[:21] == [None] * 21
    assert said[21] is not None
    # The loss of step 21 was high before its own update: that of step 20 did it.
    assert (said[21].first_step, said[21].last_step) == (20, 22)


@pytest.mark.parametrize(
    ("losses", "why"),
    [
        ([*calm(20), 9.0, *calm(20)], "one high loss is a bad batch, which did no harm"),
        ([*calm(2), 9.0, 9.0, 9.0], "too few losses to judge by"),
        ([3.0 - 0.05 * i for i in range(40)], "falling is what losses should do"),
        ([3.0 + 0.01 * i for i in range(40)], "a slow rise"),
        ([3.0] * 20 + [3.05] * 20, "a small step after equal losses"),
        ([*calm(20), 1.0, 1.0, 1.0], "a low loss is good news"),
    ],
)
def test_what_is_no_spike_is_no_trouble(losses: list[float], why: str):
    assert look_at_all(Guard(CONFIG), losses) == [None] * len(losses), why


def test_spikes_can_be_left_alone():
    config = GuardConfig(spike_deviations=None, num_window_steps=8, num_spike_steps=2)
    assert look_at_all(Guard(config), [*calm(20), *[1e6] * 20]) == [None] * 40


def test_skipped_and_high_losses_are_not_in_the_statistics():
    guard = Guard(CONFIG)
    look_at_all(guard, [*calm(20), 9.0])
    before = guard.memory()["window"]
    look_at_all(guard, [NAN, NAN], first=22)
    assert guard.memory()["window"] == before
    assert max(before) < 4


def test_where_the_weights_of_a_batch_change_the_losses_may_jump():
    losses = [*calm(20), *[9.0] * 20]
    guard = Guard(CONFIG)
    weights = [(1.0, 2.0)] * 20 + [(1.0, 0.0)] * 20
    said = [
        guard.look(step, loss, True, weights[step - 1]) for step, loss in enumerate(losses, start=1)
    ]
    assert said == [None] * 40
    assert any(look_at_all(Guard(CONFIG), losses))


def test_a_guard_that_goes_on_knows_the_weights_of_the_step_before():
    guard = Guard(CONFIG)
    for step, loss in enumerate(calm(20), start=1):
        guard.look(step, loss, True, (1.0, 2.0))
    again = Guard(CONFIG, memory=json.loads(json.dumps(guard.memory())))
    assert [again.look(step, 9.0, True, (1.0, 0.0)) for step in range(21, 30)] == [None] * 9
    older = Guard(CONFIG, memory={"window": calm(20)})  # of a checkpoint without weights
    assert [older.look(step, 9.0, True, (1.0, 2.0)) is None for step in (21, 22)] == [True, False]


def test_it_worries_from_the_first_bad_step_to_the_next_good_one():
    guard = Guard(CONFIG)
    seen = []
    for step, loss in enumerate([*calm(8), 9.0, 3.0, NAN, 3.0], start=1):
        guard.look(step, loss, math.isfinite(loss))
        seen.append(guard.is_worried)
    assert seen == [False] * 8 + [True, False, True, False]


def test_a_guard_that_goes_on_says_what_one_would_have_said_that_was_never_interrupted():
    losses = [*calm(20), 9.0, NAN, 9.0, *calm(4), NAN, NAN, NAN, 3.0]
    expected = look_at_all(Guard(CONFIG), losses)
    assert sum(said is not None for said in expected) == 2
    for cut in range(len(losses)):
        guard = Guard(CONFIG)
        said = look_at_all(guard, losses[:cut])
        guard = Guard(CONFIG, memory=json.loads(json.dumps(guard.memory())))
        assert said + look_at_all(guard, losses[cut:], first=cut + 1) == expected, cut
