"""``kinema evaluate speed``: decoded frames a second alone and batched, latency, memory, and the share of the
rate of this machine's matrix product."""

import dataclasses
import math
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from kinema.evaluation.protocol import RecordingOptions, ResultOptions, Run, WorldOptions, run_protocol
from kinema.evaluation.rollout import Segment, session_generator, start_sessions
from kinema.hardware.packed import can_halve, can_pack
from kinema.kits import Target
from kinema.options import at_least
from kinema.simulation.session import SimulationBatch
from kinema.simulation.world import World

WARM_UP = 10
"""Steps before the clock starts: caches fill, memory is taken."""
MATRIX_SIZE = 1024
MATRIX_SECONDS = 0.5
FEW_STEPS = 1000
"""Memory after the long run is divided by that after so many steps."""
TARGETS = {1: Target(must=60.0, aim=200.0), 64: Target(must=500.0, aim=2000.0)}
"""Frames a second by the number of streams."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedConfig(WorldOptions, RecordingOptions, ResultOptions):
    streams: tuple[int, ...] = (1, 8, 64)
    """Numbers of sessions to step together."""
    steps: int = 50
    """Steps of each repeat."""
    repeats: int = 5
    """Timed repeats of each; the interval is from the slowest to the fastest."""
    memory_steps: int = 0
    """Steps of one stream after which to compare memory with that after 1,000, such as 100000; 0 leaves it
    out."""

    def __post_init__(self) -> None:
        at_least(self, steps=1, repeats=1, memory_steps=0, context=1)
        if not self.streams or min(self.streams) < 1:
            raise ValueError(f"streams is {self.streams}, but must be numbers of at least 1")
        if 0 < self.memory_steps <= FEW_STEPS:
            raise ValueError(f"memory_steps is {self.memory_steps}, but must be 0 or more than {FEW_STEPS}")


def speed(config: SpeedConfig) -> int:
    """Measure, write and print; return 0. Raises ValueError, as ``run_protocol`` does."""
    return run_protocol("speed", config, measure_throughput, axis="streams")


def measure_throughput(run: Run) -> None:
    """Add frames a second and latency for every number of streams, then memory."""
    world, config = run.world, run.config
    (segment,) = run.segments(num=1, length=config.context + 1)
    run.compared.clear()  # Speed does not depend on what was trained on.
    streams, rate = sorted(set(config.streams)), matrix_rate(world.device)
    run.protocol["threads"] = torch.get_num_threads()

    def start(num: int) -> SimulationBatch:
        return start_streams(world, segment, num, config.context, config.num_denoising_steps, config.seed)

    # Operations inside of a compiled graph cannot be counted from outside, and are the same.
    uses_graphs, world.uses_graphs = world.uses_graphs, False
    flops = [count_flops(start(num), segment, config.context) for num in streams]
    world.uses_graphs = uses_graphs
    latencies = [
        measure_latencies(start(num), segment, config.context, steps=config.steps, repeats=config.repeats)
        for num in tqdm(streams, desc="timing", unit=" batches")
    ]
    fps = [frames_per_second(seconds, num) for seconds, num in zip(latencies, streams, strict=True)]
    shares = []
    for num, needed, span in zip(streams, flops, fps, strict=True):
        what = f"{'one stream' if num == 1 else f'{num} streams together'}, decoded frames a second"
        run.number(f"fps/{num}", what, "fps", *span, is_higher_better=True, target=TARGETS.get(num))
        shares.append([needed * each / num / rate for each in span])
        run.number(f"share/{num}", "  share of the matrix rate", "share", *shares[-1])
    run.number("memory/peak", "memory of the process at its peak", "MB", _peak_mb())
    if config.memory_steps:
        _add_memory_growth(run, start(1), segment)
    run.line("fps", "all streams together", "fps", "decoded frames a second", streams, fps)
    for percent in (50, 99):
        spans = [_latency(seconds, percent) for seconds in latencies]
        run.line(f"latency/p{percent}", f"p{percent}", "ms", "latency of one step", streams, spans)
    run.line("share", "of the matrix rate", "share", "arithmetic done", streams, shares)
    run.notes = [
        f"On {world.device} with {torch.get_num_threads()} threads; a product of {MATRIX_SIZE} by "
        f"{MATRIX_SIZE} matrices (float32) makes {rate / 1e9:,.0f} GFLOP/s here.",
        f"A step of one stream is {flops[0] / streams[0] / 1e6:,.1f} MFLOP, the decoder included (matrix "
        "products and convolutions, as PyTorch counts them).",
        "Frames a second are 1 / median latency; the interval is the slowest and the fastest of "
        f"{config.repeats} repeats of {config.steps} steps.",
    ]


def start_streams(
    world: World,
    segment: Segment,
    num: int,
    context: int,
    num_denoising_steps: int | None = None,
    seed: int = 0,
) -> SimulationBatch:
    """Start ``num`` sessions from the same segment."""
    generators = [session_generator(seed, index) for index in range(num)]
    return start_sessions(
        world,
        [segment] * num,
        context=context,
        generators=generators,
        num_denoising_steps=num_denoising_steps,
    )


def stream_actions(segment: Segment, num: int, context: int, step: int) -> np.ndarray:
    """Return the actions ``num A`` of a step of all sessions: those of the segment, in a circle."""
    actions = segment.actions[context - 1 :]
    return np.repeat(actions[None, step % len(actions)], num, axis=0)


def measure_latencies(
    sessions: SimulationBatch, segment: Segment, context: int, *, steps: int, repeats: int
) -> np.ndarray:
    """Return the seconds of each step, ``repeats steps``; frames come back to the processor in every one."""
    seconds = np.empty(WARM_UP + repeats * steps)
    for step in range(len(seconds)):
        actions = stream_actions(segment, len(sessions), context, step)
        began = time.perf_counter()
        sessions.step(actions)
        seconds[step] = time.perf_counter() - began
    return seconds[WARM_UP:].reshape(repeats, steps)


def frames_per_second(seconds: np.ndarray, num: int = 1) -> tuple[float, float, float]:
    """Return frames a second of ``num`` streams at the median latency (seconds ``repeats steps``): the median
    over the repeats, the slowest and the fastest of them."""
    rates = num / np.median(seconds, axis=1)
    return float(np.median(rates)), float(rates.min()), float(rates.max())


def matrix_rate(device: torch.device) -> float:
    """Return floating point operations a second of a large matrix product: the best of half a second."""
    matrix = torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device)
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < MATRIX_SECONDS:
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # Reading a number waits for an accelerator to finish.
        best = min(best, time.perf_counter() - start)
    return 2.0 * MATRIX_SIZE**3 / best


def count_flops(sessions: SimulationBatch, segment: Segment, context: int) -> int:
    """Count floating point operations of one decoded step of all sessions."""
    packed = {}
    # PyTorch does not count products with packed weights by itself.
    if can_pack(torch.float32, "cpu"):
        packed[torch.ops.mkldnn._linear_pointwise] = _linear_flops
        packed[torch.ops.mkldnn._convolution_pointwise] = _convolution_flops
    if can_halve("cpu"):
        packed[torch.ops._quantized.wrapped_fbgemm_linear_fp16_weight] = _linear_flops
    with FlopCounterMode(display=False, custom_mapping=packed) as counter:
        sessions.step(stream_actions(segment, len(sessions), context, 0))
    return counter.get_total_flops()


def _linear_flops(x_shape: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    return 2 * math.prod(x_shape) * out_shape[-1]


def _convolution_flops(
    _: Sequence[int], weight_shape: Sequence[int], *__: Any, out_shape: Sequence[int], **___: Any
) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight_shape[1:])


def _latency(seconds: np.ndarray, percent: float) -> list[float]:
    """Return a percentile in milliseconds, and its range over the repeats."""
    each = 1e3 * np.percentile(seconds, percent, axis=1)
    return [1e3 * float(np.percentile(seconds, percent)), each.min(), each.max()]


def _add_memory_growth(run: Run, session: SimulationBatch, segment: Segment) -> None:
    """Add memory after a long simulation over that after 1,000 steps of it."""
    few, steps = 0.0, run.config.memory_steps
    for step in tqdm(range(steps), desc="long run", unit=" steps"):
        session.step(stream_actions(segment, 1, run.config.context, step))
        if step + 1 == FEW_STEPS:
            few = _now_mb()
    what = f"memory after {steps:,} steps over that after {FEW_STEPS:,}"
    run.number("memory/growth", what, "x", _now_mb() / few, target=Target(must=1.02, aim=1.0))


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _now_mb() -> float:
    """Return the memory that the process holds; its peak where the system does not say."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return _peak_mb()
    return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
