"""Planning in closed loop: observe, plan, execute the first actions, observe again."""

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
    """One plan and its cost."""

    actions: Float[np.ndarray, "H A"]
    """All its actions, in the units of the dataset."""
    score: float
    num_candidates: int
    num_steps: int
    """Simulated steps of all candidates together."""
    num_network_calls: int
    """Calls of the dynamics, each for a batch of candidates."""
    milliseconds: float
    """Time from the observation to the plan."""
    session: Simulation
    """The world where the plan begins."""


class Controller:
    """Plans in a world for a goal again and again, each time from the rest of the last plan."""

    def __init__(
        self,
        world: World,
        planner: Planner | ProposeAndCheck,
        goal: Goal,
        *,
        chunk: int = 5,
        context: int = 4,
    ):
        """``chunk`` actions are executed per plan; a plan is made from the last ``context`` frames.

        Raises:
            WorldError: the world lacks the heads that the goal needs.
        """
        if not 1 <= chunk <= planner.config.horizon:
            raise ValueError(f"chunk={chunk}: it must be from 1 to horizon={planner.config.horizon}")
        goal.check(world)
        self.world, self.planner, self.goal = world, planner, goal
        self.chunk, self.context = chunk, context
        self._warm_start = WarmStart()

    def begin(self) -> None:
        """Begin an episode, without the last plan."""
        self._warm_start.reset()

    def plan(self, history: History, rng: np.random.Generator) -> Plan:
        """Plan from the last observations."""
        began = time.perf_counter()
        session = history.start(seed=int(rng.integers(2**31)))
        score = WorldScore(session, self.goal)
        start = self._warm_start.start(self.planner.config.horizon, last_action(self.world, history))
        planner = self.planner.at(score) if isinstance(self.planner, ProposeAndCheck) else self.planner
        solution = planner.plan(score, start, rng)
        self._warm_start.keep(solution.actions, self.chunk)
        return Plan(
            actions=restore_actions(self.world, solution.actions),
            score=solution.score,
            num_candidates=solution.num_candidates,
            num_steps=score.num_steps,
            num_network_calls=score.num_network_calls,
            milliseconds=1e3 * (time.perf_counter() - began),
            session=session,
        )


def last_action(world: World, history: History) -> Float[np.ndarray, " A"]:
    """Return the last executed action, normalised; the middle of the range without one."""
    if not history.actions:
        return np.zeros(world.config.dynamics.action_dim)
    return np.clip(normalize_actions(world, history.actions[-1]), -1.0, 1.0)
