"""``kinema evaluate speed``: decoded frames a second alone and batched, latency, memory, and the share of the
rate of this machine's matrix product."""

import dataclasses
import math
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from kinema.evaluation.result import Result, Row, Series, describe_run, plain
from kinema.evaluation.rollout import Clip, load_clips, open_recordings
from kinema.evaluation.speed import measure_latencies, start_streams, stream_actions
from kinema.hardware.packed import can_halve, can_pack
from kinema.simulation.session import SimulationBatch
from kinema.simulation.world import World, load

MATRIX_SIZE = 1024
MATRIX_SECONDS = 0.5
FEW_STEPS = 1000
"""Memory after the long run is told over that after so many steps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    world: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WORLD")]
    """Name of a bundled world, folder of a world, or its Hub id."""
    data: str | None = None
    """Recorded episodes to start from (a LeRobot folder or Hub id); by default what the world brings."""
    streams: tuple[int, ...] = (1, 8, 64)
    """Numbers of sessions to step together."""
    steps: int = 50
    """Steps of each repeat."""
    repeats: int = 5
    """Timed repeats of each; the interval is from the slowest to the fastest."""
    memory_steps: int = 0
    """Steps of one stream after which to compare memory with that after 1,000, such as 100000; 0 leaves it
    out."""
    context: int = 4
    """Recorded frames to start from."""
    num_denoising_steps: int | None = None
    """Network calls for a frame; the world's own by default."""
    device: str = "auto"
    """Device to compute on: auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1 or mps."""
    out: Path = Path("evaluation")
    """Folder for speed.json, speed.png and speed.html."""
    json: bool = False
    """Print the numbers as JSON instead of a table."""

    def __post_init__(self) -> None:
        for name, value in {"steps": 1, "repeats": 1, "memory_steps": 0, "context": 1}.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least {value}")
        if not self.streams or min(self.streams) < 1:
            raise ValueError(f"streams is {self.streams}, but must be numbers of at least 1")
        if 0 < self.memory_steps <= FEW_STEPS:
            raise ValueError(f"memory_steps is {self.memory_steps}, but must be 0 or more than {FEW_STEPS}")


def speed(config: SpeedConfig) -> int:
    """Measure, write and print; 0 when done.

    Raises:
        ValueError: the world or the data cannot be read, or do not fit each other.
    """
    world = load(config.world, device=config.device)
    dataset = open_recordings(config.world, config.data)
    (clip,) = load_clips(world, dataset, num=1, length=config.context + 1, probe=None)
    result = measure_throughput(world, clip, config, source=str(dataset.root))
    paths = result.write(config.out)
    result.tell(paths, as_json=config.json)
    return 0


def measure_throughput(world: World, clip: Clip, config: SpeedConfig, *, source: str) -> Result:
    """Frames a second and latency for every number of streams, then memory."""
    streams = sorted(set(config.streams))
    rate = matrix_rate(world.device)

    def start(num: int) -> SimulationBatch:
        return start_streams(
            world, clip, num, context=config.context, num_denoising_steps=config.num_denoising_steps
        )

    # What a graph computes cannot be counted from outside, and is the same.
    uses_graphs, world.uses_graphs = world.uses_graphs, False
    flops = [count_flops(start(num), clip, config) for num in streams]
    world.uses_graphs = uses_graphs
    latencies = [
        measure_latencies(
            start(num), clip, context=config.context, steps=config.steps, repeats=config.repeats
        )
        for num in tqdm(streams, desc="timing", unit=" batches")
    ]
    rows, fps, shares = [], [], []
    for num, needed, seconds in zip(streams, flops, latencies, strict=True):
        rates = num / np.median(seconds, axis=1)
        fps.append((float(np.median(rates)), float(rates.min()), float(rates.max())))
        shares.append(tuple(needed * each / num / rate for each in fps[-1]))
        what = "one stream" if num == 1 else f"{num} streams together"
        value, low, high = fps[-1]
        must, aim = {1: (60.0, 200.0), 64: (500.0, 2000.0)}.get(num, (None, None))
        rows.append(
            Row(
                key=f"fps/{num}",
                what=f"{what}, decoded frames a second",
                value=value,
                unit="fps",
                low=low,
                high=high,
                must=must,
                aim=aim,
                is_higher_better=True,
            )
        )
        value, low, high = shares[-1]
        what = "  share of the matrix rate"
        rows.append(Row(key=f"share/{num}", what=what, value=value, unit="share", low=low, high=high))
    rows.append(Row(key="memory/peak", what="memory of the process at its peak", value=_peak_mb(), unit="MB"))
    if config.memory_steps:
        rows.append(_memory_row(start(1), clip, config))
    return Result(
        name="speed",
        world=world.name,
        data=source,
        axis="streams",
        protocol={**plain(config), "threads": torch.get_num_threads()},
        run=describe_run(world),
        rows=rows,
        series=_series(streams, latencies, fps, shares),
        notes=[
            f"On {world.device} with {torch.get_num_threads()} threads; a product of {MATRIX_SIZE} by "
            f"{MATRIX_SIZE} matrices (float32) makes {rate / 1e9:,.0f} GFLOP/s here.",
            f"A step of one stream is {flops[0] / streams[0] / 1e6:,.1f} MFLOP, the decoder included (matrix "
            "products and convolutions, as PyTorch counts them).",
            "Frames a second are 1 / median latency; the interval is the slowest and the fastest of "
            f"{config.repeats} repeats of {config.steps} steps.",
        ],
    )


def matrix_rate(device: torch.device) -> float:
    """Floating point operations a second of a large matrix product: the best of those that fit into half a
    second."""
    matrix = torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device)
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < MATRIX_SECONDS:
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # Reading a number waits for an accelerator to finish.
        best = min(best, time.perf_counter() - start)
    return 2.0 * MATRIX_SIZE**3 / best


def count_flops(sessions: SimulationBatch, clip: Clip, config: SpeedConfig) -> int:
    """Floating point operations of one decoded step of all sessions."""
    packed = {}
    # What multiplies by packed weights PyTorch does not count by itself.
    if can_pack(torch.float32, "cpu"):
        packed[torch.ops.mkldnn._linear_pointwise] = _linear_flops
        packed[torch.ops.mkldnn._convolution_pointwise] = _convolution_flops
    if can_halve("cpu"):
        packed[torch.ops._quantized.wrapped_fbgemm_linear_fp16_weight] = _linear_flops
    counter = FlopCounterMode(display=False, custom_mapping=packed)
    with counter:
        sessions.step(stream_actions(clip, len(sessions), config.context, 0))
    return counter.get_total_flops()


def _linear_flops(x_shape: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    return 2 * math.prod(x_shape) * out_shape[-1]


def _convolution_flops(
    _: Sequence[int], weight_shape: Sequence[int], *__: Any, out_shape: Sequence[int], **___: Any
) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight_shape[1:])


def _series(
    streams: list[int],
    latencies: list[np.ndarray],
    fps: Sequence[tuple[float, ...]],
    shares: Sequence[tuple[float, ...]],
) -> list[Series]:
    def series(key: str, what: str, unit: str, panel: str, values: Sequence[tuple[float, ...]]) -> Series:
        value, low, high = (list(part) for part in zip(*values, strict=True))
        return Series(key=key, what=what, unit=unit, panel=panel, at=streams, value=value, low=low, high=high)

    def spread(seconds: np.ndarray, percent: float) -> tuple[float, ...]:
        each = 1e3 * np.percentile(seconds, percent, axis=1)
        whole = 1e3 * float(np.percentile(seconds, percent))
        return whole, float(each.min()), float(each.max())

    return [
        series("fps", "all streams together", "fps", "decoded frames a second", fps),
        series("latency/p50", "p50", "ms", "latency of one step", [spread(s, 50) for s in latencies]),
        series("latency/p99", "p99", "ms", "latency of one step", [spread(s, 99) for s in latencies]),
        series("share", "of the matrix rate", "share", "arithmetic done", shares),
    ]


def _memory_row(session: SimulationBatch, clip: Clip, config: SpeedConfig) -> Row:
    """Memory after a long simulation over that after 1,000 steps of it."""
    few = 0.0
    for step in tqdm(range(config.memory_steps), desc="long run", unit=" steps"):
        session.step(stream_actions(clip, 1, config.context, step))
        if step + 1 == FEW_STEPS:
            few = _now_mb()
    return Row(
        key="memory/growth",
        what=f"memory after {config.memory_steps:,} steps over that after {FEW_STEPS:,}",
        value=_now_mb() / few,
        unit="x",
        must=1.02,
        aim=1.0,
    )


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _now_mb() -> float:
    """Memory that the process holds now; where the system does not tell, its peak."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return _peak_mb()
    return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
