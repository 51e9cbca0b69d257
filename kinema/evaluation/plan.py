"""``kinema plan``: plan in a world towards a goal frame, or for reward, and do it in the real environment.

Every few steps a new plan is made from the real frames. The predictions of each plan stand beside the real
frames, in a video and a contact sheet.
"""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
from tqdm import tqdm

from kinema.data import drawing
from kinema.data.frames import join_cameras
from kinema.data.options import JsonObject
from kinema.evaluation.plot import error_video
from kinema.evaluation.protocol import WorldOptions
from kinema.evaluation.tables import align
from kinema.kits import Kit, errors, find_kit, kit_of_environment
from kinema.model.goals import encode_goal
from kinema.options import at_least
from kinema.planners import (
    PLANNER_NAMES,
    Controller,
    Goal,
    Plan,
    PlannerOptions,
    find_proposer,
    make_planner,
)
from kinema.planners.scores import resolve_measure
from kinema.simulation.real_env import Arena, seen_after
from kinema.simulation.starts import History
from kinema.simulation.world import World, load
from kinema.types import Seen


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig(WorldOptions, PlannerOptions):
    env: str
    """The real environment: a Gymnasium id (PACKAGE/NAME-v0), or MODULE:ID."""
    env_args: JsonObject = dataclasses.field(default_factory=dict)
    """Arguments of the environment."""
    goal: Path | None = None
    """File of a goal frame, at the size that the camera records or that the world learned."""
    reward_weight: float = 0.0
    """Weight of the sum of rewards that the heads predict; beside a goal, whose distance weighs one, or
    alone."""
    min_trust: float | None = None
    """While trust is under this, a plan comes no nearer to the goal and brings no reward; by default all
    are believed."""
    planner: str = "cem"
    """cem, mppi, or propose: a policy proposes plans, the best are refined."""
    steps: int = 50
    """Most steps in the real environment."""
    out: Path = Path("plan")
    """Folder for plan.mp4 and plan.png."""

    def __post_init__(self) -> None:
        if self.planner not in PLANNER_NAMES:
            raise ValueError(f"planner '{self.planner}': choose one of {', '.join(PLANNER_NAMES)}")
        at_least(self, steps=1, chunk=1, context=1)
        if self.goal is None and not self.reward_weight:
            raise ValueError("nothing to plan for: give a frame as --goal, or a --reward-weight, or both")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """Observations of one attempt, real and imagined."""

    real: list[Seen]
    """The start, then one observation for each step."""
    imagined: list[Seen]
    """The same, as predicted by the plan in force."""
    first_plan: list[Seen]
    """Predictions of the first plan, to its end."""
    plans: list[Plan]
    rewards: list[float]
    distances: list[float]
    """Distances from the goal, by the measure of the search, before each plan and at the end; empty without
    a goal."""


def plan(config: PlanConfig) -> int:
    """Plan, act, write and print; return 0.

    Raises:
        ValueError: the world, the environment or the goal cannot be read, or do not fit each other.
    """
    world = load(config.world, device=config.device)
    frame = None if config.goal is None else drawing.read_frame(config.goal)
    goal = Goal(
        target=None if frame is None else encode_goal(world, frame),
        measure=resolve_measure(world, config.measure),
        reward_weight=config.reward_weight,
        min_trust=config.min_trust,
    )
    planner = make_planner(config.planner, config.search, find_proposer(world, config.clone or config.world))
    controller = Controller(world, planner, goal, chunk=config.chunk, context=config.context)
    with contextlib.closing(Arena(world, config.env, config.env_args)) as arena:
        trial = attempt(arena, controller, steps=config.steps, seed=config.seed)
    kit = find_kit(world.name) or kit_of_environment(config.env)
    print(summary(world, trial, frame, goal.measure, kit))
    if world.cameras:
        for path in write_frames(world, trial, frame, config.out):
            print(path)
    return 0


def attempt(arena: Arena, controller: Controller, *, steps: int, seed: int) -> Trial:
    """Plan and act until the steps are used up or the environment ends the episode."""
    world, goal, rng = controller.world, controller.goal, np.random.default_rng(seed)
    history = History(world, controller.context)
    start, _ = arena.reset(seed)
    history.begin(start)
    controller.begin()
    trial = Trial(real=[start], imagined=[start], first_plan=[], plans=[], rewards=[], distances=[])
    is_over = False
    with tqdm(total=steps, desc="acting", unit=" steps") as bar:
        while not is_over and len(trial.rewards) < steps:
            made = controller.plan(history, rng)
            trial.plans.append(made)
            if goal.target is not None:
                trial.distances.append(float(goal.distance(world, made.session.fork(1))[0]))
            is_first = len(trial.plans) == 1
            imagined = imagine(world, made, len(made.actions) if is_first else controller.chunk)
            if is_first:
                trial.first_plan.extend(imagined)
            num = min(controller.chunk, steps - len(trial.rewards))
            for action, predicted in zip(made.actions[:num], imagined, strict=False):
                outcome = arena.step(action)
                history.add(action, outcome.seen)
                trial.real.append(outcome.seen)
                trial.imagined.append(predicted)
                trial.rewards.append(outcome.reward)
                bar.update()
                is_over = outcome.terminated or outcome.truncated
                if is_over:
                    break
    if goal.target is not None:
        trial.distances.append(float(goal.distance(world, history.start().fork(1))[0]))
    return trial


def imagine(world: World, made: Plan, num: int) -> list[Seen]:
    """Simulate the first ``num`` actions of a plan from where it begins."""
    future = made.session.fork(1, max_rewind=0)[0]
    return [seen_after(world, future.step(action)) for action in made.actions[:num]]


def summary(world: World, trial: Trial, goal_frame: np.ndarray | None, measure: str, kit: Kit | None) -> str:
    """Say in lines of text how the attempt went."""
    milliseconds, first = np.median([made.milliseconds for made in trial.plans]), trial.plans[0]
    lines = [
        f"{len(trial.rewards)} steps, {len(trial.plans)} plans; a plan took {milliseconds:,.0f} ms "
        f"(median), {first.num_candidates} candidates, {first.num_steps:,} imagined steps, "
        f"{first.num_network_calls} network calls",
        f"reward in the real environment: {sum(trial.rewards):.3f} in all, {trial.rewards[-1]:.3f} at last",
    ]
    if trial.distances:
        unit = "steps" if measure == "steps" else f"in {measure}"
        lines.append(
            f"from the goal, {unit}: {trial.distances[0]:.2f} at first, {trial.distances[-1]:.2f} at last"
        )
    probe = None if kit is None else kit.find_probe(world.cameras)
    if probe is not None and goal_frame is not None:
        goal = probe.read(world.by_camera(goal_frame[None]))
        table = [["", *(f"{q.label}, {q.unit}" for q in probe.quantities)]]
        for name, seen in (("error at first", trial.real[0]), ("error at last", trial.real[-1])):
            state = probe.read({key: frame[None] for key, frame in seen.frames.items()})
            table.append([name, *(f"{errors(q, state, goal)[0]:.1f}" for q in probe.quantities)])
        lines.append(align(table))
    return "\n".join(lines)


def write_frames(world: World, trial: Trial, goal_frame: np.ndarray | None, out: Path) -> list[Path]:
    """Write the video ``goal | real | imagined``, and a contact sheet with the first plan to its end."""
    videos = {
        "real": trial.real,
        "imagined": trial.imagined,
        "first plan": [trial.real[0], *trial.first_plan],
    }
    rows = {
        name: np.concatenate([join_cameras(frame[None] for frame in one.frames.values()) for one in seen])
        for name, seen in videos.items()
    }
    panels = {name: rows[name] for name in ("real", "imagined")}
    num, height = rows["real"].shape[:2]
    if goal_frame is not None:
        rows["goal"] = join_cameras(world.by_camera(goal_frame[None]).values())
        panels = {"goal": np.repeat(rows["goal"], num, axis=0), **panels}
    gap = np.full((num, height, drawing.GAP, 3), drawing.BACKGROUND, np.uint8)
    joined = np.concatenate([part for panel in panels.values() for part in (panel, gap)][:-1], axis=2)
    scale = max(1, 256 // height)
    frames = error_video(joined, {}, scale=scale, titles=list(panels), first_step=0)
    video, sheet = out / "plan.mp4", out / "plan.png"
    drawing.write_video(video, frames, fps=world.fps)
    drawing.write_png(sheet, drawing.contact_sheet(list(rows.values()), labels=list(rows)))
    return [video, sheet]
