"""Statistics that leave missing numbers out, and their intervals over episodes."""

from collections.abc import Callable

import numpy as np

Statistic = Callable[..., float]
"""A number from samples, segments first."""


def interval(
    statistic: Statistic,
    *samples: np.ndarray,
    rng: np.random.Generator,
    num: int = 400,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return the bootstrap interval (percentiles) of ``statistic(*samples)``.

    Segments, the first axis of every array, are drawn again with replacement, the same ones from each array.
    Seeds and steps of a segment stay together, since they are not independent.
    """
    num_segments = len(samples[0])
    assert all(len(sample) == num_segments for sample in samples)
    values = []
    for _ in range(num):
        drawn = rng.integers(0, num_segments, num_segments)
        values.append(statistic(*(sample[drawn] for sample in samples)))
    if np.isnan(values).all():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(values, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def percentile(values: np.ndarray, percent: float) -> float:
    """Return a percentile of all numbers; NaN where there is none."""
    numbers = values[~np.isnan(values)]
    return float(np.percentile(numbers, percent)) if len(numbers) else float("nan")


def median(values: np.ndarray) -> float:
    """Return the median of all numbers; NaN where there is none."""
    numbers = values[~np.isnan(values)]
    if not len(numbers):
        return float("nan")
    # Called for every draw; np.median spends most of its time on cases that do not occur here.
    middle = [(len(numbers) - 1) // 2, len(numbers) // 2]
    return float(np.partition(numbers, middle)[middle].mean())


def mean(values: np.ndarray) -> float:
    """Return the mean of all numbers, which of flags is their share; NaN where there is none."""
    numbers = values[~np.isnan(values)]
    return float(numbers.mean()) if len(numbers) else float("nan")


def ratio_of_medians(values: np.ndarray, others: np.ndarray) -> float:
    """Return the median of the first over that of the second; NaN where that is not positive."""
    below = median(others)
    return median(values) / below if below > 0 else float("nan")
