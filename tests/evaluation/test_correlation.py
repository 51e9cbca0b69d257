import numpy as np
import pytest

from kinema.evaluation.correlation import agreement, mmrv, pearson, split_halves


def test_perfect_and_reversed_order() -> None:
    real = np.array([0.0, 1.0, 3.0, 4.0, 10.0])
    same = agreement(2.0 * real + 5.0, real)
    assert same.pearson[0] == pytest.approx(1.0)
    assert (same.spearman, same.mmrv) == (pytest.approx(1.0), 0.0)
    opposite = agreement(-real, real)
    assert opposite.pearson[0] == pytest.approx(-1.0)
    # Every policy is ranked wrongly against the one farthest from it.
    assert opposite.mmrv == pytest.approx(np.mean([1.0, 0.9, 0.7, 0.6, 1.0]))


def test_mmrv_of_one_swap_is_known() -> None:
    real = np.array([0.0, 0.5, 0.6, 1.0])
    swapped = np.array([0.0, 0.7, 0.4, 1.0])
    assert mmrv(swapped, real) == pytest.approx((0.0 + 0.1 + 0.1 + 0.0) / 4)
    # The scale of returns does not matter, and a tie that is none in reality is wrong.
    assert mmrv(7 * swapped, 30 * real - 4) == pytest.approx(0.05)
    assert mmrv(np.array([0.0, 0.5, 0.5, 1.0]), real) == pytest.approx(0.05)
    assert mmrv(swapped, np.ones(4)) == 0.0


def test_pearson_is_numpys() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 30))
    assert pearson(one, other) == pytest.approx(np.corrcoef(one, other)[0, 1])
    assert pearson(one, np.ones(30)) == 0.0


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        one = rng.normal(size=25)
        other = 0.6 * one + 0.8 * rng.normal(size=25)
        found = agreement(one, other, num_permutations=1)
        covered += found.pearson[1] < 0.6 < found.pearson[2]
    assert 0.92 < covered / 400 < 0.98


def test_one_policy_that_makes_the_correlation_is_named() -> None:
    rng = np.random.default_rng(1)
    simulated, real = rng.normal(size=(2, 12))
    simulated[4] = real[4] = 50.0
    found = agreement(simulated, real)
    assert found.pearson[0] > 0.9
    assert found.leverage == 4
    assert found.dropped[1] < 0.6
    assert 0.2 < found.chance < 1.0


def test_too_few_policies_are_refused() -> None:
    with pytest.raises(ValueError, match="3 policies: at least 4 are needed"):
        agreement(np.arange(3.0), np.arange(3.0))


def test_halves_agree_as_far_as_episodes_do() -> None:
    rng = np.random.default_rng(0)
    skill = np.linspace(0.0, 1.0, 20)[:, None]
    assert split_halves(skill + np.zeros(40)) == (pytest.approx(1.0), 0.0)
    # Means of 20 episodes are 0.22 off; the skills differ by 0.30, so r is 0.092 / (0.092 + 0.05).
    r, violation = split_halves(skill + rng.normal(0.0, 1.0, (20, 40)))
    assert r == pytest.approx(0.65, abs=0.2)
    assert violation > 0.1
    r, violation = split_halves(rng.normal(0.0, 1.0, (20, 40)))
    assert abs(r) < 0.3
    with pytest.raises(ValueError, match="1 episode of 20 policies"):
        split_halves(skill)
