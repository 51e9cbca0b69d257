"""``kinema plan``: plan in a world towards a goal picture, or for reward, and do it in the real environment.

Every few steps a new plan is made from what the real environment shows. What the world imagined of each plan
stands beside what then happened, in a film and a contact sheet.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tqdm import tqdm

from kinema.data import drawing
from kinema.data.frames import join_cameras
from kinema.data.options import JsonObject
from kinema.evaluation.plot import error_video
from kinema.evaluation.tables import align
from kinema.kits import Kit, errors, find_kit, kit_of_environment
from kinema.model.goals import encode_goal
from kinema.planners import (
    PLANNER_NAMES,
    Controller,
    Goal,
    Plan,
    SearchConfig,
    find_proposer,
    make_planner,
)
from kinema.planners.scores import MeasureOrAuto, resolve_measure
from kinema.simulation.real_env import Arena, seen_after
from kinema.simulation.starts import History
from kinema.simulation.world import World, load
from kinema.types import Seen


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig:
    world: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WORLD")]
    """Name of a bundled world, folder of a world, or its Hub id."""
    env: str
    """The real environment: a Gymnasium id (PACKAGE/NAME-v0), or MODULE:ID."""
    env_args: JsonObject = dataclasses.field(default_factory=dict)
    """Arguments of the environment."""
    goal: Path | None = None
    """File of a picture of what is wanted, at the size that the camera records or that the world learned."""
    reward_weight: float = 0.0
    """Weight of the sum of rewards that the heads foretell; beside a goal, whose distance weighs one, or
    alone."""
    measure: MeasureOrAuto = "auto"
    """How far a frame is from the goal: by the heads' steps to reach it, or by codes of the manifold
    (with proprioception), or by latents; auto takes the first of these that the world has."""
    min_trust: float | None = None
    """While trust is under this, a plan comes no nearer to the goal and brings no reward; by default all
    are believed."""
    planner: str = "cem"
    """cem, mppi, or propose: a policy proposes plans, the best are refined."""
    clone: str | None = None
    """Folder of the cloned policy that proposes; by default the world's."""
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    """Settings of the search."""
    steps: int = 50
    """Most steps in the real environment."""
    chunk: int = 5
    """Actions done before the next plan."""
    context: int = 4
    """Frames that a plan starts from."""
    seed: int = 0
    """Seed of the environment's start and of the search."""
    device: str = "auto"
    """Device to compute on: auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1 or mps."""
    out: Path = Path("plan")
    """Folder for plan.mp4 and plan.png."""

    def __post_init__(self) -> None:
        if self.planner not in PLANNER_NAMES:
            raise ValueError(f"planner '{self.planner}': choose one of {', '.join(PLANNER_NAMES)}")
        for name in ("steps", "chunk", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if self.goal is None and not self.reward_weight:
            raise ValueError("nothing to plan for: give a picture as --goal, or a --reward-weight, or both")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """What was done, seen and imagined."""

    seen: list[Seen]
    """The start, then what each step really led to."""
    imagined: list[Seen]
    """The start, then what the plan of the time said that each step would lead to."""
    first_plan: list[Seen]
    """What the first plan imagined, to its end."""
    plans: list[Plan]
    rewards: list[float]
    distances: list[float]
    """From the goal, by the measure that was planned with, before each plan and at the end; empty without a
    goal."""


def plan(config: PlanConfig) -> int:
    """Plan, act, write and print; 0 when done.

    Raises:
        ValueError: the world, the environment or the goal cannot be read, or do not fit each other.
    """
    world = load(config.world, device=config.device)
    picture = None if config.goal is None else drawing.read_frame(config.goal)
    measure = resolve_measure(world, config.measure)
    goal = Goal(
        target=None if picture is None else encode_goal(world, picture),
        measure=measure,
        reward_weight=config.reward_weight,
        min_trust=config.min_trust,
    )
    planner = make_planner(config.planner, config.search, find_proposer(world, config.clone or config.world))
    controller = Controller(world, planner, goal, chunk=config.chunk, context=config.context)
    arena = Arena(world, config.env, config.env_args)
    try:
        trial = attempt(arena, controller, steps=config.steps, seed=config.seed)
    finally:
        arena.close()
    kit = find_kit(world.name) or kit_of_environment(config.env)
    print(summary(world, trial, picture, measure, kit))
    if world.cameras:
        for path in write_pictures(world, trial, picture, config.out):
            print(path)
    return 0


def attempt(arena: Arena, controller: Controller, *, steps: int, seed: int) -> Trial:
    """Plan and act until the steps are used up or the environment ends the episode."""
    world, rng = controller.world, np.random.default_rng(seed)
    history = History(world, controller.context)
    start, _ = arena.reset(seed)
    history.begin(start)
    controller.begin()
    trial = Trial(seen=[start], imagined=[start], first_plan=[], plans=[], rewards=[], distances=[])
    is_over = False
    with tqdm(total=steps, desc="acting", unit=" steps") as bar:
        while not is_over and len(trial.rewards) < steps:
            made = controller.plan(history, rng)
            trial.plans.append(made)
            if controller.goal.target is not None:
                trial.distances.append(float(controller.goal.distance(world, made.session.fork(1))[0]))
            imagined = imagine(world, made, len(made.actions) if len(trial.plans) == 1 else controller.chunk)
            if len(trial.plans) == 1:
                trial.first_plan.extend(imagined)
            num = min(controller.chunk, steps - len(trial.rewards))
            for action, foreseen in zip(made.actions[:num], imagined, strict=False):
                outcome = arena.step(action)
                history.add(action, outcome.seen)
                trial.seen.append(outcome.seen)
                trial.imagined.append(foreseen)
                trial.rewards.append(outcome.reward)
                bar.update()
                is_over = outcome.terminated or outcome.truncated
                if is_over:
                    break
    if controller.goal.target is not None:
        trial.distances.append(float(controller.goal.distance(world, history.start().fork(1))[0]))
    return trial


def imagine(world: World, made: Plan, num: int) -> list[Seen]:
    """What the world says that the first actions of a plan lead to."""
    future = made.session.fork(1, max_rewind=0)[0]
    imagined = []
    for action in made.actions[:num]:
        step = future.step(action)
        imagined.append(seen_after(world, step))
    return imagined


def summary(world: World, trial: Trial, picture: np.ndarray | None, measure: str, kit: Kit | None) -> str:
    """What came of it, in lines of text."""
    times = [made.milliseconds for made in trial.plans]
    lines = [
        f"{len(trial.rewards)} steps, {len(trial.plans)} plans; a plan took {np.median(times):,.0f} ms "
        f"(median), {trial.plans[0].num_candidates} candidates, {trial.plans[0].num_steps:,} imagined steps, "
        f"{trial.plans[0].num_network_calls} network calls",
        f"reward in the real environment: {sum(trial.rewards):.3f} in all, {trial.rewards[-1]:.3f} at last",
    ]
    if trial.distances:
        unit = "steps" if measure == "steps" else f"in {measure}"
        lines.append(
            f"from the goal, {unit}: {trial.distances[0]:.2f} at first, {trial.distances[-1]:.2f} at last"
        )
    probe = None if kit is None else kit.find_probe(world.cameras)
    if probe is not None and picture is not None:
        goal = probe.read(world.by_camera(picture[None]))
        table = [["", *(f"{q.label}, {q.unit}" for q in probe.quantities)]]
        for name, seen in (("error at first", trial.seen[0]), ("error at last", trial.seen[-1])):
            found = probe.read({key: frame[None] for key, frame in seen.frames.items()})
            table.append([name, *(f"{errors(q, found, goal)[0]:.1f}" for q in probe.quantities)])
        lines.append(align(table))
    return "\n".join(lines)


def write_pictures(world: World, trial: Trial, picture: np.ndarray | None, out: Path) -> list[Path]:
    """The film ``goal | real | imagined``, and a contact sheet with the first plan to its end."""
    real, imagined, planned = (
        film(seen) for seen in (trial.seen, trial.imagined, [trial.seen[0], *trial.first_plan])
    )
    panels, names = [real, imagined], ["real", "imagined"]
    if picture is not None:
        shown = join_cameras(world.by_camera(picture[None]).values())
        panels.insert(0, np.repeat(shown, len(real), axis=0))
        names.insert(0, "goal")
    gap = np.full((len(real), real.shape[1], drawing.GAP, 3), drawing.BACKGROUND, np.uint8)
    parts = [part for panel in panels for part in (panel, gap)][:-1]
    scale = max(1, 256 // real.shape[1])
    paths = [out / "plan.mp4", out / "plan.png"]
    joined = np.concatenate(parts, axis=2)
    frames = error_video(joined, {}, scale=scale, titles=names, first_step=0)
    drawing.write_video(paths[0], frames, fps=world.fps)
    rows, labels = [real, imagined, planned], ["real", "imagined", "first plan"]
    if picture is not None:
        rows.append(panels[0][:1])
        labels.append("goal")
    drawing.write_png(paths[1], drawing.contact_sheet(rows, labels=labels))
    return paths


def film(seen: list[Seen]) -> np.ndarray:
    """Pictures ``T H W 3`` of what was seen, cameras side by side."""
    return np.concatenate([join_cameras(frame[None] for frame in one.frames.values()) for one in seen])
