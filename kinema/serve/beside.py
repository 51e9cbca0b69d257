"""The real simulator beside a simulated session, under the same actions, where one is installed."""

from collections import deque
from typing import Self

import numpy as np

from kinema.kits import Kit, Simulator
from kinema.simulation.session import MAX_REWIND
from kinema.simulation.world import World
from kinema.types import Episode, Frames, Seen


class Beside:
    """A real simulator that can be put where a recorded episode was, go back, and be copied."""

    def __init__(self, world: World, simulator: Simulator):
        """Raises RecordError where the simulator cannot be made, or does not show what the world needs."""
        # Worlds without a kit need no simulator installed.
        from kinema.simulation.real_env import Arena

        self._world, self._simulator = world, simulator
        self._arena = Arena(world, simulator.env)
        self._arena.reset(seed=0)
        self._twin = simulator.wrap(self._arena.env)
        self._past: deque[np.ndarray] = deque(maxlen=MAX_REWIND)
        self._seen: Seen | None = None

    @classmethod
    def at(cls, world: World, simulator: Simulator, episode: Episode, *, first: int, last: int) -> Self:
        """Make one where an episode was at row ``last``, driven there from row ``first``, at least one
        before."""
        self = cls(world, simulator)
        self._twin.set_state(self._twin.recorded_states(episode.columns)[first])
        for row in range(first, last):
            self._twin.advance(episode.columns["action"][row])
        return self

    def step(self, action: np.ndarray) -> None:
        """Advance by one action."""
        self._past.append(self._twin.get_state())
        self._twin.advance(np.asarray(action, dtype=np.float64))
        self._seen = None

    def rewind(self, num_steps: int) -> None:
        """Undo the last steps, as many as the session beside it can."""
        for _ in range(num_steps):
            self._twin.set_state(self._past.pop())
        self._seen = None

    def copy(self) -> Self:
        """Make another one at the same place."""
        other = type(self)(self._world, self._simulator)
        other._twin.set_state(self._twin.get_state())
        other._past.extend(self._past)
        return other

    def look(self) -> Frames:
        """Return the present frame by camera, ``H W C``; it is drawn once."""
        return self._see().frames

    def proprio(self) -> np.ndarray | None:
        """Return the proprioception ``P`` as it is recorded, where there is any."""
        return self._see().proprio

    def close(self) -> None:
        """Close the simulator."""
        self._arena.close()

    def _see(self) -> Seen:
        if self._seen is None:
            self._seen = self._arena.see(self._twin.observation())
        return self._seen


def has_beside(kit: Kit | None) -> bool:
    """Tell whether the real simulator of a world's kit is installed."""
    return kit is not None and kit.simulator is not None and kit.simulator.is_installed


def find_beside(world: World, kit: Kit | None, episode: Episode, *, first: int, last: int) -> Beside | None:
    """Make the real simulator where an episode was at row ``last``; None where there is none, or where the
    episode does not hold its state."""
    simulator = None if kit is None else kit.simulator
    if simulator is None or not simulator.is_installed or last <= first:
        return None
    if not simulator.has_states(episode.columns):
        return None
    return Beside.at(world, simulator, episode, first=first, last=last)
