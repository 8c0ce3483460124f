"""Which host is slower than the others."""

import pytest

from mvlm_jax.training.skew import HostTimes, Report, newest_skew, skew_of

FAST = HostTimes(input=0.001, work=0.009, devices=0.29)
NAMES = ["a", "b", "c", "d"]


def test_a_slow_host_is_named_with_its_times_beside_the_median_of_the_others():
    skew = skew_of([FAST, HostTimes(0.002, 0.012, 0.286), HostTimes(0.27, 0.02, 0.01), FAST])
    assert skew.timing() == {"host_skew": pytest.approx(0.28), "slowest_process": 2}
    assert skew.words(NAMES) == (
        "slow: process 2 (c), input 0.270 s and own work 0.020 s a step (the others, median: 0.001 and 0.009)"
    )


@pytest.mark.parametrize("times", [
    HostTimes(0.01, 0.01, 0.28),  # it is slower by 0.01 s of 0.3
    HostTimes(0.1, 0.05, 0.15),  # hidden behind its devices, for which it still waits half as long as the others
])  # fmt: skip
def test_a_host_that_delays_nobody_is_measured_and_not_named(times):
    skew = skew_of([FAST, FAST, times])
    assert skew.process == 2
    assert skew.seconds == pytest.approx(times.own - 0.01)
    assert skew.words(NAMES) == ""


def test_steps_so_short_that_the_difference_is_noise_name_nobody():
    assert skew_of([HostTimes(0.0001, 0.0001, 0.001), HostTimes(0.0001, 0.001, 0.0001)]).words(NAMES) == ""


def test_a_host_that_is_late_with_its_report_is_compared_by_the_one_before():
    slow = HostTimes(2.0, 0.0, 0.0)
    on_time = [Report(10, FAST), Report(20, FAST._replace(input=9.0))]
    late = [Report(10, slow)]
    assert newest_skew([on_time, on_time, late]) == skew_of([FAST, FAST, slow])
    assert newest_skew([on_time, on_time, [*late, Report(20, FAST)]]).slowest.input == 9.0
    assert newest_skew([on_time, [Report(5, FAST)]]) is None
