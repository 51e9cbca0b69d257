"""How well the trust that a simulation has in itself predicts its true error."""

import numpy as np
from scipy import stats

from kinema.evaluation.result import Row, Statistic

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

    def at_one_step(trust: np.ndarray, error: np.ndarray) -> float:
        found = [falling(trust[:, steps == s], error[:, steps == s]) for s in np.unique(steps)]
        known = [value for value in found if np.isfinite(value)]
        return float(np.mean(known)) if known else float("nan")

    kinds: list[tuple[str, str, str, Statistic, np.ndarray]] = [
        ("correlation", f"trust: rank correlation with {what} error", "", falling, trust),
        ("same-step", "  among frames of the same step", "", at_one_step, trust),
        ("baseline", "  of the number of steps alone", "", falling, step),
        ("least", "  error of the least trusted fifth, median", unit, least_trusted, trust),
        ("most", "  error of the most trusted fifth, median", unit, most_trusted, trust),
    ]
    return [
        Row.measure(f"trust/{name}/{key}", text, of, statistic, values, error, rng=rng, num_draws=200)
        for name, text, of, statistic, values in kinds
    ]


def falling(trust: np.ndarray, error: np.ndarray) -> float:
    """Spearman's rank correlation of error with lack of trust: 1 where less trust always means more error."""
    known = np.isfinite(trust) & np.isfinite(error)
    one, other = -trust[known], error[known]
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(np.corrcoef(stats.rankdata(one), stats.rankdata(other))[0, 1])


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
