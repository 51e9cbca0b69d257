"""The games that the suite records show what they should, and their policies play."""

from typing import Any

import numpy as np
import pytest

from kinema.data.environment import make_environment, make_policy


def play(env_id: str, policy: str, num_steps: int) -> tuple[np.ndarray, list[Any], float]:
    env = make_environment(env_id, {}, render="auto", frame_size=None).env
    player = make_policy(policy, {}, env)
    observation, info = env.reset(seed=0)
    player.reset(np.random.default_rng(0), info)
    frames, actions, rewards = [], [], 0.0
    for _ in range(num_steps):
        frames.append(observation["pixels"] if isinstance(observation, dict) else observation)
        actions.append(player.act(observation, info))
        observation, reward, terminated, truncated, info = env.step(actions[-1])
        rewards += float(reward)
        if terminated or truncated:
            break
    env.close()
    return np.stack(frames), actions, rewards


def test_the_car_moves_and_the_camera_does_not_zoom() -> None:
    pytest.importorskip("Box2D")
    frames, _, reward = play("benchmarks.worlds:kinema_suite/CarRacing-v0", "benchmarks.worlds:Driver", 80)
    assert frames.shape[1:] == (96, 96, 3)
    assert reward > 0.0
    # The car, red, is where it always is; while the camera zooms it grows.
    is_red = (frames[..., 0] > 150) & (frames[..., 1] < 60)
    sizes = is_red[:, 60:84].sum(axis=(1, 2))
    assert sizes[:5].mean() == pytest.approx(sizes.mean(), rel=0.5)
    assert np.abs(np.diff(frames[:, :84].astype(int), axis=0)).mean() > 0.3


def test_the_batter_hits_the_ball() -> None:
    pytest.importorskip("ale_py")
    frames, actions, reward = play("ale_py:ALE/Breakout-v5", "benchmarks.worlds:Batter", 250)
    assert frames.shape[1:] == (210, 160, 3)
    assert set(actions) == {0, 1, 2, 3}
    assert reward >= 2.0


def test_the_friction_of_the_table_changes() -> None:
    pytest.importorskip("gym_pusht")
    env = make_environment(
        "benchmarks.worlds:kinema_suite/PushTMoods-v0", {}, render="auto", frame_size=None
    ).env
    inner: Any = env.unwrapped
    runs = []
    for _ in range(2):
        env.reset(seed=0)
        runs.append([])
        for _ in range(60):
            env.step(np.array([256.0, 256.0], np.float32))
            runs[-1].append(float(inner.space.damping))
    assert 0.0 in runs[0]
    assert len(set(runs[0])) >= 3
    assert runs[0] == runs[1]
