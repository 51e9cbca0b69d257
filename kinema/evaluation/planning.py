"""``kinema evaluate planning``: is a goal reached in the real environment by who plans in the world?

Starts and goals are from held-out episodes, the goal a fixed number of steps after the start; pairs whose
start meets the goal are left out. Beside the planners stand random actions, behaviour cloning, and the
planners with the real simulator as their model, which tells errors of the search from those of the world and
its heads.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tqdm import tqdm

from kinema.data.lerobot import Dataset
from kinema.evaluation import bootstrap
from kinema.evaluation.agents import (
    ActAgent,
    Agent,
    CloneAgent,
    Cost,
    PlannerAgent,
    RandomAgent,
    SimulatorAgent,
)
from kinema.evaluation.protocol import Journal, Run
from kinema.evaluation.result import Result, Row, Series, describe_run, plain
from kinema.evaluation.tasks import Judge, Task, TaskEnvironment, draw_tasks
from kinema.kits import Target, find_kit
from kinema.planners import PLANNER_NAMES, PROPOSE, ProposeAndCheck, SearchConfig, find_proposer, make_planner
from kinema.planners.scores import END_SHARE, MeasureOrAuto, resolve_measure
from kinema.policies.cloned import ClonedPolicy, find_clone, load_clone
from kinema.simulation.starts import History
from kinema.simulation.world import World, load

BEST = "best planner"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanningConfig:
    world: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WORLD")]
    """Name of a bundled world, folder of a world, or its Hub id."""
    data: str
    """Held-out episodes (a LeRobot folder or Hub id) that hold the state of the real simulator."""
    planners: tuple[str, ...] = ()
    """Planners to measure: cem, mppi, propose. By default all, propose only where the world has a policy."""
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    """Settings of the search."""
    measure: MeasureOrAuto = "auto"
    """How far a frame is from a goal: by the heads' steps to reach it, or by codes of the manifold
    (with proprioception), or by latents; auto takes the first of these that the world has."""
    chunk: int = 5
    """Actions done before the next plan."""
    context: int = 4
    """Frames that a plan starts from."""
    tasks: int = 50
    """Pairs of start and goal, near and far each."""
    near: tuple[int, int] = (25, 50)
    """Steps from start to goal in the recording, and steps allowed."""
    far: tuple[int, int] = (100, 200)
    """The same of the far goals; 0 0 leaves them out."""
    seeds: int = 3
    """Attempts at each."""
    seed: int = 0
    """The first of the seeds."""
    ceiling: bool = True
    """Also plan in the real simulator."""
    clone: str | None = None
    """Folder of the cloned policy; by default the world's, where it has one."""
    device: str = "auto"
    """Device to compute on: auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1 or mps."""
    out: Path = Path("evaluation")
    """Folder for planning.json, planning.png and planning.html. Attempts made so far are in it too until all
    are: after Ctrl-C the same command goes on with the next."""
    json: bool = False
    """Print the numbers as JSON instead of a table."""

    def __post_init__(self) -> None:
        for name, least in {"chunk": 1, "context": 1, "tasks": 1, "seeds": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least {least}")
        unknown = [name for name in self.planners if name not in PLANNER_NAMES]
        if unknown:
            raise ValueError(f"planners: {', '.join(unknown)}; there are {', '.join(PLANNER_NAMES)}")
        for name, (distance, budget) in {"near": self.near, "far": self.far}.items():
            if name == "far" and distance == budget == 0:
                continue
            if distance < 1 or budget < 1:
                raise ValueError(f"{name} is {distance} {budget}, but both must be at least 1")
        if self.chunk > self.search.horizon:
            raise ValueError(f"chunk is {self.chunk}, but a plan has only {self.search.horizon} steps")

    @property
    def ranges(self) -> dict[str, tuple[int, int]]:
        """Steps to the goal and steps allowed, by the name of the distance."""
        return {"near": self.near} | ({"far": self.far} if self.far[0] else {})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempts:
    """What one agent did with the tasks of one distance."""

    reached_at: np.ndarray
    """``N seeds``: steps after which the goal was met; infinite where it was not."""
    costs: list[Cost]


def planning(config: PlanningConfig) -> int:
    """Measure, write and print; 0 when done.

    Raises:
        ValueError: the world or the data cannot be read, or do not fit each other.
    """
    world = load(config.world, device=config.device)
    dataset = Dataset.open(config.data)
    judge = Judge(find_kit(world.name, dataset.features), world.name)
    agents, notes = make_agents(world, judge, config)
    distances = [distance for distance, _ in config.ranges.values()]
    tasks = draw_tasks(
        world,
        judge,
        dataset,
        num=config.tasks,
        distances=distances,
        context=config.context,
        seed=config.seed,
    )
    with Run("planning", world, config, dataset=dataset) as run:
        result = measure_planning(
            world, judge, tasks, agents, config, run.journal, source=str(dataset.root), notes=notes
        )
        paths = result.write(config.out)
    result.tell(paths, as_json=config.json)
    return 0


def make_agents(world: World, judge: Judge, config: PlanningConfig) -> tuple[list[Agent], list[str]]:
    """Those who are compared, and what is to be said about them."""
    measure = resolve_measure(world, config.measure)
    notes = [f"Planners measure how far they are from the goal in {measure}."]
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
            PlannerAgent(name, world, planner, measure=measure, chunk=config.chunk, context=config.context)
        )
    for name, planner in planners.items() if config.ceiling else ():
        # Proposals come from the world: with the simulator alone there are none.
        if not isinstance(planner, ProposeAndCheck):
            agents.append(
                SimulatorAgent(
                    f"{name}, real simulator",
                    world,
                    judge,
                    planner,
                    chunk=config.chunk,
                    end_share=END_SHARE,
                )
            )
    return agents, notes


def measure_planning(
    world: World,
    judge: Judge,
    tasks: dict[int, list[Task]],
    agents: Sequence[Agent],
    config: PlanningConfig,
    journal: Journal,
    *,
    source: str,
    notes: Sequence[str] = (),
) -> Result:
    """Every agent at every task with every seed."""
    env = TaskEnvironment(world, judge)
    rng = np.random.default_rng(config.seed)
    rows, series = [], []
    for name, (distance, budget) in config.ranges.items():
        attempts = {
            agent.name: attempt(
                env, tasks[distance], agent, budget, config, journal, label=f"{name}, {agent.name}"
            )
            for agent in agents
        }
        rows += _rows(name, attempts, config, rng)
        series += _curves(name, budget, attempts, rng)
    env.close()
    num_episodes = len({task.episode for of_distance in tasks.values() for task in of_distance})
    return Result(
        name="planning",
        world=world.name,
        data=source,
        axis="step",
        protocol=plain(config),
        run=describe_run(world),
        rows=rows,
        series=series,
        notes=[
            f"{config.tasks} pairs of start and goal each, of {num_episodes} episodes, {config.seeds} seeds. "
            "Intervals are 95%, over pairs. A goal counts as reached when it is met after any step "
            "within the budget.",
            f"Met: {judge.success.criterion}.",
            "With the real simulator as its model and the true distance to the goal, a planner makes "
            "errors of search alone.",
            *notes,
        ],
    )


def attempt(
    env: TaskEnvironment,
    tasks: Sequence[Task],
    agent: Agent,
    budget: int,
    config: PlanningConfig,
    journal: Journal,
    *,
    label: str,
) -> Attempts:
    """Send an agent to the goals."""
    reached_at = np.full((len(tasks), config.seeds), np.inf)
    costs: list[Cost] = []

    def go(index: int, seed: int) -> tuple[float, list[tuple[float, int]]]:
        history = env.begin(tasks[index], config.context)
        agent.begin(tasks[index], np.random.default_rng([config.seed + seed, index]))
        steps, of_plans = _go(env, history, tasks[index], agent, budget)
        return steps, [(cost.milliseconds, cost.num_network_calls) for cost in of_plans]

    with tqdm(total=reached_at.size, desc=label, unit=" attempts") as bar:
        for index, seed in np.ndindex(*reached_at.shape):
            key = f"{label}, task {index}, seed {seed}"
            reached_at[index, seed], of_plans = journal.find(key, functools.partial(go, index, seed))
            costs += [Cost(*cost) for cost in of_plans]
            bar.update()
    return Attempts(reached_at=reached_at, costs=costs)


def _go(
    env: TaskEnvironment, history: History, task: Task, agent: Agent, budget: int
) -> tuple[float, list[Cost]]:
    """Steps until the goal was met, and what plans cost."""
    num_steps, costs = 0, []
    while num_steps < budget:
        actions, cost = agent.act(history, env)
        if cost is not None:
            costs.append(cost)
        for action in actions[: budget - num_steps]:
            history.add(action, env.step(action))
            num_steps += 1
            if env.has_met(task):
                return float(num_steps), costs
    return float("inf"), costs


def _rows(
    name: str, attempts: dict[str, Attempts], config: PlanningConfig, rng: np.random.Generator
) -> list[Row]:
    target = {"near": Target(must=0.70, aim=0.95), "far": Target(must=0.0, aim=0.50)}[name]
    rows = []
    reached = {agent: np.isfinite(tried.reached_at).astype(float) for agent, tried in attempts.items()}
    planners = [agent for agent in attempts if agent in PLANNER_NAMES]
    best = max(planners, key=lambda planner: reached[planner].mean())
    for agent, flags in {**reached, BEST: reached[best]}.items():
        is_best = agent == BEST
        row = Row.measure(
            f"{name}/{'best' if is_best else agent}",
            f"{name}: {agent}{f' ({best})' if is_best else ''}, goals reached",
            "share",
            bootstrap.share,
            flags,
            rng=rng,
            is_higher_better=True,
        )
        rows.append(row.with_target(target if is_best else None))
    for agent, tried in attempts.items():
        if not tried.costs:
            continue
        times = np.array([cost.milliseconds for cost in tried.costs])
        is_ours = agent in PLANNER_NAMES
        rows.append(
            Row(
                key=f"{name}/{agent}/ms",
                what=f"{name}: {agent}, a plan (p50; interval: p10 to p90)",
                value=float(np.median(times)),
                unit="ms",
                low=float(np.percentile(times, 10)),
                high=float(np.percentile(times, 90)),
                must=1000.0 if is_ours else None,
                aim=200.0 if is_ours else None,
            )
        )
        if is_ours:
            calls = float(np.median([cost.num_network_calls for cost in tried.costs]))
            what = f"{name}: {agent}, network calls a plan (each for all candidates)"
            rows.append(Row(key=f"{name}/{agent}/calls", what=what, value=calls, unit=""))
    return rows


def _curves(name: str, budget: int, attempts: dict[str, Attempts], rng: np.random.Generator) -> list[Series]:
    """Goals reached within so many steps."""
    steps = sorted({*np.linspace(1, budget, min(budget, 20)).round().astype(int).tolist()})
    return [
        Series.measure(
            f"{name}/{agent}",
            agent,
            "share",
            f"{name} goals reached",
            steps,
            bootstrap.share,
            [(tried.reached_at <= step).astype(float) for step in steps],
            rng=rng,
        )
        for agent, tried in attempts.items()
    ]
