"""Environments that break Gymnasium's interface are refused by name; what is unambiguous is taken."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kinema.data.checked_env import CheckedEnv
from kinema.data.spaces import RecordError


class Scripted(gym.Env[Any, Any]):
    """Returns whatever it is given."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012
    action_space = spaces.Discrete(2)

    def __init__(self, step: Any = None, reset: Any = None, space: spaces.Space[Any] | None = None):
        self.observation_space = space or spaces.Box(-1.0, 1.0, (3,), np.float32)
        self._step, self._reset = step, reset

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return (np.zeros(3, np.float32), {}) if self._reset is None else self._reset

    def step(self, action: Any) -> Any:
        if isinstance(self._step, Exception):
            raise self._step
        return self._step


OBSERVATION = np.zeros(3, np.float32)


@pytest.mark.parametrize(
    "number", [2.5, np.float64(2.5), np.array(2.5), np.array([2.5]), [2.5], np.float16(2.5)]
)
@pytest.mark.parametrize("flag", [True, np.True_, np.array(True), np.array([True]), 1, np.int64(1)])
def test_what_is_unambiguous_is_taken(number: Any, flag: Any) -> None:
    env = CheckedEnv(Scripted(([0.0, 1.0, 2.0], number, flag, False, {})))
    _, reward, terminated, truncated, _ = env.step(0)
    assert (reward, terminated, truncated) == (2.5, True, False)
    assert (type(reward), type(terminated)) == (float, bool)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ((OBSERVATION, 1.0, False, {}), "a tuple of 4; expected five values: observation, reward"),
        (None, "returned None; expected five values"),
        ((OBSERVATION, None, False, False, {}), "as reward None; expected one number"),
        (
            (OBSERVATION, np.ones(2), False, False, {}),
            r"as reward an array of float64 and shape \(2,\) .*one num",
        ),
        ((OBSERVATION, "good", False, False, {}), "as reward str 'good'; expected one number"),
        ((OBSERVATION, 0.0, None, False, {}), "as terminated None; expected True or False"),
        ((OBSERVATION, 0.0, False, np.array([True, False]), {}), r"as truncated an array.*True or False"),
        ((OBSERVATION, 0.0, 0.5, False, {}), r"as terminated float 0\.5; expected True or False"),
        ((OBSERVATION, 0.0, False, False, None), "as info None; expected a dict"),
        (
            (np.zeros(4), 0.0, False, False, {}),
            r"the observation is an array.*\(4,\).*expected numbers of shape",
        ),
        (([[1.0], [2.0, 3.0]], 0.0, False, False, {}), "the observation is a list of 2"),
        ((None, 0.0, False, False, {}), "the observation is None"),
        (RuntimeError("arm in collision"), "raised RuntimeError: arm in collision"),
    ],
)
def test_a_step_that_breaks_the_interface_says_what_was_expected_and_got(result: Any, message: str) -> None:
    env = CheckedEnv(Scripted(result))
    env.reset(seed=0)
    with pytest.raises(RecordError, match=f"^step 0: step.. of the environment.*{message}"):
        env.step(0)


def test_the_step_is_counted_from_the_reset() -> None:
    scripted = Scripted((OBSERVATION, 0.0, False, False, {}))
    env = CheckedEnv(scripted)
    for _ in range(2):
        env.reset(seed=0)
        scripted._step = (OBSERVATION, 0.0, False, False, {})
        env.step(0)
        env.step(0)
        scripted._step = None
        with pytest.raises(RecordError, match=r"^step 2: "):
            env.step(0)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (
            OBSERVATION,
            r"returned an array of float32 and shape \(3,\).*expected two values: observation, info",
        ),
        ((OBSERVATION, None), "as info None; expected a dict"),
        ((np.zeros(2), {}), "the observation is an array"),
    ],
)
def test_a_reset_that_breaks_the_interface(result: Any, message: str) -> None:
    with pytest.raises(RecordError, match=f"reset.. of the environment.*{message}"):
        CheckedEnv(Scripted(reset=result)).reset(seed=0)


def test_a_reset_without_a_seed() -> None:
    class Unseeded(Scripted):
        def reset(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            return OBSERVATION, {}

    with pytest.raises(RecordError, match=r"reset\(seed=.*raised TypeError: .*unexpected keyword argument"):
        CheckedEnv(Unseeded()).reset(seed=0)


NESTED = spaces.Dict(
    {
        "arm/left": spaces.Tuple((spaces.Box(-1.0, 1.0, (2,), np.float64), spaces.Discrete(3, start=-1))),
        "modes": spaces.MultiDiscrete([2, 3]),
        "say": spaces.Text(9),
    }
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arm/left": None}, r"'arm\.left\.0', which its observation_space has, is missing in a dict"),
        ({"arm/left": (np.zeros(2), 2)}, r"'arm\.left\.1' is int 2.*a whole number from -1 to 1"),
        ({"arm/left": (np.zeros(2), 0.5)}, r"'arm\.left\.1' is float 0\.5.*whole number"),
        ({"modes": [1, 3]}, r"'modes' is a list of 2.*a value of MultiDiscrete"),
        ({"say": 3}, r"'say' is int 3.*a text"),
    ],
)
def test_nested_observations_name_the_entry(change: dict[str, Any], message: str) -> None:
    good = {"arm/left": (np.zeros(2), np.array([-1])), "modes": [1, 2], "say": "go"}
    env = CheckedEnv(Scripted(reset=(good, {}), space=NESTED))
    env.reset(seed=0)
    with pytest.raises(RecordError, match=message):
        CheckedEnv(Scripted(reset=(good | change, {}), space=NESTED)).reset(seed=0)


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    hnp.arrays(
        st.sampled_from([np.float32, np.int8, np.bool_, "U2"]), hnp.array_shapes(min_dims=0, max_side=3)
    ),
)


@settings(max_examples=300, deadline=None)
@given(result=st.one_of(anything, st.tuples(anything, anything, anything, anything, anything)))
def test_any_step_is_taken_or_refused(result: Any) -> None:
    """Nothing but RecordError comes out, and what passes is what Gymnasium promises."""
    env = CheckedEnv(Scripted(result))
    env.reset(seed=0)
    try:
        observation, reward, terminated, truncated, info = env.step(0)
    except RecordError:
        return
    assert np.shape(observation) == (3,)
    assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
    assert isinstance(info, dict)
