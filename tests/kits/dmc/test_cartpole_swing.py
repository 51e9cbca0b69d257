"""The cart-pole policy in the real simulator: bad, mediocre and fairly good episodes, under its seed."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kinema.data.environment import make_environment
from kinema.kits.dmc.cartpole_swing import CartpoleSwing, CartpoleSwingConfig, make

NUM_EPISODES = 6
ONLY = {
    "random": {"random_share": 1.0, "swing_share": 0.0},
    "swing": {"random_share": 0.0, "swing_share": 1.0},
    "balance": {"random_share": 0.0, "swing_share": 0.0},
}


@dataclasses.dataclass(frozen=True)
class Episode:
    actions: np.ndarray
    places: np.ndarray
    reward: float


def play(env: Any, policy: CartpoleSwing, seed: int) -> Episode:
    observation, info = env.reset(seed=seed)
    policy.reset(np.random.default_rng(seed), info)
    actions, places, rewards, is_over = [], [], [], False
    while not is_over:
        actions.append(policy.act(observation, info))
        observation, reward, terminated, truncated, info = env.step(actions[-1])
        places.append(observation["position"][0])
        rewards.append(reward)
        is_over = terminated or truncated
    return Episode(np.array(actions), np.array(places), float(sum(rewards)))


@pytest.fixture(scope="module")
def env() -> Iterator[Any]:
    pytest.importorskip("dm_control", reason="needs kinema[dmc]")
    arguments = {"environment_kwargs": {"control_timestep": 0.05}}
    # Without pictures, which are what takes time.
    made = make_environment("dm_control/cartpole-swingup-v0", arguments, render="never", frame_size=None).env
    yield made
    made.close()


@pytest.fixture(scope="module")
def episodes(env: Any) -> dict[str, list[Episode]]:
    return {
        kind: [play(env, make(**shares), seed) for seed in range(NUM_EPISODES)]
        for kind, shares in ONLY.items()
    }


def test_kinds_differ_in_what_they_are_worth(episodes: dict[str, list[Episode]]) -> None:
    worth = {kind: np.mean([one.reward for one in some]) for kind, some in episodes.items()}
    assert worth["random"] + 8.0 < worth["swing"]
    assert worth["swing"] + 25.0 < worth["balance"]
    # Of the 200 that there are at most, more than 170 are possible: none is perfect.
    assert worth["balance"] < 150.0


def test_actions_and_places(episodes: dict[str, list[Episode]]) -> None:
    for one in (episode for some in episodes.values() for episode in some):
        assert one.actions.dtype == np.float32
        assert one.actions.shape == (200, 1)
        assert np.abs(one.actions).max() <= 1.0
        assert np.mean(np.abs(one.places) > 1.8) < 0.2


def test_all_kinds_are_drawn() -> None:
    kinds = []
    for seed in range(60):
        policy = make()
        policy.reset(np.random.default_rng(seed), {})
        kinds.append(policy.kind)
    assert {kind: kinds.count(kind) > 6 for kind in ONLY} == dict.fromkeys(ONLY, True)


def test_its_seed_decides(env: Any, episodes: dict[str, list[Episode]]) -> None:
    again = play(env, make(**ONLY["balance"]), seed=3)
    np.testing.assert_array_equal(again.actions, episodes["balance"][3].actions)
    assert not np.array_equal(again.actions, episodes["balance"][4].actions)


def test_bad_settings_and_worlds_are_refused() -> None:
    with pytest.raises(ValueError, match="lapse is -1"):
        CartpoleSwingConfig(lapse=-1.0)
    with pytest.raises(ValueError, match=r"random_share 0.7 and swing_share 0.6 are more than 1"):
        make(random_share=0.7, swing_share=0.6)
    policy = make()
    policy.reset(np.random.default_rng(0), {})
    with pytest.raises(ValueError, match="use dm_control/cartpole-swingup-v0"):
        policy.act(np.zeros(5), {})
