"""The network itself as a policy."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from kinema.data.spaces import ObservationReader
from kinema.model.goals import encode_goal
from kinema.simulation.session import SimulationBatch
from kinema.simulation.starts import History
from kinema.simulation.world import World, load
from kinema.types import Seen

CONTEXT = 4
"""Frames of the past that it is given by default."""
DRAW_STEPS = 4
"""Network calls in which proposals are drawn."""


class ActingPolicy:
    """Acts by a world's network: in real environments, and for ``kinema record``."""

    needs_frame = True

    def __init__(
        self,
        world: World,
        *,
        observation_space: Any = None,
        goal: Any = None,
        context: int = CONTEXT,
    ):
        """Make a policy for one episode after the other.

        Args:
            world: a world that was trained to act.
            observation_space: that of the environment; ``act`` needs it.
            goal: frame ``H W 3``, or several by camera, or none.
            context: frames of the past that it is given.
        """
        self.world = world
        self._history = History(world, context)
        self._reader = None if observation_space is None else ObservationReader(observation_space)
        self.set_goal(goal)

    def set_goal(self, goal: Any) -> None:
        """Set the goal; None for no goal.

        Raises:
            WorldError: the goal does not fit the world.
        """
        self._goal = None if goal is None else encode_goal(self.world, goal)

    def begin(self, rng: np.random.Generator) -> None:
        """Begin an episode."""
        self._rng = rng
        self._plan: list[np.ndarray] = []
        self._last: np.ndarray | None = None

    def choose(self, seen: Seen) -> Float[np.ndarray, " A"]:
        """Return the action for an observation, in the units of the dataset. Half of a chunk is executed
        before the next is predicted.

        Raises:
            WorldError: the world was not trained to act, or the observation does not fit it.
        """
        if self._last is None:
            self._history.begin(seen)
        else:
            self._history.add(self._last, seen)
        if not self._plan:
            session = self._history.start(seed=int(self._rng.integers(2**31)))
            chunk = session.act(self._goal)
            self._plan = list(chunk[: -(-len(chunk) // 2)])
        self._last = self._plan.pop(0)
        return self._last

    def reset(self, rng: np.random.Generator, info: Mapping[str, Any]) -> None:
        self.begin(rng)

    def act(self, observation: Any, info: Mapping[str, Any]) -> np.ndarray:
        if self._reader is None:
            raise ValueError("an acting policy needs the observation_space of the environment to act in it")
        vectors, frames = self._reader.vectors(observation), self._reader.frames(observation)
        frames |= {key: info[key] for key in self.world.cameras if key in info}
        shown = self.world.by_camera({key: frame[None] for key, frame in frames.items()} or None)
        key = self.world.config.proprio_key
        return self.choose(
            Seen(
                frames={camera: frames[0] for camera, frames in shown.items()},
                proprio=None if key is None else vectors.get(key),
            )
        )


class ActProposer:
    """Draws the next actions of each session from the network, for planners."""

    name = "act"
    num_network_calls = DRAW_STEPS

    def propose(
        self, sessions: SimulationBatch, target: Float[Tensor, "1 G"] | None, rng: np.random.Generator
    ) -> Float[np.ndarray, "B C A"]:
        seeds = rng.integers(0, 2**62, len(sessions)).tolist()
        return sessions.select(range(len(sessions)), seeds).act(target, num_denoising_steps=DRAW_STEPS)


def make(observation_space: Any, *, world: str, goal: str | None = None) -> ActingPolicy:
    """Make the policy from the arguments of ``kinema record --policy act --policy-args``: the folder of a
    world that acts, and the file of a goal frame."""
    from kinema.data.drawing import read_frame

    loaded = load(world)
    if not loaded.can_act:
        loaded.require_acting()
    frame = None if goal is None else read_frame(goal)
    return ActingPolicy(loaded, observation_space=observation_space, goal=frame)
