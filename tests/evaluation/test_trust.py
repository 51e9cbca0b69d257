import numpy as np
import pytest

from kinema.evaluation.horizon import HorizonConfig
from kinema.evaluation.protocol import Run
from kinema.evaluation.trust import add_trust, least_trusted, most_trusted, rank_correlation
from kinema.kits import Quantity
from kinema.simulation.world import World

from .drawn import tiny_config


def test_rank_correlation_knows_order_alone() -> None:
    trust = np.array([0.9, 0.5, 0.1, 0.01])
    assert rank_correlation(trust, np.array([1.0, 2.0, 3.0, 1000.0])) == pytest.approx(1.0)
    assert rank_correlation(trust, np.array([9.0, 4.0, 3.0, 0.0])) == pytest.approx(-1.0)
    # Equal values share their ranks: 1, 2.5, 2.5, 4 against 1, 2, 3, 4.
    assert rank_correlation(-np.array([1.0, 2, 2, 5]), np.arange(4.0)) == pytest.approx(0.9**0.5)
    assert np.isnan(rank_correlation(np.ones(4), trust))
    assert rank_correlation(
        np.array([0.9, np.nan, 0.5, 0.1]), np.array([1.0, -7.0, 2.0, 3.0])
    ) == pytest.approx(1.0)


def test_fifths() -> None:
    trust, error = np.linspace(1.0, 0.0, 10), np.arange(10.0)
    assert most_trusted(trust, error) == 0.5
    assert least_trusted(trust, error) == 8.5


def test_rows_tell_what_the_number_of_steps_does_not() -> None:
    rng = np.random.default_rng(0)
    steps = np.repeat([1, 10, 100], 4)
    distrust = rng.uniform(size=(20, 12))
    error = distrust + 0.002 * steps
    run = Run("horizon", World(tiny_config()), HorizonConfig(world="tiny"))
    add_trust(run, Quantity(key="x", label="x", unit="px", largest=1.0), 1 - distrust, error, steps)
    rows = {row.key: row.value for row in run.rows}
    assert rows["trust/same-step/x"] == pytest.approx(1.0)
    assert 0.05 < rows["trust/baseline/x"] < rows["trust/correlation/x"] < 0.999
    assert rows["trust/least/x"] > rows["trust/most/x"]
