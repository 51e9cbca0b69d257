"""Hold an environment to Gymnasium's interface: what it returns is checked where it is returned."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import Space, spaces

from kinema.data.spaces import Leaf, RecordError, leaves


class CheckedEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """The same environment; a reset or a step that breaks the interface raises RecordError.

    The error says the step, what was expected and what came. Unambiguous values are taken: a reward or a
    flag may be an array of one number.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]):
        super().__init__(env)
        for name in ("observation_space", "action_space"):
            if not isinstance(getattr(env, name, None), Space):
                raise RecordError(f"the environment's {name} is not a space of gymnasium.spaces")
        self._leaves = list(leaves(env.observation_space))
        self._num_steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        self._num_steps = 0
        with blamed("reset(seed=..., options=...) of the environment"):
            result: Any = self.env.reset(seed=seed, options=options)
        if not isinstance(result, tuple) or len(result) != 2:
            raise RecordError(
                f"reset() of the environment returned {describe_value(result)}; expected two values: "
                "observation, info"
            )
        observation, info = result
        self._check("reset()", observation, info)
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        where = f"step {self._num_steps}: step()"
        with blamed(f"{where} of the environment"):
            result: Any = self.env.step(action)
        if not isinstance(result, tuple) or len(result) != 5:
            raise RecordError(
                f"{where} of the environment returned {describe_value(result)}; expected five values: "
                "observation, reward, terminated, truncated, info"
            )
        observation, reward, terminated, truncated, info = result
        self._check(where, observation, info)
        self._num_steps += 1
        return (
            observation,
            to_number(reward, f"{where} of the environment returned as reward"),
            to_flag(terminated, f"{where} of the environment returned as terminated"),
            to_flag(truncated, f"{where} of the environment returned as truncated"),
            info,
        )

    def render(self) -> Any:
        with blamed("render() of the environment"):
            return self.env.render()

    def _check(self, where: str, observation: Any, info: Any) -> None:
        if not isinstance(info, Mapping):
            raise RecordError(
                f"{where} of the environment returned as info {describe_value(info)}; expected a dict"
            )
        for leaf in self._leaves:
            _check_entry(leaf, observation, where)


@contextlib.contextmanager
def blamed(where: str) -> Iterator[None]:
    """Turn whatever the code of a user raises inside into a RecordError that says where."""
    try:
        yield
    except RecordError:
        raise
    except Exception as error:
        raise RecordError(f"{where} raised {type(error).__name__}: {error}") from error


def to_number(value: Any, what: str) -> float:
    """A single number as a float, also from an array of one. Raises RecordError."""
    array = _to_array(value)
    if array is None or array.dtype.kind not in "biuf" or array.size != 1:
        raise RecordError(f"{what} {describe_value(value)}; expected one number")
    return float(array.reshape(-1)[0])


def to_flag(value: Any, what: str) -> bool:
    """A single flag as a bool, also from 0, 1, or an array of one. Raises RecordError."""
    array = _to_array(value)
    is_flag = array is not None and array.dtype.kind in "biuf" and array.size == 1 and array.item() in (0, 1)
    if array is None or not is_flag:
        raise RecordError(f"{what} {describe_value(value)}; expected True or False")
    return bool(array.item())


def describe_value(value: Any) -> str:
    """Name a value in an error: its type, and its shape or length instead of long contents."""
    if isinstance(value, np.ndarray):
        text = f" {value.tolist()}" if value.size <= 4 and value.dtype.kind in "biuf" else ""
        return f"an array of {value.dtype} and shape {value.shape}{text}"
    if isinstance(value, tuple | list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return f"{type(value).__name__} {text}" if len(text) < 60 and value is not None else text[:60]


def _to_array(value: Any) -> np.ndarray | None:
    try:
        return np.asarray(value)
    except (TypeError, ValueError):  # Nested lists of several lengths.
        return None


def _check_entry(leaf: Leaf, observation: Any, where: str) -> None:
    """Check one entry of an observation against its space. Raises RecordError."""
    name = f"the observation's {leaf.name!r}" if leaf.path else "the observation"
    try:
        value = leaf.of(observation)
    except (KeyError, IndexError, TypeError) as error:
        raise RecordError(
            f"{where} of the environment: {name}, which its observation_space has, is missing in "
            f"{describe_value(observation)}"
        ) from error
    space, expected = leaf.space, ""
    if isinstance(space, spaces.Text):
        expected = "" if isinstance(value, str) else "a text"
    elif isinstance(space, spaces.Box | spaces.MultiBinary | spaces.MultiDiscrete):
        array = _to_array(value)
        if array is None or array.shape != space.shape or array.dtype.kind not in "biuf":
            expected = f"numbers of shape {space.shape}"
        elif not isinstance(space, spaces.Box) and not space.contains(array.astype(space.dtype)):
            expected = f"a value of {space}"
    elif isinstance(space, spaces.Discrete) and not space.contains(_plain_integer(value)):
        expected = f"a whole number from {space.start} to {space.start + space.n - 1}"
    if expected:
        raise RecordError(
            f"{where} of the environment: {name} is {describe_value(value)}; by its observation_space "
            f"expected {expected}"
        )


def _plain_integer(value: Any) -> Any:
    """A whole number in an array of one as that number; anything else as it is."""
    array = _to_array(value)
    is_integer = array is not None and array.dtype.kind in "iu" and array.size == 1
    return array.item() if array is not None and is_integer else value
