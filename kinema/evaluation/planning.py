"""``kinema evaluate planning``: measure goals reached in the real environment by planning in the world.

Starts and goals are from held-out episodes, the goal a fixed number of steps after the start; pairs whose
start meets the goal are left out. Beside the planners stand random actions, behaviour cloning, and the
planners with the real simulator as their model, which separates errors of the search from those of the
world and its heads.
"""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from kinema.evaluation import bootstrap
from kinema.evaluation.agents import (
    ActAgent,
    Agent,
    CloneAgent,
    PlannerAgent,
    RandomAgent,
    SimulatorAgent,
)
from kinema.evaluation.protocol import ResultOptions, Run, WorldOptions, run_protocol
from kinema.evaluation.tasks import Judge, Task, TaskEnvironment, draw_tasks
from kinema.kits import Target
from kinema.options import at_least
from kinema.planners import (
    PLANNER_NAMES,
    PROPOSE,
    PlannerOptions,
    ProposeAndCheck,
    find_proposer,
    make_planner,
)
from kinema.planners.scores import resolve_measure
from kinema.policies.cloned import ClonedPolicy, find_clone, load_clone
from kinema.simulation.world import World

PLAN_TIME = Target(must=1000.0, aim=200.0)
"""Milliseconds of a plan."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanningConfig(WorldOptions, PlannerOptions, ResultOptions):
    data: str
    """Held-out episodes (a LeRobot folder or Hub id) that hold the state of the real simulator."""
    planners: tuple[str, ...] = ()
    """Planners to measure: cem, mppi, propose. By default all, propose only where the world has a policy."""
    tasks: int = 50
    """Pairs of start and goal, near and far each."""
    near: tuple[int, int] = (25, 50)
    """Steps from start to goal in the recording, and steps allowed."""
    far: tuple[int, int] = (100, 200)
    """The same for the far goals; 0 0 leaves them out."""
    seeds: int = 3
    """Attempts at each."""
    ceiling: bool = True
    """Also plan in the real simulator."""

    def __post_init__(self) -> None:
        at_least(self, chunk=1, context=1, tasks=1, seeds=1, seed=0)
        unknown = [name for name in self.planners if name not in PLANNER_NAMES]
        if unknown:
            raise ValueError(f"planners: {', '.join(unknown)}; there are {', '.join(PLANNER_NAMES)}")
        for name, (distance, budget) in {"near": self.near, "far": self.far}.items():
            if min(distance, budget) < 1 and (name == "near" or distance != 0 or budget != 0):
                raise ValueError(f"{name} is {distance} {budget}, but both must be at least 1")
        if self.chunk > self.search.horizon:
            raise ValueError(f"chunk is {self.chunk}, but a plan has only {self.search.horizon} steps")

    @property
    def ranges(self) -> dict[str, tuple[int, int]]:
        """Steps to the goal and steps allowed, by the name of the distance."""
        return {"near": self.near} | ({"far": self.far} if self.far[0] else {})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempts:
    """Attempts of one agent at the tasks of one distance."""

    reached_at: np.ndarray
    """``N seeds``: steps after which the goal was met; infinite where it was not."""
    plans: np.ndarray
    """Milliseconds and network calls of each plan, ``P 2``; empty for an agent that does not plan."""


def planning(config: PlanningConfig) -> int:
    """Measure, write and print; return 0. Raises ValueError, as ``run_protocol`` does."""
    return run_protocol("planning", config, measure_planning)


def measure_planning(run: Run) -> None:
    """Send every agent to every task with every seed, and add goals reached and what plans cost."""
    config, world = run.config, run.world
    judge = Judge(run.kit, world.name)
    agents, notes = make_agents(world, judge, config)
    tasks = draw_tasks(
        world,
        judge,
        run.dataset,
        num=config.tasks,
        distances=[distance for distance, _ in config.ranges.values()],
        context=config.context,
        seed=config.seed,
    )
    env = TaskEnvironment(world, judge)
    for name, (distance, budget) in config.ranges.items():
        attempts = {
            agent.name: attempt(run, env, tasks[distance], agent, budget, label=f"{name}, {agent.name}")
            for agent in agents
        }
        _add_rows(run, name, attempts)
        _add_curves(run, name, budget, attempts)
    env.close()
    num_episodes = len({task.episode for drawn in tasks.values() for task in drawn})
    run.notes += [
        f"{config.tasks} pairs of start and goal each, of {num_episodes} episodes, {config.seeds} seeds. "
        "Intervals are 95%, over pairs. A goal counts as reached when it is met after any step "
        "within the budget.",
        f"Met: {judge.success.criterion}.",
        "With the real simulator as its model and the true distance to the goal, a planner makes "
        "errors of search alone.",
        *notes,
    ]


def make_agents(world: World, judge: Judge, config: PlanningConfig) -> tuple[list[Agent], list[str]]:
    """Make the agents that are compared, and notes about them."""
    measure = resolve_measure(world, config.measure)
    notes = [f"Planners measure the distance to the goal in {measure}."]
    agents: list[Agent] = [RandomAgent(world)]
    folder = Path(config.clone or config.world)
    proposer = find_proposer(world, folder)
    names = config.planners or [name for name in PLANNER_NAMES if name != PROPOSE or proposer is not None]
    planners = {name: make_planner(name, config.search, proposer) for name in names}
    if PROPOSE in planners and proposer is not None:
        notes.append(f"propose: plans are proposed by the policy '{proposer.name}'.")
    clone = find_clone(world, folder) if config.clone is None else load_clone(world, folder)
    if clone is not None:
        agents.append(CloneAgent(ClonedPolicy(world, clone)))
    else:
        notes.append("No cloned policy: kinema train DATA --out WORLD --clone makes one.")
    if world.can_act:
        agents.append(ActAgent(world, chunk=config.chunk))
    for name, planner in planners.items():
        agents.append(
            PlannerAgent(world, name, planner, measure=measure, chunk=config.chunk, context=config.context)
        )
    for name, planner in planners.items() if config.ceiling else ():
        # Proposals come from the world: with the simulator alone there are none.
        if not isinstance(planner, ProposeAndCheck):
            name = f"{name}, real simulator"
            agents.append(SimulatorAgent(world, name, planner, judge, chunk=config.chunk))
    return agents, notes


def attempt(
    run: Run, env: TaskEnvironment, tasks: Sequence[Task], agent: Agent, budget: int, *, label: str
) -> Attempts:
    """Send an agent to the goals, or take its attempts from the journal."""
    config = run.config
    reached_at = np.full((len(tasks), config.seeds), np.inf)
    plans: list[tuple[float, int]] = []
    with tqdm(total=reached_at.size, desc=label, unit=" attempts") as bar:
        for index, seed in np.ndindex(*reached_at.shape):
            rng = np.random.default_rng([config.seed + seed, index])
            go = functools.partial(_go, env, tasks[index], agent, budget, config.context, rng)
            key = f"{label}, task {index}, seed {seed}"
            reached_at[index, seed], made = run.journal.find(key, go)
            plans += made
            bar.update()
    return Attempts(reached_at=reached_at, plans=np.array(plans))


def _go(
    env: TaskEnvironment, task: Task, agent: Agent, budget: int, context: int, rng: np.random.Generator
) -> tuple[float, list[tuple[float, int]]]:
    """Return the steps until the goal was met, and milliseconds and network calls of each plan."""
    history = env.begin(task, context)
    agent.begin(task, rng)
    num_steps, plans = 0, []
    while num_steps < budget:
        began = time.perf_counter()
        actions = agent.act(history, env)
        if agent.num_network_calls is not None:
            plans.append((1e3 * (time.perf_counter() - began), agent.num_network_calls))
        for action in actions[: budget - num_steps]:
            history.add(action, env.step(action))
            num_steps += 1
            if env.has_met(task):
                return float(num_steps), plans
    return float("inf"), plans


def _add_rows(run: Run, name: str, attempts: Mapping[str, Attempts]) -> None:
    reached = {agent: np.isfinite(tried.reached_at).astype(float) for agent, tried in attempts.items()}
    planners = [agent for agent in attempts if agent in PLANNER_NAMES]
    best = max(planners, key=lambda planner: reached[planner].mean())
    for agent, flags in reached.items():
        run.row(f"{name}/{agent}", f"{name}: {agent}, goals reached", "share", bootstrap.mean, flags)
    what, target = f"{name}: best planner ({best}), goals reached", f"planning/{name}"
    run.row(f"{name}/best", what, "share", bootstrap.mean, reached[best], target=target)
    for agent, tried in attempts.items():
        if not len(tried.plans):
            continue
        low, middle, high = np.percentile(tried.plans[:, 0], [10, 50, 90]).tolist()
        what = f"{name}: {agent}, a plan (p50; interval: p10 to p90)"
        is_ours = agent in PLANNER_NAMES
        target = PLAN_TIME if is_ours else None
        run.number(f"{name}/{agent}/ms", what, "ms", middle, low, high, target=target)
        if is_ours:
            what = f"{name}: {agent}, network calls a plan (each for all candidates)"
            run.number(f"{name}/{agent}/calls", what, "", float(np.median(tried.plans[:, 1])))


def _add_curves(run: Run, name: str, budget: int, attempts: Mapping[str, Attempts]) -> None:
    """Add goals reached within a number of steps."""
    steps = sorted({*np.linspace(1, budget, min(budget, 20)).round().astype(int).tolist()})
    for agent, tried in attempts.items():
        flags = [(tried.reached_at <= step).astype(float) for step in steps]
        panel = f"{name} goals reached"
        run.curve(f"{name}/{agent}", agent, "share", panel, steps, bootstrap.mean, flags)
