"""Scores of ensembles against analytic forecasters, alone and through the whole measurement."""

from pathlib import Path

import numpy as np
import pytest

from kinema.data import Dataset
from kinema.evaluation.calibration import (
    CalibrationConfig,
    Scores,
    coverage,
    measure_calibration,
    reliability_index,
    score,
    spread_over_error,
)
from kinema.evaluation.protocol import Run
from kinema.evaluation.result import Row, Series

from .ensembles import Mistakes, NoisyWorld, record

NOISE = 0.5
NUM, MEMBERS, NUMBERS = 300, 19, 20


def gaussian(spread: float, bias: float = 0.0) -> Scores:
    """Scores of forecasters that know the mean of each number; what happens has a deviation of 1."""
    rng = np.random.default_rng(0)
    mean = rng.normal(0.0, 5.0, (NUM, 1, NUMBERS))
    members = mean + bias + spread * rng.normal(size=(NUM, MEMBERS, NUMBERS))
    return score(members, mean[:, 0] + rng.normal(size=(NUM, NUMBERS)), rng)


def test_a_perfect_ensemble_is_calibrated() -> None:
    scores = gaussian(1.0)
    assert spread_over_error(scores.variance, scores.squared_error) == pytest.approx(1.0, abs=0.03)
    assert reliability_index(scores.ranks) < 0.12
    assert coverage(scores.ranks) == pytest.approx(0.9, abs=0.015)
    # That of a normal distribution against a sample of itself: 1 / sqrt(pi), whatever the number of members.
    assert scores.crps.mean() == pytest.approx(np.pi**-0.5, abs=0.02)
    assert scores.ranks.sum() == NUM * NUMBERS


@pytest.mark.parametrize(("spread", "is_over"), [(0.3, True), (3.0, False)])
def test_too_narrow_and_too_wide_ensembles_are_told_apart(spread: float, is_over: bool) -> None:
    scores, right = gaussian(spread), gaussian(1.0)
    ratio = spread_over_error(scores.variance, scores.squared_error)
    covered, counts = coverage(scores.ranks), scores.ranks.sum(axis=0)
    outer = (counts[0] + counts[-1]) / counts.sum() * (MEMBERS + 1) / 2
    assert (ratio < 0.4) if is_over else (ratio > 2.0)
    assert (covered < 0.5) if is_over else (covered > 0.98)
    assert (outer > 2.0) if is_over else (outer < 0.3)
    assert reliability_index(scores.ranks) > 0.5
    assert scores.crps.mean() > 1.1 * right.crps.mean()


def test_a_biased_ensemble_has_a_tilted_histogram() -> None:
    counts = gaussian(1.0, bias=2.0).ranks.sum(axis=0)
    assert counts[0] > 10 * counts[-1]


def test_crps_is_the_sum_over_pairs() -> None:
    rng = np.random.default_rng(1)
    members, truth = rng.normal(size=(3, 5, 4)), rng.normal(size=(3, 4))
    pairs = np.abs(members[:, :, None] - members[:, None]).sum(axis=(1, 2)) / (5 * 4)
    expected = np.abs(members - truth[:, None]).mean(axis=1) - 0.5 * pairs
    np.testing.assert_allclose(score(members, truth, rng).crps, expected.mean(axis=1), rtol=1e-5)


def test_ties_have_any_of_their_ranks_and_agreement_has_none() -> None:
    rng = np.random.default_rng(0)
    scores = score(np.zeros((1, 4, 1000)), np.zeros((1, 1000)), rng, agreement=-1.0)
    assert scores.ranks.min() > 150
    assert score(np.zeros((1, 4, 1000)), np.zeros((1, 1000)), rng).ranks.sum() == 0


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return record(tmp_path_factory.mktemp("noisy") / "data", num_episodes=40, length=16, noise=NOISE)


def measure(
    recorded: Dataset, mistakes: Mistakes, out: Path, batch: int = 64
) -> tuple[dict[str, Row], dict[str, Series]]:
    config = CalibrationConfig(world="noisy", steps=10, rollouts=40, num_forks=19, out=out, batch=batch)
    with Run("calibration", NoisyWorld(mistakes), config, dataset=recorded) as run:
        measure_calibration(run)
        result = run.result()
    return {row.key: row for row in result.rows}, {series.key: series for series in result.series}


def test_a_world_that_knows_the_noise_is_calibrated(recorded: Dataset, tmp_path: Path) -> None:
    rows, series = measure(recorded, Mistakes(noise=NOISE), tmp_path)
    for modality in ("frame", "state"):
        for step in (1, 10):
            row = rows[f"spread/{modality}/{step}"]
            assert row.low is not None
            assert row.high is not None
            assert row.low < 1.0 < row.high
            assert 0.8 < row.value < 1.25
            assert 0.8 < rows[f"coverage/{modality}/{step}"].value < 0.97
            assert rows[f"crps/{modality}/{step}"].value < 0.9 * rows[f"crps/{modality}/{step}/still"].value
    # A frame is brighter by 20 levels for each unit of the state.
    assert rows["crps/frame/10"].value == pytest.approx(20.0 * rows["crps/state/10"].value, rel=0.05)
    histogram = series["ranks/state/10"]
    assert histogram.at == list(range(20))
    assert sum(histogram.value) == pytest.approx(1.0)
    assert max(histogram.value) < 0.2


def test_an_overconfident_world_is_not(recorded: Dataset, tmp_path: Path) -> None:
    rows, series = measure(recorded, Mistakes(noise=0.1 * NOISE), tmp_path)
    for modality in ("frame", "state"):
        assert rows[f"spread/{modality}/10"].value < 0.3
        assert rows[f"coverage/{modality}/10"].value < 0.4
        ends = series[f"ranks/{modality}/10"].value
        assert ends[0] + ends[-1] > 0.6


def test_the_size_of_the_batch_changes_nothing(recorded: Dataset, tmp_path: Path) -> None:
    one, other = (measure(recorded, Mistakes(noise=NOISE), tmp_path, batch)[0] for batch in (12, 100))
    assert {key: row.value for key, row in one.items() if "state" in key and "rank" not in key} == {
        key: pytest.approx(row.value) for key, row in other.items() if "state" in key and "rank" not in key
    }
