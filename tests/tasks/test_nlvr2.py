import numpy as np
import pytest

from mvlm_jax.tasks.nlvr2 import consistency


def test_a_group_is_consistent_if_all_of_it_is_right():
    metrics = consistency([True, True, True, False, True], ["a", "a", "b", "b", "c"])
    assert metrics == {"consistency": pytest.approx(200 / 3), "groups": 3}


def test_examples_without_a_group_do_not_count():
    assert consistency([True, False], ["a", ""]) == {"consistency": 100, "groups": 1}
    assert consistency([True, False], ["", ""]) == {}


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_brute_force(seed):
    rng = np.random.default_rng(seed)
    groups = [f"g{number}" for number in rng.integers(0, 20, 60)]
    right = (rng.random(60) < 0.7).tolist()
    fine = [all(r for r, g in zip(right, groups) if g == group) for group in sorted(set(groups))]
    assert consistency(right, groups)["consistency"] == pytest.approx(100 * np.mean(fine))
