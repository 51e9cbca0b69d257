"""How fast a world makes decoded pictures, one stream alone."""

import dataclasses
import time

import numpy as np
import torch

from kinema.evaluation.rollout import Clip
from kinema.simulation import World

WARM_UP = 10
"""Steps before the clock starts: caches fill, memory is taken."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """Time of one step, over several repeats."""

    fps: float
    """Decoded frames a second at the median latency; the median over the repeats."""
    slowest: float
    """The same of the slowest repeat."""
    fastest: float
    """The same of the fastest repeat."""
    p50_ms: float
    p99_ms: float
    num_threads: int
    """Threads that PyTorch used."""


def measure_speed(world: World, clip: Clip, *, context: int, steps: int, repeats: int) -> Speed:
    """Steps one session again and again through the clip's actions, and decodes every step."""
    frames = {key: pictures[:context] for key, pictures in clip.frames.items()}
    proprio = None if clip.proprio is None else clip.proprio[:context]
    simulation = world.start(
        frames or None,
        clip.actions[: context - 1],
        proprio=proprio,
        generator=torch.Generator().manual_seed(0),
    )
    actions = clip.actions[context - 1 :]
    for index in range(WARM_UP):
        simulation.step(actions[index % len(actions)])
    latencies = np.empty((repeats, steps))
    for repeat in range(repeats):
        for index in range(steps):
            began = time.perf_counter()
            simulation.step(actions[(repeat * steps + index) % len(actions)])
            latencies[repeat, index] = time.perf_counter() - began
    rates = 1.0 / np.median(latencies, axis=1)
    return Speed(
        fps=float(np.median(rates)),
        slowest=float(rates.min()),
        fastest=float(rates.max()),
        p50_ms=1e3 * float(np.median(latencies)),
        p99_ms=1e3 * float(np.percentile(latencies, 99)),
        num_threads=torch.get_num_threads(),
    )
