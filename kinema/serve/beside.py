"""The real simulator beside a simulated session, under the same actions, where one is installed."""

import importlib.util
from collections import deque
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

from kinema.evaluation.floor import PUSHT, agent_velocity, set_bodies
from kinema.kits.pusht.probe import PushTProbe
from kinema.simulation.session import MAX_REWIND, World
from kinema.types import Episode, Frames


@runtime_checkable
class Beside(Protocol):
    """A real simulator that can be put where a recorded episode was, go back, and be copied."""

    def step(self, action: np.ndarray) -> None:
        """Advance by one action."""
        ...

    def rewind(self, num_steps: int) -> None:
        """Undo the last steps, as many as the session beside it can."""
        ...

    def copy(self) -> Self:
        """Another one at the same place."""
        ...

    def look(self) -> Frames:
        """The present picture by camera, ``H W C``; it is drawn once."""
        ...

    def proprio(self) -> np.ndarray | None:
        """Proprioception ``P`` as it is recorded, where there is any."""
        ...

    def close(self) -> None: ...


class PushTBeside:
    """PushT in its own simulator."""

    def __init__(self, camera: str, size: tuple[int, int]):
        """``size`` is height and width of its pictures. Raises RecordError where gym-pusht is not
        installed."""
        from kinema.data.environment import make_environment

        self._camera, self._size = camera, size
        self._env: Any = make_environment(PUSHT, {}, render="never", picture_size=size).env.unwrapped
        self._env.reset(seed=0)
        self._past: deque[tuple[Any, ...]] = deque(maxlen=MAX_REWIND)
        self._picture: np.ndarray | None = None

    @classmethod
    def at(cls, episode: Episode, *, first: int, last: int, camera: str, size: tuple[int, int]) -> Self:
        """Where an episode was at row ``last``, driven there from row ``first``, at least one before."""
        self = cls(camera, size)
        agent, block = (np.asarray(episode.columns[key], dtype=np.float64) for key in PushTProbe.COLUMNS)
        actions = episode.columns["action"]
        before, after = slice(first, first + 1), slice(first + 1, first + 2)
        velocity = agent_velocity(self._env, agent[before], agent[after], actions[before])
        set_bodies(self._env, agent[first], block[first], velocity[0])
        for row in range(first, last):
            self._env.step(actions[row])
        return self

    def step(self, action: np.ndarray) -> None:
        self._past.append(self._state())
        self._env.step(np.asarray(action, dtype=np.float64))
        self._picture = None

    def rewind(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self._restore(self._past.pop())

    def copy(self) -> Self:
        other = type(self)(self._camera, self._size)
        other._restore(self._state())
        other._past.extend(self._past)
        return other

    def look(self) -> Frames:
        if self._picture is None:
            self._picture = np.asarray(self._env.get_obs()["pixels"])
        return {self._camera: self._picture}

    def proprio(self) -> np.ndarray:
        return np.array(self._env.agent.position, dtype=np.float32)

    def close(self) -> None:
        self._env.close()

    def _state(self) -> tuple[Any, ...]:
        agent, block = self._env.agent, self._env.block
        moving = agent.velocity, block.velocity, block.angular_velocity
        return np.array(agent.position), np.array([*block.position, block.angle]), *moving

    def _restore(self, state: tuple[Any, ...]) -> None:
        agent, block, velocity, block_velocity, angular_velocity = state
        set_bodies(self._env, agent, block, np.array(velocity))
        self._env.block.velocity, self._env.block.angular_velocity = block_velocity, angular_velocity
        self._picture = None


def has_beside(world: World) -> bool:
    """Whether a world's real simulator is known and installed."""
    return (
        world.name == "pusht"
        and len(world.cameras) == 1
        and importlib.util.find_spec("gym_pusht") is not None
    )


def find_beside(world: World, episode: Episode, *, first: int, last: int) -> Beside | None:
    """The real simulator where an episode was at row ``last``; None where there is none, or where the
    episode does not tell."""
    if not has_beside(world) or last <= first or not set(PushTProbe.COLUMNS) <= set(episode.columns):
        return None
    assert world.config.tokenizer is not None
    size = (world.config.tokenizer.height, world.config.tokenizer.width)
    return PushTBeside.at(episode, first=first, last=last, camera=world.cameras[0], size=size)
