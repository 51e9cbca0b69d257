"""Policies that do not look."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from kinema.policies import RandomPolicy, ZeroPolicy

SPACES = [
    spaces.Box(-1.0, 1.0, (3,), np.float32),
    spaces.Box(2.0, 5.0, (2,), np.float64),
    spaces.Discrete(4, start=3),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(2),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_random_actions_follow_the_seed(space: spaces.Space[Any]) -> None:
    def actions(seed: int) -> list[Any]:
        policy = RandomPolicy(space)
        policy.reset(np.random.default_rng(seed), {})
        return [policy.act(None, {}) for _ in range(20)]

    first = actions(7)
    assert all(space.contains(action) for action in first)
    np.testing.assert_array_equal(first, actions(7))
    assert not np.array_equal(first, actions(8))


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_zero_is_an_action(space: spaces.Space[Any]) -> None:
    policy = ZeroPolicy(space)
    policy.reset(np.random.default_rng(0), {})
    action = policy.act(None, {})
    assert space.contains(action)
    expected = {0: [0, 0, 0], 1: [2, 2], 2: 3, 3: [0, 0], 4: [0, 0]}[SPACES.index(space)]
    np.testing.assert_array_equal(action, expected)


def test_a_space_without_a_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="Text has no zero action"):
        ZeroPolicy(spaces.Text(3))
