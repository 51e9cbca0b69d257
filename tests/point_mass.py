"""A point that its actions move: a real environment, recordings of it, and a recipe that learns it in
seconds."""

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from kinema.data import Dataset, DatasetWriter
from kinema.recipes import RECIPES, Phase, Recipe, Schedule

SPEED = 0.15
WANTED = np.array([0.6, -0.4], np.float32)
ENVIRONMENT = "tests.point_mass:kinema_tests/PointMass-v0"


class PointMass(gymnasium.Env[np.ndarray, np.ndarray]):
    """Observes where it is, in [-1, 1]; the reward is 1 at a place, and falls with the distance from it."""

    metadata = {"render_fps": 10}  # noqa: RUF012 (as in gymnasium.Env)
    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-0.9, 0.9, 2).astype(np.float32)
        return self.place, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.place = move(self.place, action)
        return self.place, reward_at(self.place), False, False, {}


def move(place: np.ndarray, action: np.ndarray) -> np.ndarray:
    return np.clip(place + SPEED * np.clip(action, -1.0, 1.0), -1.0, 1.0).astype(np.float32)


def reward_at(place: np.ndarray) -> float:
    return float(1.0 - np.linalg.norm(place - WANTED))


def record_play(root: Path, *, num_episodes: int, length: int, seed: int = 0) -> Path:
    """Episodes of a point that goes here and there."""
    rng = np.random.default_rng(seed)
    with DatasetWriter(root, fps=10) as writer:
        for _ in range(num_episodes):
            place = rng.uniform(-0.9, 0.9, 2).astype(np.float32)
            actions = rng.uniform(-1.0, 1.0, (length, 2)).astype(np.float32)
            places = [place]
            for action in actions:
                places.append(move(places[-1], action))
            writer.add(
                frames={},
                columns={
                    "observation.state": np.stack(places[:-1]),
                    "action": actions,
                    "next.reward": np.array([reward_at(p) for p in places[1:]], np.float32),
                    "next.terminated": np.zeros(length, dtype=bool),
                },
            )
    return root


def recipe(dataset: Dataset) -> Recipe:
    """Small, and as long as it takes."""
    tiny = RECIPES["tiny"](dataset)
    schedule = Schedule(
        phases=(Phase(updates=100, batch=48, length=7),), learning_rate=4e-3, warmup=20, ema=0.98
    )
    dynamics = dataclasses.replace(
        tiny.dynamics, window=4, width=32, num_heads=1, num_octaves=3, num_directions=16
    )
    return dataclasses.replace(tiny, dynamics=dynamics, dynamics_schedule=schedule)


gymnasium.register(id="kinema_tests/PointMass-v0", entry_point=PointMass, max_episode_steps=50)
