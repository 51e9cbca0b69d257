"""Those who are sent to a goal: each is told a task, and gives the next actions for what was seen."""

import dataclasses
import time
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from kinema.evaluation.tasks import Judge, SimulatorScore, Task, TaskEnvironment
from kinema.model.goals import encode_goal
from kinema.planners import Controller, Goal, Planner, ProposeAndCheck
from kinema.planners.controller import last_action
from kinema.planners.scores import Measure, restore_actions
from kinema.planners.search import WarmStart
from kinema.policies.cloned import ClonedPolicy
from kinema.simulation.session import ACT_STEPS
from kinema.simulation.starts import History
from kinema.simulation.world import World


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a plan cost."""

    milliseconds: float
    num_network_calls: int


@runtime_checkable
class Agent(Protocol):
    """Acts for a goal."""

    name: str

    def begin(self, task: Task, rng: np.random.Generator) -> None:
        """Begin an episode; all that is random in it comes from ``rng``."""
        ...

    def act(self, history: History, env: TaskEnvironment) -> tuple[Float[np.ndarray, "C A"], Cost | None]:
        """The next actions, in the units of the dataset, and what the plan cost, where one was made."""
        ...


class RandomAgent:
    """Draws every action anew, from the range of the recorded ones."""

    name = "random"

    def __init__(self, world: World):
        self._world = world

    def begin(self, task: Task, rng: np.random.Generator) -> None:
        self._rng = rng

    def act(self, history: History, env: TaskEnvironment) -> tuple[Float[np.ndarray, "C A"], Cost | None]:
        shape = (1, self._world.config.dynamics.action_dim)
        return restore_actions(self._world, self._rng.uniform(-1.0, 1.0, shape)), None


class CloneAgent:
    """Behaviour cloning, told the goal picture."""

    name = "cloned"

    def __init__(self, policy: ClonedPolicy):
        self._policy = policy

    def begin(self, task: Task, rng: np.random.Generator) -> None:
        self._policy.set_goal(task.goal_frame)
        self._policy.begin(rng)

    def act(self, history: History, env: TaskEnvironment) -> tuple[Float[np.ndarray, "C A"], Cost | None]:
        return self._policy.choose(history.seen[-1])[None], None


class ActAgent:
    """The network itself, told the goal picture."""

    name = "act"

    def __init__(self, world: World, *, chunk: int):
        """``chunk``: actions that are done before it looks again, where it finds as many.

        Raises:
            WorldError: the world was not taught to act.
        """
        if not world.can_act:
            world.require_acting()
        self._world, self._chunk = world, chunk

    def begin(self, task: Task, rng: np.random.Generator) -> None:
        self._goal, self._rng = encode_goal(self._world, task.goal_frame), rng

    def act(self, history: History, env: TaskEnvironment) -> tuple[Float[np.ndarray, "C A"], Cost | None]:
        began = time.perf_counter()
        session = history.start(seed=int(self._rng.integers(2**31)))
        actions = session.act(self._goal)[: self._chunk]
        return actions, Cost(1e3 * (time.perf_counter() - began), ACT_STEPS)


class PlannerAgent:
    """A planner in the world, told the goal picture."""

    def __init__(
        self,
        name: str,
        world: World,
        planner: Planner | ProposeAndCheck,
        *,
        measure: Measure,
        chunk: int,
        context: int,
    ):
        """Raises WorldError where the world has no heads and steps are the measure."""
        if measure == "steps":
            world.require_heads()
        self.name = name
        self._world, self._planner = world, planner
        self._measure: Measure = measure
        self._chunk, self._context = chunk, context

    def begin(self, task: Task, rng: np.random.Generator) -> None:
        goal = Goal(target=encode_goal(self._world, task.goal_frame), measure=self._measure)
        self._controller = Controller(
            self._world, self._planner, goal, chunk=self._chunk, context=self._context
        )
        self._rng = rng

    def act(self, history: History, env: TaskEnvironment) -> tuple[Float[np.ndarray, "C A"], Cost | None]:
        plan = self._controller.plan(history, self._rng)
        return plan.actions[: self._chunk], Cost(plan.milliseconds, plan.num_network_calls)


class SimulatorAgent:
    """The same planner with the real simulator as its model, told the goal's state: what planning could reach
    with a world and a measure of distance without error."""

    def __init__(
        self, name: str, world: World, judge: Judge, planner: Planner, *, chunk: int, end_share: float
    ):
        self.name = name
        self._world, self._planner, self._chunk = world, planner, chunk
        bounds = np.array([[-1.0], [1.0]]) * np.ones(world.config.dynamics.action_dim)
        low, high = restore_actions(world, bounds)
        self._score = SimulatorScore(judge, low, high, end_share=end_share)
        self._warm_start = WarmStart()

    def begin(self, task: Task, rng: np.random.Generator) -> None:
        self._task, self._rng = task, rng
        self._warm_start.forget()

    def act(self, history: History, env: TaskEnvironment) -> tuple[Float[np.ndarray, "C A"], Cost | None]:
        began = time.perf_counter()
        self._score.set(env.state, self._task.goal)
        start = self._warm_start.guess(self._planner.config.horizon, last_action(self._world, history))
        found = self._planner.plan(self._score, start, self._rng)
        self._warm_start.keep(found.actions, self._chunk)
        actions = restore_actions(self._world, found.actions)
        return actions[: self._chunk], Cost(1e3 * (time.perf_counter() - began), 0)
