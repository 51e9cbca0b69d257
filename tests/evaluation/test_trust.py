import numpy as np
import pytest

from kinema.evaluation.trust import falling, least_trusted, most_trusted, trust_rows


def test_rank_correlation_knows_order_alone() -> None:
    trust = np.array([0.9, 0.5, 0.1, 0.01])
    assert falling(trust, np.array([1.0, 2.0, 3.0, 1000.0])) == pytest.approx(1.0)
    assert falling(trust, np.array([9.0, 4.0, 3.0, 0.0])) == pytest.approx(-1.0)
    # Equal values share their ranks: 1, 2.5, 2.5, 4 against 1, 2, 3, 4.
    assert falling(-np.array([1.0, 2.0, 2.0, 5.0]), np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(0.9**0.5)
    assert np.isnan(falling(np.ones(4), trust))
    assert falling(np.array([0.9, np.nan, 0.5, 0.1]), np.array([1.0, -7.0, 2.0, 3.0])) == pytest.approx(1.0)


def test_fifths() -> None:
    trust, error = np.linspace(1.0, 0.0, 10), np.arange(10.0)
    assert most_trusted(trust, error) == 0.5
    assert least_trusted(trust, error) == 8.5


def test_rows_tell_what_the_number_of_steps_does_not() -> None:
    rng = np.random.default_rng(0)
    steps = np.repeat([1, 10, 100], 4)
    doubt = rng.uniform(size=(20, 12))
    error = doubt + 0.002 * steps
    rows = {
        row.key: row.value
        for row in trust_rows(1 - doubt, error, steps, key="x", what="x", unit="px", rng=rng)
    }
    assert rows["trust/same-step/x"] == pytest.approx(1.0)
    assert 0.05 < rows["trust/baseline/x"] < rows["trust/correlation/x"] < 0.999
    assert rows["trust/least/x"] > rows["trust/most/x"]
