"""Intervals of accuracies and of their differences, beside their definitions."""

import math

import numpy as np
import pytest

from spot_hf.evaluation.intervals import Accuracy, Difference


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson's score interval in percent, as in his paper of 1927."""
    z, share = 1.959963984540054, right / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return 100 * (middle - half), 100 * (middle + half)


@pytest.mark.parametrize(("right", "count"), [(0, 12), (12, 12), (1, 1), (7, 12), (413, 1000)])
def test_accuracy_has_wilsons_interval(right, count):
    found = Accuracy.of(np.arange(count) < right)
    assert found.value == pytest.approx(100 * right / count)
    assert (found.low, found.high) == pytest.approx(wilson(right, count), abs=1e-9)
    assert 0 <= found.low <= found.value + 1e-9 and found.value - 1e-9 <= found.high <= 100


@pytest.mark.parametrize(("count", "first_share", "second_share"), [(200, 0.4, 0.55), (60, 0.9, 0.9), (300, 0.1, 0.05)])
def test_the_interval_of_a_difference_is_that_of_a_bootstrap_over_images(count, first_share, second_share):
    generator = np.random.default_rng(5)
    first, second = generator.random(count) < first_share, generator.random(count) < second_share
    found = Difference.of(first, second)
    assert (found.gained, found.lost) == ((second & ~first).sum(), (first & ~second).sum())
    assert found.value == pytest.approx(100 * (second.mean() - first.mean()))
    images = generator.integers(0, count, (10_000, count))
    resampled = 100 * (second[images].mean(1) - first[images].mean(1))
    # A quantile q of 10,000 draws from a normal distribution has a standard error of sqrt(q (1 - q) / 10,000) / density, 0.027
    # of its standard deviation at q = 0.025. Both intervals have it: four of them are 0.15 together. And all values are
    # multiples of one image.
    tolerance = 0.15 * resampled.std() + 100 / count
    assert (found.low, found.high) == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=tolerance)
    assert tolerance < 0.4 * (found.high - found.low), "too lax to notice a wrong width"
    reverse = Difference.of(second, first)
    assert (reverse.value, reverse.gained, reverse.lost) == (-found.value, found.lost, found.gained)
    assert Difference.of(first, second) == found  # no chance in it


def test_no_difference_has_no_interval():
    same = np.arange(50) % 3 == 0
    assert Difference.of(same, same) == Difference(0.0, 0.0, 0.0, 0, 0)
    assert Difference.of(~same & False, same | True) == Difference(100.0, 100.0, 100.0, 50, 0)
