"""How well the trust that a simulation has in itself predicts its true error."""

from collections.abc import Callable

import numpy as np

from kinema.evaluation import bootstrap
from kinema.evaluation.table import Row

FIFTH = 0.2


def trust_rows(
    trust: np.ndarray,
    error: np.ndarray,
    steps: np.ndarray,
    *,
    key: str,
    what: str,
    unit: str,
    rng: np.random.Generator,
) -> list[Row]:
    """Rank correlations, and errors of the most and the least trusted fifth.

    Args:
        trust: ``rollouts N``; NaN where there is none.
        error: the same of the true errors.
        steps: ``N``, the step of each column, which predicts error too: it is the baseline.
        key: of what the error is.
        what: the same in words.
        unit: of the error.
        rng: of the intervals, which are over rollouts.
    """
    step = np.broadcast_to(-steps.astype(float), trust.shape)

    def row(
        name: str, text: str, statistic: Callable[..., float], *samples: np.ndarray, unit: str = ""
    ) -> Row:
        low, high = bootstrap.interval(statistic, *samples, rng=rng, num=200)
        return Row(
            key=f"trust/{name}/{key}", what=text, value=statistic(*samples), unit=unit, low=low, high=high
        )

    def at_one_step(trust: np.ndarray, error: np.ndarray) -> float:
        found = [falling(trust[:, steps == s], error[:, steps == s]) for s in np.unique(steps)]
        known = [value for value in found if np.isfinite(value)]
        return float(np.mean(known)) if known else float("nan")

    return [
        row("correlation", f"trust: rank correlation with {what} error", falling, trust, error),
        row("same-step", "  among frames of the same step", at_one_step, trust, error),
        row("baseline", "  of the number of steps alone", falling, step, error),
        row("least", "  error of the least trusted fifth, median", least_trusted, trust, error, unit=unit),
        row("most", "  error of the most trusted fifth, median", most_trusted, trust, error, unit=unit),
    ]


def falling(trust: np.ndarray, error: np.ndarray) -> float:
    """Spearman's rank correlation of error with lack of trust: 1 where less trust always means more error."""
    known = np.isfinite(trust) & np.isfinite(error)
    one, other = _ranks(-trust[known]), _ranks(error[known])
    if len(one) < 3 or one.std() == 0 or other.std() == 0:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])


def least_trusted(trust: np.ndarray, error: np.ndarray) -> float:
    """Median error of the fifth with the least trust."""
    return _median_of_fifth(trust, error)


def most_trusted(trust: np.ndarray, error: np.ndarray) -> float:
    """Median error of the fifth with the most trust."""
    return _median_of_fifth(-trust, error)


def _median_of_fifth(order: np.ndarray, error: np.ndarray) -> float:
    known = np.isfinite(order) & np.isfinite(error)
    if not known.any():
        return float("nan")
    chosen = np.argsort(order[known], kind="stable")[: max(1, round(FIFTH * known.sum()))]
    return float(np.median(error[known][chosen]))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, those of equal values averaged."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - 0.5 * (counts - 1))[inverse]
