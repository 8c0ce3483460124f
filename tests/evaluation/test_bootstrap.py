import numpy as np
import pytest

from mvlm_jax.evaluation.reconstruction import ratio_interval


def test_value_is_the_ratio_of_sums_not_the_mean_of_ratios():
    value, low, high = ratio_interval(np.array([1.0, 9.0]), np.array([1.0, 3.0]), resamples=500, seed=0)
    assert value == 2.5
    # Resamples are (1, 1), (1, 9) or (9, 9): ratios 1, 2.5 and 3.
    assert (low, high) == (1, 3)


def test_constant_data_has_no_spread():
    assert ratio_interval(np.full(50, 2.0), np.full(50, 4.0), resamples=100, seed=0) == [0.5, 0.5, 0.5]


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        count = rng.integers(1, 6, 150).astype(float)
        total = rng.binomial(count.astype(int), 0.3).astype(float)
        _, low, high = ratio_interval(total, count, resamples=300, seed=trial)
        covered += low <= 0.3 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_interval_shrinks_with_the_root_of_the_number_of_images():
    rng = np.random.default_rng(1)
    widths = []
    for images in (100, 1600):
        _, low, high = ratio_interval(rng.normal(size=images), np.ones(images), resamples=1000, seed=0)
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.3)


def test_images_with_nothing_to_count_are_harmless():
    value, low, high = ratio_interval(np.array([0.0, 1.0]), np.array([0.0, 1.0]), resamples=200, seed=0)
    assert (value, low, high) == (1, 1, 1)
