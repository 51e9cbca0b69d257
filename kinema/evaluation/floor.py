"""The physical floor: how far the real simulator goes apart from itself when its start is a little off.

What no picture tells, no model can follow. So the real simulator is started again from where it was, its
things moved by half a pixel, and driven by the same actions; state errors are told as multiples of its own.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from kinema.data.lerobot import Dataset
from kinema.evaluation.reality import Moment
from kinema.kits import Probe, Reading
from kinema.kits.pusht.probe import PushTProbe
from kinema.kits.pusht.simulator import PUSHT, advance, agent_velocity, set_bodies
from kinema.types import Episode

BLUR = 4.0
"""Half a pixel of the 64 in units of the simulator, whose picture is 512 wide."""


@runtime_checkable
class Floor(Protocol):
    """Restarts of the real simulator: ``num_restarts`` for each rollout."""

    num_restarts: int
    blur: float

    def begin(self, moments: Sequence[Moment], *, context: int) -> None:
        """Start where the rollouts were at the last of ``context`` moments, blurred; ``moments`` are those
        and, where that is one, the next."""
        ...

    def step(self, actions: np.ndarray) -> Reading:
        """Advance all by the actions of their rollouts (``R A``): their state, rollout after rollout."""
        ...

    def close(self) -> None: ...


class PushTFloor:
    """PushT in its own simulator, bodies set directly.

    Its ``reset`` takes a state too, but sets the block's place before its angle, and an angle turns the block
    about its centre of mass: the block lands elsewhere.
    """

    def __init__(
        self, probe: PushTProbe, *, num_rollouts: int, num_restarts: int, seed: int, blur: float = BLUR
    ) -> None:
        """``blur`` is how far agent and block are moved, each in a direction of its own, in the simulator's
        units. Raises ImportError or RecordError where gym-pusht is not installed."""
        from kinema.data.environment import make_environment

        self.num_restarts, self.blur = num_restarts, blur
        self._probe = probe
        self._rng = np.random.default_rng(seed)
        environments = [
            make_environment(PUSHT, {"obs_type": "state"}, render="never", picture_size=None).env
            for _ in range(num_rollouts * num_restarts)
        ]
        self._environments: list[Any] = [env.unwrapped for env in environments]
        for environment in self._environments:
            environment.reset(seed=0)

    def begin(self, moments: Sequence[Moment], *, context: int) -> None:
        agent, block = (moments[0].columns[key] for key in PushTProbe.COLUMNS)
        after, action = moments[1].columns[PushTProbe.COLUMNS[0]], moments[0].columns["action"]
        velocity = agent_velocity(self._environments[0], agent, after, action)
        for index, environment in enumerate(self._environments):
            rollout = index // self.num_restarts
            set_bodies(environment, agent[rollout], block[rollout], velocity[rollout])
        for moment in moments[: context - 1]:
            self._advance(moment.columns["action"])
        for environment in self._environments:
            angles = self._rng.uniform(0.0, 2.0 * np.pi, 2)
            for body, angle in zip((environment.agent, environment.block), angles, strict=True):
                offset = self.blur * np.array([np.cos(angle), np.sin(angle)])
                body.position = (np.array(body.position) + offset).tolist()
            environment.space.reindex_shapes_for_body(environment.agent)
            environment.space.reindex_shapes_for_body(environment.block)

    def step(self, actions: np.ndarray) -> Reading:
        self._advance(actions)
        infos = [environment._get_info() for environment in self._environments]
        columns = {
            key: np.stack([info[key.removeprefix("info.")] for info in infos]) for key in PushTProbe.COLUMNS
        }
        columns["action"] = np.repeat(actions, self.num_restarts, axis=0)
        reading = self._probe.recorded(Episode(index=0, fps=1.0, task=None, frames={}, columns=columns))
        assert reading is not None
        return reading

    def close(self) -> None:
        for environment in self._environments:
            environment.close()

    def _advance(self, actions: np.ndarray) -> None:
        for index, environment in enumerate(self._environments):
            advance(environment, actions[index // self.num_restarts])


def find_floor(
    probe: Probe | None, dataset: Dataset | None, *, num_rollouts: int, num_restarts: int, seed: int
) -> Floor | None:
    """The floor of a world whose simulator can be set to a state; None for most worlds, where the recordings
    (``dataset``, None when live) do not tell the state, and where the simulator is not installed."""
    if not isinstance(probe, PushTProbe) or not num_restarts:
        return None
    if importlib.util.find_spec("gym_pusht") is None:
        return None
    if dataset is not None and not set(PushTProbe.COLUMNS) <= set(dataset.features):
        return None
    return PushTFloor(probe, num_rollouts=num_rollouts, num_restarts=num_restarts, seed=seed)
