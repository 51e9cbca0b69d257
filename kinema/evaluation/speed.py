"""How fast a world makes decoded pictures, one stream alone."""

import dataclasses
import time

import numpy as np
import torch

from kinema.evaluation.rollout import Clip, session_generator
from kinema.simulation.session import SimulationBatch
from kinema.simulation.world import World

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


def start_streams(
    world: World, clip: Clip, num: int, *, context: int, num_denoising_steps: int | None = None
) -> SimulationBatch:
    """``num`` sessions that all begin with a clip."""
    proprio = None if clip.proprio is None else np.repeat(clip.proprio[None, :context], num, axis=0)
    frames = {key: np.repeat(pictures[None, :context], num, axis=0) for key, pictures in clip.frames.items()}
    return world.start_batch(
        frames or None,
        np.repeat(clip.actions[None, : context - 1], num, axis=0),
        proprio=proprio,
        generators=[session_generator(0, index) for index in range(num)],
        num_denoising_steps=num_denoising_steps,
    )


def stream_actions(clip: Clip, num: int, context: int, step: int) -> np.ndarray:
    """Actions ``num A`` of a step of all sessions, the clip's again and again."""
    actions = clip.actions[context - 1 :]
    return np.repeat(actions[None, step % len(actions)], num, axis=0)


def measure_latencies(
    sessions: SimulationBatch, clip: Clip, *, context: int, steps: int, repeats: int
) -> np.ndarray:
    """Seconds of each step, ``repeats steps``; pictures come back to the processor in every one."""
    seconds = np.empty(WARM_UP + repeats * steps)
    for step in range(len(seconds)):
        actions = stream_actions(clip, len(sessions), context, step)
        began = time.perf_counter()
        sessions.step(actions)
        seconds[step] = time.perf_counter() - began
    return seconds[WARM_UP:].reshape(repeats, steps)


def measure_speed(world: World, clip: Clip, *, context: int, steps: int, repeats: int) -> Speed:
    """Steps one session again and again through the clip's actions, and decodes every step."""
    sessions = start_streams(world, clip, 1, context=context)
    latencies = measure_latencies(sessions, clip, context=context, steps=steps, repeats=repeats)
    rates = 1.0 / np.median(latencies, axis=1)
    return Speed(
        fps=float(np.median(rates)),
        slowest=float(rates.min()),
        fastest=float(rates.max()),
        p50_ms=1e3 * float(np.median(latencies)),
        p99_ms=1e3 * float(np.percentile(latencies, 99)),
        num_threads=torch.get_num_threads(),
    )
