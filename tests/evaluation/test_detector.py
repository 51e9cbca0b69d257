"""The validity detector knows nothing of PushT: only these tests do, to make pictures that are wrong."""

from pathlib import Path

import numpy as np
import pytest

from kinema.data import DataError, Dataset, DatasetWriter
from kinema.evaluation.detector import Detector
from kinema.kits.pusht.detect import visible_share
from kinema.simulation.world import load

from .corrupted import KINDS, THINGS, Painter
from .drawn import DrawnWorld, Recording
from .drawn import record as record_drawn

CAMERA = "observation.images.pixels"
NUM_EPISODES, LENGTH = 75, 20
NUM_TRAINING = 60
NUM_CORRUPTED = 60


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """States of PushT, each of its own, as its simulator draws them."""
    root = tmp_path_factory.mktemp("recorded") / "pusht"
    rng, painter = np.random.default_rng(0), Painter()
    with DatasetWriter(root, fps=10.0, codec="lossless") as writer:
        for _ in range(NUM_EPISODES):
            agent = rng.uniform(22, 490, (LENGTH, 2)).astype(np.float32)
            block = rng.uniform([60, 60, -np.pi], [452, 452, np.pi], (LENGTH, 3)).astype(np.float32)
            frames = np.stack([painter.draw(*state) for state in zip(agent, block, strict=True)])
            columns = {"action": agent, "info.pos_agent": agent, "info.block_pose": block}
            writer.add(frames={CAMERA: frames}, columns=columns, task="push")
    return Dataset.open(root)


@pytest.fixture(scope="module")
def detector(recorded: Dataset) -> Detector:
    return Detector.train(load("pusht"), recorded, episodes=range(NUM_TRAINING))


@pytest.fixture(scope="module")
def states(recorded: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures, agents and blocks that the detector has not seen."""
    episodes = [recorded.episode(index) for index in range(NUM_TRAINING, NUM_EPISODES)]
    frames = np.concatenate([episode.frames[CAMERA] for episode in episodes])
    agents, blocks = (
        np.concatenate([episode.columns[key] for episode in episodes])
        for key in ("info.pos_agent", "info.block_pose")
    )
    return frames, agents, blocks


def test_real_pictures_pass(detector: Detector, states: tuple[np.ndarray, ...]) -> None:
    assert detector.is_valid({CAMERA: states[0]}).mean() >= 0.96
    assert detector.false_alarms <= 0.011


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_wrong_pictures_are_flagged(
    detector: Detector, states: tuple[np.ndarray, ...], thing: str, kind: str
) -> None:
    frames, agents, blocks = states
    rng = np.random.default_rng(0)
    painter = Painter()
    # What lies mostly outside of the picture is hardly missed.
    rows = rng.choice(np.flatnonzero(visible_share(blocks) > 0.4), NUM_CORRUPTED, replace=False)
    np.testing.assert_array_equal(painter.draw(agents[rows[0]], blocks[rows[0]]), frames[rows[0]])
    wrong = np.stack(
        [painter.corrupt(agents[row], blocks[row], thing=thing, kind=kind, rng=rng) for row in rows]
    )
    assert detector.is_valid({CAMERA: wrong}).mean() <= 0.05


def test_the_score_tells_how_far_a_picture_is_from_real_ones(
    detector: Detector, states: tuple[np.ndarray, ...]
) -> None:
    real = {CAMERA: states[0][:20]}
    noise = {CAMERA: np.random.default_rng(0).integers(0, 256, states[0][:20].shape, dtype=np.uint8)}
    assert detector.score(noise).min() > 10 * detector.score(real).max()
    assert "real frames of" in detector.describe()


def test_mistakes_are_explained(tmp_path: Path) -> None:
    small = record_drawn(tmp_path / "small", num_episodes=1, length=20).dataset
    with pytest.raises(DataError, match=r"needs camera observation\.images\.pixels; the dataset has"):
        Detector.train(load("pusht"), small)
    world = DrawnWorld(Recording(dataset=small, actions=[], blocks=[]))
    with pytest.raises(DataError, match="at least 100 real frames, there are 20; give more recordings"):
        Detector.train(world, small)
