"""Planning in closed loop: look, plan, do the first actions, look again."""

import dataclasses
import time

import numpy as np
from jaxtyping import Float

from kinema.planners.propose import ProposeAndCheck
from kinema.planners.scores import Goal, WorldScore, normalize_actions, restore_actions
from kinema.planners.search import Planner, WarmStart
from kinema.simulation.session import Simulation
from kinema.simulation.starts import History
from kinema.simulation.world import World


@dataclasses.dataclass(frozen=True)
class Plan:
    """One plan, and what it cost."""

    actions: Float[np.ndarray, "H A"]
    """All its actions, in the units of the dataset."""
    score: float
    num_candidates: int
    num_steps: int
    """Steps that were simulated, those of all candidates together."""
    num_network_calls: int
    """Calls of the dynamics, each for a batch of candidates."""
    milliseconds: float
    """From what was seen to the plan."""
    session: Simulation
    """The world where the plan begins."""


class Controller:
    """Plans in a world for a goal, again and again, each time from where the last plan left off."""

    def __init__(
        self,
        world: World,
        planner: Planner | ProposeAndCheck,
        goal: Goal,
        *,
        chunk: int = 5,
        context: int = 4,
    ):
        """``chunk`` actions of a plan are done before the next plan, which is made from the last ``context``
        frames.

        Raises:
            WorldError: the world has not the heads that the goal needs.
        """
        if not 1 <= chunk <= planner.config.horizon:
            raise ValueError(f"chunk={chunk}: it must be from 1 to horizon={planner.config.horizon}")
        goal.check(world)
        self.world, self.planner, self.goal = world, planner, goal
        self.chunk, self.context = chunk, context
        self._warm_start = WarmStart()

    def begin(self) -> None:
        """Begin an episode: forget the last plan."""
        self._warm_start.forget()

    def plan(self, history: History, rng: np.random.Generator) -> Plan:
        """A plan from what was seen."""
        began = time.perf_counter()
        session = history.start(seed=int(rng.integers(2**31)))
        score = WorldScore(session, self.goal)
        start = self._warm_start.guess(self.planner.config.horizon, last_action(self.world, history))
        planner = self.planner.at(score) if isinstance(self.planner, ProposeAndCheck) else self.planner
        found = planner.plan(score, start, rng)
        self._warm_start.keep(found.actions, self.chunk)
        return Plan(
            actions=restore_actions(self.world, found.actions),
            score=found.score,
            num_candidates=found.num_candidates,
            num_steps=score.num_steps,
            num_network_calls=score.num_network_calls,
            milliseconds=1e3 * (time.perf_counter() - began),
            session=session,
        )


def last_action(world: World, history: History) -> Float[np.ndarray, " A"]:
    """The action that was done last, normalised; the middle of the range where none was."""
    if not history.actions:
        return np.zeros(world.config.dynamics.action_dim)
    return np.clip(normalize_actions(world, history.actions[-1]), -1.0, 1.0)
