"""What a training takes, said before it begins: parameters, updates, time, memory, disk."""

import dataclasses
import resource
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch

from kinema.data.latents import Rows
from kinema.data.lerobot import Dataset
from kinema.data.segments import Segments
from kinema.model.world import WorldConfig
from kinema.recipes import Recipe
from kinema.simulation.world import World
from kinema.train.checkpoint import read_state
from kinema.train.facts import check_disk, size
from kinema.train.latents import Encoded
from kinema.train.loop import Run, Stage, make_update
from kinema.train.stages import (
    Job,
    Recording,
    decoder_stage,
    dynamics_stage,
    manifold_stage,
    tokenizer_stage,
)

FEWEST_TIMED = 50
"""Stages with fewer updates are not timed."""
SKETCH_ROWS = 64
"""Rows of noise that are timed; no segment of a recipe is longer."""
STAGES = {
    "tokenizer": tokenizer_stage,
    "manifold": manifold_stage,
    "decoder": decoder_stage,
    "dynamics": dynamics_stage,
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one stage."""

    name: str
    num_parameters: int
    num_updates: int
    seconds: float | None
    """Estimated; None where it was not timed."""


def stage_costs(
    run: Run, recipe: Recipe, config: WorldConfig, dataset: Dataset, names: Sequence[str]
) -> list[Cost]:
    """Cost of stages, from a few updates on noise in networks of the same size; nothing else changes."""
    with torch.random.fork_rng():
        job = _sketch(run, recipe, config, dataset)
        return [_cost(STAGES[name](job), run) for name in names]


def say_cost(costs: Sequence[Cost], run: Run, num_bytes: int) -> None:
    """Print what a training takes, in one line.

    Raises:
        ValueError: the disk has no room for it.
    """
    free = check_disk(run.config.out, num_bytes)
    timed = [cost for cost in costs if cost.seconds is not None]
    took = ", ".join(f"{cost.name} {duration(cost.seconds or 0.0)}" for cost in timed)
    total = sum(cost.seconds or 0.0 for cost in timed)
    num_parameters = sum(cost.num_parameters for cost in costs)
    parts = [
        *([f"{num_parameters / 1e6:.3g}M parameters"] if costs else []),
        *([f"{sum(cost.num_updates for cost in costs):,} updates on {run.device}"] if costs else []),
        *([f"about {duration(total)} ({took})"] if timed else []),
        f"{size(_peak_memory(run.device))} of memory",
        f"{size(num_bytes)} of disk ({size(free)} are free)",
    ]
    print("training takes: " + ", ".join(parts), flush=True)


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


def _cost(stage: Stage, run: Run) -> Cost:
    """Cost of what is left of a stage."""
    done = (read_state(run.folder / stage.name) or {"update": 0})["update"]
    num_updates, seconds, first = stage.schedule.updates - done, 0.0, 0
    for phase in stage.schedule.phases:
        num_left = min(phase.updates, first + phase.updates - done)
        if num_updates >= FEWEST_TIMED and num_left > 0:
            seconds += num_left * _seconds_of(stage, first, run)
        first += phase.updates
    num_parameters = sum(p.numel() for p in stage.module.parameters())
    return Cost(stage.name, num_parameters, num_updates, seconds if seconds else None)


def _seconds_of(stage: Stage, update: int, run: Run) -> float:
    """Seconds of an update: the second of two, since the first one prepares much."""
    taken = 0.0
    for _ in range(2):
        _wait(run.device)
        began = time.perf_counter()
        make_update(stage.module, stage.loader.make(update), stage.optimizer, run.config.precision)
        _wait(run.device)
        taken = time.perf_counter() - began
    return taken


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_memory(device: torch.device) -> int:
    """Most bytes that were in use until now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _sketch(run: Run, recipe: Recipe, config: WorldConfig, dataset: Dataset) -> Job:
    """A job of the same sizes, of which the rows are noise."""
    rng, dynamics = np.random.default_rng(0), config.dynamics
    segments = Segments(
        frames={
            camera.key: rng.integers(0, 256, (SKETCH_ROWS, *size, 3), dtype=np.uint8)
            for camera, size in zip(config.cameras, config.learned_sizes, strict=True)
        },
        actions=rng.normal(size=(SKETCH_ROWS, len(config.actions))).astype(np.float32),
        proprio=None,
        lengths=np.array([SKETCH_ROWS]),
        native_sizes={},
    )
    values = Encoded(
        Rows([torch.randn(SKETCH_ROWS, dynamics.num_latents, dynamics.latent_dim).half()]),
        torch.randn(SKETCH_ROWS, dynamics.proprio_dim),
        torch.randn(SKETCH_ROWS, dynamics.action_dim),
    )
    job = Job(run, World(config).to(run.device), recipe, [Recording(dataset, segments, "")], np.zeros(0))
    job.encoded, job.values, job.surprise = [values], values, None
    return job
