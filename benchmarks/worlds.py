"""Environments and policies that the suite records and that are no kit's: racing, bricks, a table with moods.

``kinema record benchmarks.worlds:kinema_suite/CarRacing-v0`` finds them from the root of the repository.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

ZOOM = 50
"""Steps in which CarRacing zooms in on the car; they show nothing else again."""
ROAD = (80, 120)
"""Darkest and brightest grey of the road."""
AHEAD = slice(44, 60)
"""Rows of the frame of CarRacing, 96 high, before the car."""


class AfterZoom(gymnasium.Wrapper[Any, Any, Any, Any]):
    """CarRacing from where its camera has come to follow the car."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        """Start, and wait for the zoom to end."""
        observation, info = super().reset(seed=seed, options=options)
        for _ in range(ZOOM):
            observation, *_, info = self.env.step(np.zeros(3, np.float32))
        return observation, info


class HiddenMoods(gymnasium.Wrapper[Any, Any, Any, Any]):
    """PushT on a table whose friction changes now and then, which no frame shows: the block stops at once, or
    slides on for a while."""

    MOOD_STEPS = 10
    """Steps between two moods."""
    SLIDE = 0.7
    """Largest share of its speed that a sliding block keeps in a second of the physics."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        """Start with another mood for each seed."""
        observation, info = super().reset(seed=seed, options=options)
        self._rng, self._num_steps = np.random.default_rng(seed), 0
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Advance, with a new mood where it is time."""
        if self._num_steps % self.MOOD_STEPS == 0:
            is_sliding = self._rng.random() < 0.5
            env: Any = self.unwrapped
            env.space.damping = self._rng.uniform(0.2, self.SLIDE) if is_sliding else 0.0
        self._num_steps += 1
        return super().step(action)


def car_racing(**arguments: Any) -> gymnasium.Env[Any, Any]:
    """Make CarRacing without its first second."""
    return AfterZoom(gymnasium.make("CarRacing-v3", **{"max_episode_steps": -1, **arguments}))


def moody_pusht(**arguments: Any) -> gymnasium.Env[Any, Any]:
    """Make PushT with hidden friction."""
    import gym_pusht  # noqa: F401 (registers it)

    drawn = {"obs_type": "pixels_agent_pos", "observation_height": 64, "observation_width": 64}
    return HiddenMoods(
        gymnasium.make("gym_pusht/PushT-v0", **{"max_episode_steps": -1, **drawn, **arguments})
    )


class Driver:
    """Follows the road of CarRacing as well as it feels like: some episodes well, some hardly."""

    def reset(self, rng: np.random.Generator, info: Mapping[str, Any]) -> None:
        """Draw how well and how fast to drive."""
        self._rng = rng
        self._care, self._speed = rng.uniform(0.2, 1.2), rng.uniform(0.05, 0.35)
        self._drift = 0.0

    def act(self, observation: np.ndarray, info: Mapping[str, Any]) -> np.ndarray:
        """Return steering, gas and brake."""
        ahead = observation[AHEAD].astype(int)
        is_road = (np.ptp(ahead, axis=-1) < 12) & (ahead[..., 0] > ROAD[0]) & (ahead[..., 0] < ROAD[1])
        columns = np.flatnonzero(is_road.any(axis=0))
        aside = 0.0 if not len(columns) else (float(np.nonzero(is_road)[1].mean()) - 47.5) / 48.0
        self._drift = 0.9 * self._drift + self._rng.normal(0.0, 0.12)
        gas = max(0.0, self._speed + self._rng.normal(0.0, 0.1))
        brake = 0.4 if self._rng.random() < 0.03 else 0.0
        steering = np.clip(self._care * aside + self._drift, -1.0, 1.0)
        return np.array([steering, min(gas, 1.0), brake], dtype=np.float32)


class Batter:
    """Plays Breakout: follows the ball, with lapses that differ from episode to episode."""

    STAY, FIRE, RIGHT, LEFT = range(4)
    FIELD, PADDLE = slice(93, 189), slice(189, 194)
    """Rows of the frame, 210 high, between bricks and paddle, and of the paddle."""

    def reset(self, rng: np.random.Generator, info: Mapping[str, Any]) -> None:
        """Draw how often to lapse."""
        self._rng, self._lapse = rng, rng.uniform(0.1, 0.6)

    def act(self, observation: np.ndarray, info: Mapping[str, Any]) -> int:
        """Return the action: a random one in a lapse, else towards the ball."""
        if self._rng.random() < self._lapse:
            return int(self._rng.integers(4))
        ball = np.nonzero(observation[self.FIELD, 8:152].any(axis=-1))[1]
        paddle = np.nonzero(observation[self.PADDLE, 8:152].any(axis=-1))[1]
        if not len(ball) or not len(paddle):
            return self.FIRE
        aside = ball.mean() - paddle.mean()
        return self.STAY if abs(aside) < 4 else self.RIGHT if aside > 0 else self.LEFT


for _id, _entry in (("kinema_suite/CarRacing-v0", car_racing), ("kinema_suite/PushTMoods-v0", moody_pusht)):
    if _id not in gymnasium.registry:
        gymnasium.register(_id, entry_point=_entry)
