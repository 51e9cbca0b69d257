"""Make the environment and the policy that a recording names."""

import copy
import dataclasses
import importlib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, Literal, Protocol, runtime_checkable

import gymnasium
import numpy as np

from kinema.data import mujoco
from kinema.data.checked_env import CheckedEnv
from kinema.data.spaces import ObservationReader, RecordError
from kinema.kits import Simulator, Twin, kit_of_environment

Render = Literal["auto", "always", "never"]

POLICIES = {entry.name: entry.value for entry in sorted(entry_points(group="kinema.policies"))}
"""Names of the policies that are installed, kinema's and those of other packages, as MODULE:CALLABLE."""


@runtime_checkable
class Policy(Protocol):
    """Chooses the actions.

    It may also have ``ends_episodes = True``: then the environment's own limit of steps is lifted, because
    the policy says itself when an episode is over. And ``needs_frame = True``: then ``info`` has the
    frame, under ``RENDER_KEY``, where the environment draws it apart from its observation. And
    ``is_blind = True``: it looks at no frame, so that none has to be drawn for it.
    """

    def reset(self, rng: np.random.Generator, info: Mapping[str, Any]) -> None:
        """Begin an episode; all that is random in it comes from ``rng``."""
        ...

    def act(self, observation: Any, info: Mapping[str, Any]) -> Any:
        """The action for this observation, or None to end the episode here (it is then truncated)."""
        ...


@dataclasses.dataclass(frozen=True)
class Environment:
    """An environment without the limit of steps that it is registered with."""

    env: gymnasium.Env[Any, Any]
    is_rendered: bool
    """Its rendered frames are to be recorded."""
    max_steps: int | None
    """Limit of steps that it is registered with."""


def make_environment(
    name: str, arguments: Mapping[str, Any], *, render: Render, frame_size: tuple[int, int] | None
) -> Environment:
    """Make a registered environment; ``name`` is ID or MODULE:ID. Raises RecordError."""
    mujoco.choose_backend()
    env_id, max_steps = _find(name)
    kit = kit_of_environment(env_id)
    environments = None if kit is None else kit.environments
    reduced_size = frame_size
    if environments is not None:
        arguments, reduced_size = environments.arguments(arguments, frame_size)

    def make(**more: str) -> gymnasium.Env[Any, Any]:
        try:
            env = gymnasium.make(
                env_id, max_episode_steps=-1, disable_env_checker=True, **{**arguments, **more}
            )
        except Exception as error:
            raise RecordError(
                f"environment {name!r} cannot be made with --env-args {json.dumps(dict(arguments))}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if environments is not None:
            environments.prepare(env)
        return env

    env = make()
    reader = ObservationReader(env.observation_space)
    if render == "never" or (render == "auto" and reader.cameras):
        is_rendered = False
    elif env.render_mode == "rgb_array":
        is_rendered = True
    elif "rgb_array" in (env.metadata.get("render_modes") or ()):
        env.close()
        env, is_rendered = make(render_mode="rgb_array"), True
    elif render == "always":
        raise RecordError(
            f"--render always: {name!r} cannot draw frames: its render modes are "
            f"{env.metadata.get('render_modes')}, without rgb_array"
        )
    else:
        is_rendered = False
    if not (is_rendered or reader.cameras or reader.names):
        raise RecordError(f"{name!r} has nothing to record: no frame and no number in its observation")
    if is_rendered:
        env = mujoco.draw_plainly(env, reduced_size)
    return Environment(env=CheckedEnv(env), is_rendered=is_rendered, max_steps=max_steps)


def make_twin(simulator: Simulator) -> tuple[gymnasium.Env[Any, Any], Twin]:
    """Make an environment of a kit that draws nothing, and its twin, which sets it to states.

    Raises:
        RecordError: it is not installed.
    """
    made = make_environment(simulator.env, simulator.blind_arguments, render="never", frame_size=None)
    made.env.reset(seed=0)
    return made.env, simulator.wrap(made.env)


def needs_frame(policy: Policy) -> bool:
    """Tell whether a policy looks at frames that are no part of the observation."""
    # Its name until 0.1.0 was needs_picture.
    return bool(getattr(policy, "needs_frame", False) or getattr(policy, "needs_picture", False))


def parse_policy(text: str) -> tuple[str, float]:
    """Split a policy's name from its share of random actions: ``cloned@0.3`` is ``cloned`` and 0.3.

    Raises RecordError, where there can be no policy of this name, too.
    """
    name, at, share = text.partition("@")
    try:
        random_share = float(share) if at else 0.0
    except ValueError:
        random_share = -1.0
    if not 0.0 <= random_share <= 1.0:
        raise RecordError(f"policy {text!r}: behind the @ stands a share of random actions, from 0 to 1")
    if name not in POLICIES and ":" not in name:
        raise RecordError(
            f"--policy: no policy {name!r}; there are {', '.join(POLICIES)}, or MODULE:CALLABLE"
        )
    return name, random_share


class Mixed:
    """Another policy, with a share of its actions replaced by random ones."""

    def __init__(self, policy: Policy, action_space: Any, share: float):
        # Spaces carry a generator, which must not be shared between two that draw from it.
        self._policy, self._space, self._share = policy, copy.deepcopy(action_space), share
        self.needs_frame = needs_frame(policy)
        self.ends_episodes = bool(getattr(policy, "ends_episodes", False))
        self.is_blind = bool(getattr(policy, "is_blind", False))

    def reset(self, rng: np.random.Generator, info: Mapping[str, Any]) -> None:
        self._rng = rng
        self._space.seed(int(rng.integers(2**31)))
        self._policy.reset(rng, info)

    def act(self, observation: Any, info: Mapping[str, Any]) -> Any:
        action = self._policy.act(observation, info)
        if action is None:
            return None
        return self._space.sample() if self._rng.random() < self._share else action


def find_policy(name: str) -> tuple[Callable[..., Any], Mapping[str, inspect.Parameter]]:
    """Import what makes a policy of ``POLICIES`` or MODULE:CALLABLE; returns it and its parameters.

    Raises:
        RecordError: there is no such module or callable.
    """
    module_name, _, attribute = POLICIES.get(name, name).partition(":")
    factory = getattr(_import(module_name, f"--policy {name!r}"), attribute, None)
    if not callable(factory):
        raise RecordError(f"--policy {name!r}: module {module_name!r} has no callable {attribute!r}")
    return factory, inspect.signature(factory).parameters


def make_policy(text: str, arguments: Mapping[str, Any], env: gymnasium.Env[Any, Any]) -> Policy:
    """Make a policy of ``POLICIES`` or MODULE:CALLABLE; a number behind an @ mixes in random actions.

    The callable gets the arguments, and the spaces of the environment if it has parameters of their names.
    Raises RecordError.
    """
    name, share = parse_policy(text)
    factory, parameters = find_policy(name)
    spaces = {key: getattr(env, key) for key in ("action_space", "observation_space") if key in parameters}
    try:
        policy: Any = factory(**{**spaces, **arguments})
    except Exception as error:
        raise RecordError(
            f"--policy {name!r} cannot be made with --policy-args {json.dumps(dict(arguments))}: {error}"
        ) from error
    if not isinstance(policy, Policy):
        raise RecordError(
            f"--policy {name!r} made a {type(policy).__name__}, which is no policy: that has "
            "reset(rng, info) and act(observation, info)"
        )
    return Mixed(policy, env.action_space, share) if share else policy


def _find(name: str) -> tuple[str, int | None]:
    """Find the registered id and its own limit of steps; imports the module that registers it."""
    module, _, env_id = name.rpartition(":")
    namespace = env_id.partition("/")[0] if "/" in env_id else ""
    kit = kit_of_environment(env_id)
    environments = None if kit is None else kit.environments
    registrar = namespace if environments is None else environments.module
    if module:
        _import(module, f"environment {name!r}")
    elif (package := registrar.partition(".")[0]).isidentifier() and importlib.util.find_spec(package):
        _import(registrar, f"environment {name!r}")
    try:
        return env_id, gymnasium.spec(env_id).max_episode_steps
    except gymnasium.error.Error as error:
        if environments is not None:
            hint = f"its package is missing: pip install '{environments.requirement}'"
        else:
            hint = "install the package that brings it, or name the module that registers it: MODULE:ID"
        raise RecordError(f"no environment {name!r} ({error}); {hint}") from error


def _import(module: str, purpose: str) -> Any:
    if os.getcwd() not in sys.path:  # An installed command does not look into the current folder by itself.
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(module)
    except Exception as error:
        # PyOpenGL raises AttributeError where the library that MUJOCO_GL asks for is missing.
        advice = mujoco.missing_backend() if isinstance(error, AttributeError) else None
        reason = advice or (
            str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        )
        raise RecordError(f"{purpose}: module {module!r} cannot be imported ({reason})") from error
