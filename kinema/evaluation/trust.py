"""How well the trust that a simulation has in itself predicts its true error."""

import numpy as np

from kinema.evaluation import bootstrap
from kinema.evaluation.protocol import Run
from kinema.kits import Quantity

FIFTH = 0.2


def add_trust(run: Run, quantity: Quantity, trust: np.ndarray, error: np.ndarray, steps: np.ndarray) -> None:
    """Add rank correlations of trust and error, and errors of the most and the least trusted fifth.

    Args:
        run: the measurement.
        quantity: the quantity of the error.
        trust: ``rollouts N``; NaN where there is none.
        error: ``rollouts N``.
        steps: ``N``, the step of each column, which predicts error too: it is the baseline.
    """
    step = np.broadcast_to(-steps.astype(float), trust.shape)

    def at_one_step(trust: np.ndarray, error: np.ndarray) -> float:
        values = np.array(
            [rank_correlation(trust[:, steps == s], error[:, steps == s]) for s in np.unique(steps)]
        )
        return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else float("nan")

    unit, label = quantity.unit, quantity.label
    kinds: list[tuple[str, str, str, bootstrap.Statistic, np.ndarray]] = [
        ("correlation", f"trust: rank correlation with {label} error", "", rank_correlation, trust),
        ("same-step", "  among frames of the same step", "", at_one_step, trust),
        ("baseline", "  of the number of steps alone", "", rank_correlation, step),
        ("least", "  error of the least trusted fifth, median", unit, least_trusted, trust),
        ("most", "  error of the most trusted fifth, median", unit, most_trusted, trust),
    ]
    for name, what, of, statistic, values in kinds:
        is_higher_better = name == "correlation"
        key = f"trust/{name}/{quantity.key}"
        run.row(key, what, of, statistic, values, error, num_draws=200, is_higher_better=is_higher_better)


def rank_correlation(trust: np.ndarray, error: np.ndarray) -> float:
    """Return Spearman's rank correlation of error with lack of trust: 1 where less trust always means more
    error; NaN where one of the two never changes."""
    from scipy import stats

    is_number = np.isfinite(trust) & np.isfinite(error)
    lack, error = -trust[is_number], error[is_number]
    if len(lack) < 3 or np.ptp(lack) == 0 or np.ptp(error) == 0:
        return float("nan")
    return float(np.corrcoef(stats.rankdata(lack), stats.rankdata(error))[0, 1])


def least_trusted(trust: np.ndarray, error: np.ndarray) -> float:
    """Return the median error of the fifth with the least trust."""
    is_number = np.isfinite(trust) & np.isfinite(error)
    if not is_number.any():
        return float("nan")
    chosen = np.argsort(trust[is_number], kind="stable")[: max(1, round(FIFTH * is_number.sum()))]
    return float(np.median(error[is_number][chosen]))


def most_trusted(trust: np.ndarray, error: np.ndarray) -> float:
    """Return the median error of the fifth with the most trust."""
    return least_trusted(-trust, error)
