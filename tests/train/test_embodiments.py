"""Robots of many kinds of numbers, from recordings to simulated steps."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from kinema.data import Dataset, DatasetWriter
from kinema.planners import CrossEntropy, Goal, SearchConfig, WorldScore
from kinema.planners.scores import restore_actions
from kinema.simulation.world import World, load
from kinema.train.command import TrainConfig, train
from kinema.types import WorldError

STATE = "observation.state"
GEARS = np.array([-20.0, 0.0, 20.0])


def write_wheel(root: Path, num_episodes: int = 12, length: int = 60) -> Path:
    """A wheel turned by one of three gears, in degrees from 0 to 360; beside it a lamp that never changes and
    the direction (radians) that was asked for in the last action."""
    rng = np.random.default_rng(0)
    with DatasetWriter(root, fps=10) as writer:
        for _ in range(num_episodes):
            gears = np.repeat(rng.integers(0, 3, length // 4), 4)
            asked = np.mod(np.cumsum(rng.normal(0.3, 0.1, length)), 2 * np.pi) - np.pi
            angle = np.mod(rng.uniform(0, 360) + np.concatenate([[0.0], np.cumsum(GEARS[gears])[:-1]]), 360.0)
            shown = np.concatenate([asked[:1], asked[:-1]])
            state = np.stack([angle, np.full(length, 7.5), shown], axis=1)
            action = np.concatenate([np.eye(3)[gears], asked[:, None]], axis=1)
            writer.add(
                frames={},
                columns={"action": action.astype(np.float32), STATE: state.astype(np.float32)},
                task="turn",
            )
    return root


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Dataset]:
    root = tmp_path_factory.mktemp("wheel")
    data = write_wheel(root / "data")
    assert train(TrainConfig(data=str(data), out=root / "world", recipe="tiny", update_share=1.0)) == 0
    return load(root / "world"), Dataset.open(data)


def test_video_without_actions_is_learned_and_goes_on_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    camera = "observation.images.top"
    with DatasetWriter(tmp_path / "data", fps=10) as writer:
        for start in range(6):
            frames = np.zeros((24, 32, 32, 3), np.uint8)
            for t, frame in enumerate(frames):
                frame[:, (start + t) % 28 : (start + t) % 28 + 4] = 255
            writer.add(frames={camera: frames}, columns={"next.reward": np.zeros(24, np.float32)})
    config = TrainConfig(
        data=str(tmp_path / "data"), out=tmp_path / "world", recipe="tiny", update_share=0.02
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train(config) == 0
        world = load(tmp_path / "world")
    assert "no feature 'action', so the world is learned without" in capsys.readouterr().out
    assert (world.action_dim, world.config.action_names, world.config.dynamics.action_dim) == (0, (), 0)
    episode = Dataset.open(tmp_path / "data").episode(0)
    sim = world.start(episode.frames[camera][:3], episode.actions[:2])
    step = sim.step()
    assert (step.frame.shape, step.outside) == ((32, 32, 3), {})
    assert np.array_equal(sim.fork(2).step(np.zeros((2, 0))).frame[0], sim.future(0).step().frame)
    with pytest.raises(WorldError, match=r"action: expected shape \(0,\) .*got \(2,\)"):
        sim.step([0.0, 1.0])
    with pytest.raises(ValueError, match="--clone: world 'world' has no actions to choose"):
        train(TrainConfig(data=str(tmp_path / "data"), out=tmp_path / "world", clone=True))


def test_a_world_knows_its_numbers(wheel: tuple[World, Dataset]) -> None:
    world, _ = wheel
    assert [each.kind for each in world.config.actions] == ["one-hot"] * 3 + ["angle"]
    assert [each.kind for each in world.config.proprio] == ["angle", "continuous", "angle"]
    assert (world.action_dim, world.proprio_dim) == (4, 3)
    assert (world.config.dynamics.action_dim, world.config.dynamics.proprio_dim) == (5, 5)
    assert world.action_normalizer.range[1] == pytest.approx([1, 1, 1, np.pi])


def test_angles_are_simulated_across_the_seam(wheel: tuple[World, Dataset]) -> None:
    world, data = wheel
    turns, errors = np.array([360.0, 2 * np.pi]), []
    columns = data.episode(data.num_episodes - 1).columns
    actions, states = columns["action"], columns[STATE]
    wraps = np.flatnonzero(np.abs(np.diff(states[:, 0])) > 180)
    assert len(wraps) > 2
    for row in [*wraps[wraps > 4], *range(5, 55, 5)]:
        sim = world.start(None, actions[row - 4 : row], proprio=states[row - 4 : row + 1])
        proprio = sim.step(actions[row]).proprio
        assert proprio is not None
        assert 0 <= proprio[0] <= 360
        assert proprio[1] == pytest.approx(7.5, abs=0.1)
        assert abs(proprio[2]) <= np.pi + 1e-6
        away = np.abs(proprio - states[row + 1])[[0, 2]]
        errors.append(np.minimum(away, turns - away) / turns)
    # A gear turns the wheel by 0.056 of a turn.
    assert (np.median(errors, axis=0) < 0.025).all()
    assert np.max(errors) < 0.25


def test_everything_takes_numbers_as_recorded(wheel: tuple[World, Dataset]) -> None:
    world, data = wheel
    columns = data.episode(0).columns
    sim = world.start(None, proprio=columns[STATE][:1])
    assert sim.step([0, 1, 0, 2.0]).outside == {}
    assert list(sim.step([0, 3, 0, 2.0]).outside) == ["action_1"]
    assert sim.look().proprio.shape == (3,)
    assert list(world.start(None, proprio=np.array([[10.0, 99.0, 0.0]])).look().outside) == [f"{STATE}[1]"]
    assert world.outside(columns["action"]) == {}
    assert world.infer(None, proprio=columns[STATE][:6]).shape == (5, 4)
    score = WorldScore(sim, Goal(target=lambda sessions: np.zeros(len(sessions))))
    search = CrossEntropy(SearchConfig(horizon=2, num_knots=2, candidates=8, iterations=1, elites=2))
    found = search.plan(score, np.zeros((2, 5)), np.random.default_rng(0))
    assert restore_actions(world, found.actions).shape == (2, 4)
