"""Agents that go to a goal: each begins a task, and then gives the next actions for the frames so far."""

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

Actions = Float[np.ndarray, "C A"]


@runtime_checkable
class Agent(Protocol):
    """Acts for a goal."""

    name: str
    num_network_calls: int | None
    """Network calls of the last plan; None for an agent that does not plan, whose time is not reported."""

    def begin(self, task: Task, rng: np.random.Generator) -> None:
        """Begin an episode, of which all randomness comes from ``rng``."""
        ...

    def act(self, history: History, env: TaskEnvironment) -> Actions:
        """Return the next actions, in the units of the dataset."""
        ...


class RandomAgent:
    """Draws every action anew, from the range of the recorded ones."""

    name = "random"
    num_network_calls: int | None = None

    def __init__(self, world: World):
        self._world = world

    def begin(self, task: Task, rng: np.random.Generator) -> None:
        self._rng = rng

    def act(self, history: History, env: TaskEnvironment) -> Actions:
        shape = (1, self._world.config.dynamics.action_dim)
        return restore_actions(self._world, self._rng.uniform(-1.0, 1.0, shape))


class CloneAgent:
    """Behaviour cloning for a goal frame."""

    name = "cloned"
    num_network_calls: int | None = None

    def __init__(self, policy: ClonedPolicy):
        self._policy = policy

    def begin(self, task: Task, rng: np.random.Generator) -> None:
        self._policy.set_goal(task.goal_frame)
        self._policy.begin(rng)

    def act(self, history: History, env: TaskEnvironment) -> Actions:
        return self._policy.choose(history.seen[-1])[None]


class ActAgent:
    """The network itself, for a goal frame."""

    name = "act"
    num_network_calls: int | None = ACT_STEPS

    def __init__(self, world: World, *, chunk: int):
        """``chunk``: actions done before the next look. Raises WorldError where the world does not act."""
        if not world.can_act:
            world.require_acting()
        self._world, self._chunk = world, chunk

    def begin(self, task: Task, rng: np.random.Generator) -> None:
        self._goal, self._rng = encode_goal(self._world, task.goal_frame), rng

    def act(self, history: History, env: TaskEnvironment) -> Actions:
        session = history.start(seed=int(self._rng.integers(2**31)))
        return session.act(self._goal)[: self._chunk]


class PlannerAgent:
    """A planner in the world, for a goal frame."""

    num_network_calls: int | None = 0

    def __init__(
        self,
        world: World,
        name: str,
        planner: Planner | ProposeAndCheck,
        *,
        measure: Measure,
        chunk: int,
        context: int,
    ):
        """Raises WorldError where the world lacks heads and steps are the measure."""
        if measure == "steps":
            world.require_heads()
        self.name, self._world, self._planner = name, world, planner
        self._measure: Measure = measure
        self._chunk, self._context = chunk, context

    def begin(self, task: Task, rng: np.random.Generator) -> None:
        goal = Goal(target=encode_goal(self._world, task.goal_frame), measure=self._measure)
        self._controller = Controller(
            self._world, self._planner, goal, chunk=self._chunk, context=self._context
        )
        self._rng = rng

    def act(self, history: History, env: TaskEnvironment) -> Actions:
        plan = self._controller.plan(history, self._rng)
        self.num_network_calls = plan.num_network_calls
        return plan.actions[: self._chunk]


class SimulatorAgent:
    """A planner with the real simulator as its model and the state of the goal: the ceiling of planning, with
    a world and a distance without error."""

    num_network_calls: int | None = 0

    def __init__(self, world: World, name: str, planner: Planner, judge: Judge, *, chunk: int):
        self.name, self._world, self._planner, self._chunk = name, world, planner, chunk
        bounds = np.array([[-1.0], [1.0]]) * np.ones(world.config.dynamics.action_dim)
        low, high = restore_actions(world, bounds)
        self._score = SimulatorScore(judge, low, high)
        self._warm_start = WarmStart()

    def begin(self, task: Task, rng: np.random.Generator) -> None:
        self._task, self._rng = task, rng
        self._warm_start.reset()

    def act(self, history: History, env: TaskEnvironment) -> Actions:
        self._score.set(env.state, self._task.goal)
        start = self._warm_start.start(self._planner.config.horizon, last_action(self._world, history))
        actions = self._planner.plan(self._score, start, self._rng).actions
        self._warm_start.keep(actions, self._chunk)
        return restore_actions(self._world, actions)[: self._chunk]
