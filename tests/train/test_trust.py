from pathlib import Path

import numpy as np
import pytest

from kinema.data import Dataset
from kinema.train.trust import fit_trust

from ..worlds import random_world, write_exact_world


@pytest.mark.parametrize("has_camera", [True, False])
def test_the_expected_error_is_about_the_true_one(has_camera: bool, tmp_path: Path) -> None:
    """Of a world that nobody trained all frames are wrong, and are expected to be."""
    root = write_exact_world(tmp_path / "data", lengths=(30,) * 6, has_camera=has_camera, has_proprio=True)
    world = random_world(num_cameras=int(has_camera), proprio_dim=2)
    world.manifold = None
    dataset = Dataset.open(root)
    assert not world.has_error_fit
    fit_trust(world, dataset, [0, 1, 2])
    assert world.has_error_fit
    episode = dataset.episode(4)
    frames = {key: each[:4] for key, each in episode.frames.items()}
    proprio = episode.columns["observation.state"]
    sim = world.start(frames or None, episode.actions[:3], proprio=proprio[:4])
    expected, true = [], []
    for row in range(4, 30):
        step = sim.step(episode.actions[row - 1])
        expected.append(step.expected_error.mean())
        shown, real = (step.frame, episode.frames) if has_camera else (step.proprio, proprio)
        real = next(iter(real.values()))[row] if isinstance(real, dict) else real[row]
        error = (np.asarray(shown, float) - real) ** 2
        true.append(np.sqrt(error.mean()) if has_camera else np.abs(np.sqrt(error)).mean())
    assert 0.4 < np.mean(expected) / np.mean(true) < 2.5


def test_short_episodes_leave_a_world_without_a_fit(tmp_path: Path) -> None:
    root = write_exact_world(tmp_path / "data", lengths=(6,) * 3, has_proprio=True)
    world = random_world(proprio_dim=2)
    fit_trust(world, Dataset.open(root), [0, 1, 2])
    assert not world.has_error_fit
