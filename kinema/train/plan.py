"""The plan of a training, printed before it begins: sizes, updates, time, memory, disk, quality."""

import contextlib
import dataclasses
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from kinema.data.lerobot import Dataset
from kinema.model.world import WorldConfig
from kinema.recipes import SIZES, Phase, Recipe
from kinema.recipes.budget import ENOUGH, Plan, choose_plan, parse_budget
from kinema.simulation.world import World
from kinema.train.checkpoint import read_state
from kinema.train.facts import check_disk, size
from kinema.train.loop import Run, Stage
from kinema.train.measure import Meter, matrix_rate, sketch, time_update
from kinema.train.stages import decoder_stage, dynamics_stage, manifold_stage, tokenizer_stage

FEWEST_UPDATES = 50
"""Stages with fewer updates are not timed."""
SECONDS = 0.3
"""Time for which updates of a phase are timed."""
MEASURED_SHARE, MEASURED_SECONDS = 0.002, (0.3, 5.0)
"""Share of a budget for which updates of a phase are timed, and least and most seconds of it."""
SUITE = Path(__file__).parents[2] / "results" / "suite"
"""Measured results of trainings, in a checkout of the repository."""
ALIKE = 1.5
"""Budgets are comparable up to this factor."""
STAGES = {
    "tokenizer": tokenizer_stage,
    "manifold": manifold_stage,
    "decoder": decoder_stage,
    "dynamics": dynamics_stage,
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of what is left of one stage."""

    name: str
    num_parameters: int
    phases: tuple[Phase, ...]
    """Its phases, with the updates that are left."""
    seconds: tuple[float, ...] | None
    """Estimated, by phase; None where the stage was not timed."""

    @property
    def num_updates(self) -> int:
        """Updates of all phases."""
        return sum(phase.updates for phase in self.phases)


def make_plan(
    run: Run,
    dataset: Dataset,
    episodes: np.ndarray,
    world_of: Callable[[Recipe], WorldConfig],
    *,
    budget: str,
    size: str | None,
) -> Plan:
    """Measure this machine, and plan a training that ends when the budget does. Nothing is written.

    Args:
        run: that has the time of the budget, from its start on.
        dataset: to learn from.
        episodes: positions of those to learn from.
        world_of: makes a world's configuration of a recipe.
        budget: time for all, such as ``1h``.
        size: name of the size; by default the largest that gets enough updates.
    """
    seconds = parse_budget(budget)
    least, most = MEASURED_SECONDS
    meter = Meter(run, dataset, episodes, world_of, min(most, max(least, MEASURED_SHARE * seconds)))

    def plan() -> Plan:
        return choose_plan(
            meter,
            seconds - (time.monotonic() - run.started),
            num_frames=int(dataset.lengths()[episodes].sum()),
            num_episodes=len(episodes),
            size=size,
        )

    # Measuring takes time itself, so a plan is made again once all is measured.
    plan()
    made = plan()
    share = meter.operations_a_second(made.scale) / matrix_rate(run)
    print(
        f"plan for {budget}: size {made.name}, measured in {duration(time.monotonic() - run.started)}; "
        f"training reaches {share:.0%} of the machine's rate of large matrix products"
    )
    if not made.is_enough:
        wanted = round(ENOUGH * SIZES[made.name].dynamics_updates)
        print(
            f"the budget is short: {sum(made.scale.phase_updates):,} updates of the dynamics are planned, "
            f"{wanted:,} are wanted at least; expect a world that follows its actions poorly"
        )
    left = seconds - (time.monotonic() - run.started)
    if made.seconds > 1.1 * left:
        print(f"the budget cannot be kept: single updates alone take {duration(made.seconds)}")
    return made


def say_quality(budget: str | None, has_cameras: bool, suite: Path = SUITE) -> str:
    """Say in one line what skill worlds of this kind reached in trainings of about this budget, as the files
    of ``benchmarks/suite.py`` have it."""
    key = "skill/frame/" if has_cameras else "skill/state/"
    by_step: dict[int, list[float]] = {}
    for path in sorted(suite.glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(path.read_text())
            measured = parse_budget(content["protocol"]["training"].removeprefix("--budget "))
            if budget is None or not 1 / ALIKE <= measured / parse_budget(budget) <= ALIKE:
                continue
            for row in content["rows"]:
                if row["key"].startswith(key) and row["value"] is not None:
                    by_step.setdefault(int(row["key"].removeprefix(key)), []).append(row["value"])
    if not by_step:
        return "quality: no comparable training was measured, so no skill can be promised"
    skills = (
        f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f}) at step {step}"
        for step, values in sorted(by_step.items())
    )
    num_worlds = max(map(len, by_step.values()))
    return (
        f"quality: {num_worlds} worlds reached in about this time, in the median (and from worst to best), a "
        f"skill of {', '.join(skills)}; 1 is perfect, 0 as bad as the last frame repeated"
    )


def stage_costs(
    run: Run,
    recipe: Recipe,
    config: WorldConfig,
    dataset: Dataset,
    names: Sequence[str],
    plan: Plan | None = None,
) -> list[Cost]:
    """Cost of stages, from a few updates on noise in networks of the same size, or as a plan has it."""
    planned = {"tokenizer": (plan.tokenizer,), "dynamics": plan.phases} if plan is not None else {}
    with torch.random.fork_rng():
        job = sketch(run, recipe, config, dataset)
        return [_cost(STAGES[name](job), run, planned.get(name)) for name in names]


def _cost(stage: Stage, run: Run, planned: tuple[float, ...] | None) -> Cost:
    done = (read_state(run.folder / stage.name) or {"update": 0})["update"]
    phases, seconds, first = [], [], 0
    is_timed = planned is not None or stage.schedule.updates - done >= FEWEST_UPDATES
    for index, phase in enumerate(stage.schedule.phases):
        num_left = max(0, min(phase.updates, first + phase.updates - done))
        phases.append(dataclasses.replace(phase, updates=num_left))
        if planned is not None:
            seconds.append(planned[index] * num_left / max(1, phase.updates))
        elif is_timed:
            seconds.append(num_left * time_update(stage, first, run, SECONDS).seconds if num_left else 0.0)
        first += phase.updates
    num_parameters = sum(p.numel() for p in stage.module.parameters())
    return Cost(stage.name, num_parameters, tuple(phases), tuple(seconds) if is_timed else None)


def say_cost(
    costs: Sequence[Cost], run: Run, num_bytes: int, config: WorldConfig, others: Mapping[str, float]
) -> None:
    """Print the cost of a training.

    Args:
        costs: by stage.
        run: of the training.
        num_bytes: of disk that it needs.
        config: of the world.
        others: seconds of all besides the stages, by name.

    Raises:
        ValueError: the disk has no room for it.
    """
    free = check_disk(run.config.out, num_bytes)
    times = {cost.name: sum(cost.seconds) for cost in costs if cost.seconds is not None} | dict(others)
    took = ", ".join(f"{name} {duration(seconds)}" for name, seconds in times.items())
    parts = [
        *([f"{sum(cost.num_parameters for cost in costs) / 1e6:.3g}M parameters"] if costs else []),
        *([f"{sum(cost.num_updates for cost in costs):,} updates on {run.device}"] if costs else []),
        *([f"about {duration(sum(times.values()))} ({took})"] if times else []),
        f"{size(_peak_memory(run.device))} of memory",
        f"{size(num_bytes)} of disk ({size(free)} are free)",
    ]
    print("training takes: " + ", ".join(parts))
    if costs:
        print("\n".join([_say_frames(config), *(line for cost in costs for line in _say_stage(cost))]))
    sys.stdout.flush()


def _say_frames(config: WorldConfig) -> str:
    """Sizes of frames, and tokens."""
    dynamics = config.dynamics
    sizes = [
        f"{height}x{width} of {camera.native_height}x{camera.native_width} ({camera.key})"
        for camera, (height, width) in zip(config.cameras, config.learned_sizes, strict=True)
    ]
    network = f"network of width {dynamics.width} and depth {dynamics.depth}"
    return f"  frames: {', '.join([*sizes, f'{dynamics.num_tokens} tokens each'])}; {network}"


def _say_stage(cost: Cost) -> list[str]:
    """A line for each phase."""
    lines = []
    for index, phase in enumerate(cost.phases):
        number = f" {index + 1}" if len(cost.phases) > 1 else ""
        own = " (own predictions)" if phase.own_context_share else ""
        seen = phase.updates * phase.batch * phase.length
        took = "" if cost.seconds is None else f", {duration(cost.seconds[index])}"
        lines.append(
            f"  {cost.name}{number}: {phase.updates:,} updates of {phase.batch} segments of {phase.length} "
            f"frames{own}, {seen:,} frames seen{took}"
        )
    return lines


def disk_bytes(world: World, num_rows: int) -> int:
    """Bytes of disk that a run needs: decoded frames, latents, checkpoints and the world."""
    dynamics = world.config.dynamics
    num_weights = sum(tensor.numel() for tensor in world.state_dict().values())
    frames = sum(3 * height * width for height, width in world.config.learned_sizes)
    latents = 2 * dynamics.num_latents * dynamics.latent_dim
    # A checkpoint holds weights, their average and two moments; the next is written before it is removed.
    return num_rows * (frames + latents) + 4 * num_weights * (2 * 4 + 1)


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 90.0:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60.0)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _peak_memory(device: torch.device) -> int:
    """Most bytes that were in use until now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
