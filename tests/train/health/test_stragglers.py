"""Which of several processes is named as the slow one."""

from train.health.stragglers import find_stragglers


def test_processes_that_are_alike_are_not_named():
    assert find_stragglers([0.001 + 0.0001 * i for i in range(4)], step_sec=0.1) == {}


def test_the_process_that_waits_for_its_data_is_named_with_both_times():
    assert find_stragglers([0.001, 0.05], step_sec=0.1) == {
        1: "it waits 50.0 ms a step for its data, the others 1.0 ms"
    }


def test_a_wait_that_is_nothing_beside_the_step_is_not_named():
    assert find_stragglers([0.001, 0.005], step_sec=0.1) == {}


def test_where_all_wait_nobody_holds_the_others_up():
    assert find_stragglers([0.05] * 3, step_sec=0.1) == {}


def test_one_process_holds_nobody_up():
    assert find_stragglers([9.0], step_sec=0.1) == {}
