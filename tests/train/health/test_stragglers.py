"""Which of several processes is named as the slow one."""

import pytest

from train.health.stragglers import ProcessTimes, StragglerProbe, find_stragglers

FAST = ProcessTimes(data_wait_sec=0.001, probe_sec=0.002)


def test_processes_that_are_alike_are_not_named():
    alike = [ProcessTimes(0.001 + 0.0001 * i, 0.002 + 0.0002 * i) for i in range(4)]
    assert find_stragglers(alike, step_sec=0.1) == {}


def test_the_process_with_slow_devices_is_named_with_both_times():
    slow = find_stragglers([FAST, FAST, ProcessTimes(0.001, 0.004), FAST], step_sec=0.1)
    assert list(slow) == [2]
    assert "4.0 ms" in slow[2]
    assert "2.0 ms" in slow[2]


def test_the_process_that_waits_for_its_data_is_named():
    slow = find_stragglers([FAST, ProcessTimes(0.05, 0.002)], step_sec=0.1)
    assert list(slow) == [1]
    assert "50.0 ms" in slow[1]


def test_a_wait_that_is_nothing_beside_the_step_is_not_named():
    assert find_stragglers([FAST, ProcessTimes(0.005, 0.002)], step_sec=0.1) == {}


def test_where_all_wait_nobody_holds_the_others_up():
    assert find_stragglers([ProcessTimes(0.05, 0.002)] * 3, step_sec=0.1) == {}


def test_one_process_holds_nobody_up():
    assert find_stragglers([ProcessTimes(9.0, 9.0)], step_sec=0.1) == {}


def test_a_measurement_gives_the_mean_wait_since_the_last_one():
    probe = StragglerProbe()
    for wait in (0.1, 0.2, 0.3):
        probe.add(wait)
    first = probe.measure()
    probe.add(0.5)
    second = probe.measure()
    assert (first.data_wait_sec, second.data_wait_sec) == (pytest.approx(0.2), 0.5)
    assert 0 < first.probe_sec < 5
