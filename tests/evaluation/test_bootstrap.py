import numpy as np
import pytest

from kinema.evaluation import bootstrap


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Clips differ, their steps do not: the interval must come from the number of clips."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        clips = np.repeat(rng.normal(3.0, 1.0, (30, 1)), 5, axis=1)
        low, high = bootstrap.interval(bootstrap.median, clips, rng=rng, num=200)
        hits += low <= 3.0 <= high
    assert 0.85 <= hits / 200 <= 0.99


def test_clips_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(1, 100, (20, 1))
    low, high = bootstrap.interval(bootstrap.ratio_of_medians, 3 * values, values, rng=rng)
    assert low == pytest.approx(3.0)
    assert high == pytest.approx(3.0)


def test_numbers_that_are_missing_are_left_out() -> None:
    values = np.array([1.0, np.nan, 3.0])
    assert bootstrap.median(values) == 2.0
    assert bootstrap.median(np.array([[5.0, 1.0], [2.0, 9.0]])) == 3.5
    assert bootstrap.percentile(values, 75.0) == 2.5
    assert bootstrap.mean(np.array([1.0, np.nan, 0.0])) == 0.5
    assert np.isnan(bootstrap.median(np.array([np.nan])))
    assert np.isnan(bootstrap.ratio_of_medians(np.array([1.0]), np.array([0.0])))
