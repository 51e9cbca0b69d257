"""Skill of forecasters whose answer is known."""

import math
from pathlib import Path

import numpy as np
import pytest

from kinema.data import Dataset
from kinema.evaluation.protocol import Run
from kinema.evaluation.result import Result
from kinema.evaluation.skill import SkillConfig, curve_steps, measure_skill, useful_steps

from .drawn import DrawnWorld, Recording
from .ensembles import DECAY, Mistakes, NoisyWorld, record

STEPS = 10


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Recordings without noise: the actions alone decide."""
    return record(tmp_path_factory.mktemp("calm") / "data", num_episodes=12, length=14, noise=0.0)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return record(tmp_path_factory.mktemp("noisy") / "data", num_episodes=30, length=14, noise=0.5, push=0.1)


def measure(dataset: Dataset, mistakes: Mistakes, out: Path, num_forks: int | None = None) -> Result:
    config = SkillConfig(world="noisy", steps=STEPS, rollouts=30, num_forks=num_forks, out=out)
    with Run("skill", NoisyWorld(mistakes), config, dataset=dataset) as run:
        measure_skill(run)
        return run.result()


def values(result: Result) -> dict[str, float]:
    return {row.key: row.value for row in result.rows}


def test_a_perfect_world_has_skill_1_and_obeys(calm: Dataset, tmp_path: Path) -> None:
    result = measure(calm, Mistakes(noise=0.0), tmp_path)
    found = values(result)
    for modality in ("frame", "state"):
        assert found[f"skill/{modality}/1"] == pytest.approx(1.0, abs=1e-3)
        assert found[f"skill/{modality}/10"] == pytest.approx(1.0, abs=1e-3)
        assert found[f"horizon/{modality}"] == STEPS
    assert found["psnr/10"] == found["codec/psnr"] == found["codec/psnr/moving"] == 60.0
    assert found["ssim/10"] == pytest.approx(1.0)
    assert result.protocol["num_forks"] == 1
    assert any("at least the 10 steps" in note for note in result.notes)
    assert result.series[0].at == list(curve_steps(STEPS))


def test_a_world_that_repeats_the_last_frame_has_skill_0(calm: Dataset, tmp_path: Path) -> None:
    found = values(measure(calm, Mistakes(noise=0.0, is_still=True), tmp_path))
    for modality in ("frame", "state"):
        assert found[f"skill/{modality}/1"] == pytest.approx(0.0, abs=1e-6)
        assert found[f"skill/{modality}/10"] == pytest.approx(0.0, abs=1e-6)
        assert found[f"obey/{modality}"] == pytest.approx(1.0)
        assert found[f"horizon/{modality}"] < 5


def test_a_deaf_world_does_not_obey(calm: Dataset, tmp_path: Path) -> None:
    found = values(measure(calm, Mistakes(noise=0.0, is_deaf=True), tmp_path))
    assert found["obey/state"] == pytest.approx(1.0)
    assert values(measure(calm, Mistakes(noise=0.01), tmp_path, num_forks=1))["obey/state"] > 5
    assert found["skill/state/10"] < 0.9


def test_the_mean_of_forks_counts_where_a_world_is_stochastic(noisy: Dataset, tmp_path: Path) -> None:
    mean = measure(noisy, Mistakes(noise=0.5), tmp_path)
    one = measure(noisy, Mistakes(noise=0.5), tmp_path, num_forks=1)
    assert mean.protocol["num_forks"] == 16
    assert values(mean)["skill/state/10"] > values(one)["skill/state/10"] + 0.15
    # The best forecast decays the last given state and adds the actions; 16 forks miss it by little.
    episodes = [noisy.episode(index) for index in range(noisy.num_episodes)]
    states = np.stack([episode.columns["observation.state"] for episode in episodes]).astype(float)
    actions = np.stack([episode.columns["action"] for episode in episodes]).astype(float)
    best = states[:, 3]
    for step in range(STEPS):
        best = DECAY * best + actions[:, 3 + step]
    error, repeated = (np.mean((x - states[:, 3 + STEPS]) ** 2) for x in (best, states[:, 3]))
    assert values(mean)["skill/state/10"] == pytest.approx(1 - 17 / 16 * error / repeated, abs=0.1)


def test_an_own_error_of_the_probe_counts_for_its_horizon(recording: Recording, tmp_path: Path) -> None:
    config = SkillConfig(world="drawn", steps=STEPS, rollouts=4, num_forks=1, out=tmp_path)
    world = DrawnWorld(recording)
    with Run("skill", world, config, dataset=recording.dataset) as run:
        measure_skill(run)
        found = values(run.result())
    assert found["horizon/agent"] == STEPS
    assert found["horizon/block"] == STEPS
    assert found["skill/frame/10"] > 0.99
    assert "skill/state/10" not in found


def test_the_useful_horizon_is_where_the_error_is_half_of_an_unrelated_one() -> None:
    steps = (1, 2, 4, 8)
    unrelated = np.full((3, 4), 4.0)
    assert useful_steps(steps, np.tile([0.0, 1.0, 3.0, 4.0], (3, 1)), unrelated) == 3.0
    assert useful_steps(steps, np.tile([4.0, 4.0, 4.0, 4.0], (3, 1)), unrelated) == 0.5
    assert useful_steps(steps, np.full((3, 4), 1.0), unrelated) == 8.0
    assert math.isnan(useful_steps(steps, np.full((3, 4), np.nan), unrelated))
