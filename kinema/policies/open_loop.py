"""Policies without observations: they need only the space of actions, a ``gymnasium.Space``."""

from collections.abc import Mapping
from typing import Any

import numpy as np


class RandomPolicy:
    """Draws every action anew from the action space."""

    is_blind = True

    def __init__(self, action_space: Any):
        self._action_space = action_space

    def reset(self, rng: np.random.Generator, info: Mapping[str, Any]) -> None:
        self._action_space.seed(int(rng.integers(2**31)))

    def act(self, observation: Any, info: Mapping[str, Any]) -> Any:
        return self._action_space.sample()


class ZeroPolicy:
    """Always gives the action nearest to nothing: zeros within the bounds, the first choice."""

    is_blind = True

    def __init__(self, action_space: Any):
        self._action = _zero(action_space)

    def reset(self, rng: np.random.Generator, info: Mapping[str, Any]) -> None:
        pass

    def act(self, observation: Any, info: Mapping[str, Any]) -> Any:
        return self._action


def _zero(space: Any) -> Any:
    from gymnasium import spaces

    if isinstance(space, spaces.Box):
        return np.clip(np.zeros(space.shape, space.dtype), space.low, space.high)
    if isinstance(space, spaces.Discrete):
        return np.int64(space.start)
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        return np.zeros(space.shape, space.dtype)
    raise ValueError(
        f"{type(space).__name__} has no zero action; it is Box, Discrete, MultiDiscrete or MultiBinary"
    )
