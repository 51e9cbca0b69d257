"""The PushT play policy, in the real simulator: it stays inside, repeats under its seed, pushes and roams."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from kinema.kits.pusht.play import PushTPlay, PushTPlayConfig, make

gymnasium = pytest.importorskip("gymnasium", reason="needs kinema[pusht]")
pytest.importorskip("gym_pusht", reason="needs kinema[pusht]")

NUM_EPISODES, NUM_STEPS = 20, 80
SIZE = 512.0


@dataclasses.dataclass(frozen=True)
class Play:
    actions: np.ndarray
    agent: np.ndarray
    block: np.ndarray
    """x, y, angle."""


def play(env: Any, policy: PushTPlay, seed: int) -> Play:
    observation, info = env.reset(seed=seed)
    policy.reset(np.random.default_rng(seed), info)
    actions, agent, block = [], [], []
    while (action := policy.act(observation, info)) is not None:
        actions.append(action)
        agent.append(info["pos_agent"])
        block.append(info["block_pose"])
        observation, _, terminated, _, info = env.step(action)
        if terminated:
            break
    return Play(np.array(actions), np.array(agent), np.array(block))


@pytest.fixture(scope="module")
def env() -> Any:
    # Without pictures, which are what takes time.
    return gymnasium.make("gym_pusht/PushT-v0", obs_type="state", max_episode_steps=-1)


@pytest.fixture(scope="module")
def plays(env: Any) -> list[Play]:
    policy = make(steps=NUM_STEPS)
    return [play(env, policy, seed) for seed in range(NUM_EPISODES)]


def test_it_stays_in_bounds(plays: list[Play]) -> None:
    for one in plays:
        assert one.actions.dtype == np.float32
        assert one.actions.shape == (NUM_STEPS, 2)
        assert one.actions.min() >= 0.0
        assert one.actions.max() <= SIZE
        # The agent itself is never pressed against the wall.
        assert one.agent.min() > 15.0
        assert one.agent.max() < SIZE - 15.0


def test_its_seed_decides(env: Any, plays: list[Play]) -> None:
    again = play(env, make(steps=NUM_STEPS), seed=5)
    np.testing.assert_array_equal(again.actions, plays[5].actions)
    np.testing.assert_array_equal(again.block, plays[5].block)
    assert not np.array_equal(plays[4].actions, plays[5].actions)


def test_it_moves_the_block_in_most_episodes(plays: list[Play]) -> None:
    travelled = np.array([np.linalg.norm(one.block[:, :2] - one.block[0, :2], axis=1).max() for one in plays])
    turned = np.array([np.ptp(one.block[:, 2]) for one in plays])
    assert (travelled > 10.0).mean() >= 0.6
    assert (turned > np.radians(10.0)).mean() >= 0.5
    # Sometimes it only moves about: a world also has to be learned where nothing is pushed.
    assert (travelled < 1.0).any()


def test_it_covers_the_regions(plays: list[Play]) -> None:
    agent = np.concatenate([one.agent for one in plays])
    block = np.concatenate([one.block for one in plays])
    visited, *_ = np.histogram2d(agent[:, 0], agent[:, 1], bins=3, range=[[0, SIZE], [0, SIZE]])
    assert visited.min() / len(agent) > 0.01
    angles, _ = np.histogram(block[:, 2] % (2 * np.pi), bins=6, range=(0, 2 * np.pi))
    assert angles.min() / len(block) > 0.02


def test_lengths_of_episodes() -> None:
    info = {"pos_agent": np.array([256.0, 256.0]), "block_pose": np.array([200.0, 200.0, 0.0])}
    lengths = []
    for seed in range(100):
        policy = make()
        policy.reset(np.random.default_rng(seed), info)
        lengths.append(next(step for step in itertools.count() if policy.act(None, info) is None))
    assert 40 <= min(lengths) <= 90
    assert np.mean(np.array(lengths) <= 90) > 0.5
    assert 400 <= max(lengths) <= 450


def test_bad_settings_and_worlds_are_refused() -> None:
    with pytest.raises(ValueError, match="steps is 0"):
        PushTPlayConfig(steps=0)
    with pytest.raises(ValueError, match="push_share is 2"):
        PushTPlayConfig(push_share=2.0)
    with pytest.raises(ValueError, match="needs block_pose in info"):
        make().reset(np.random.default_rng(0), {"pos_agent": np.zeros(2)})
