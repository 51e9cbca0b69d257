"""Training and simulation on an accelerator: share of its matrix rate, frames a second, and whether the
numbers are those of the CPU.

    python benchmarks/gpu.py [--device cuda] [--widths 384 1024] [--heights 64 128 256]

All networks have random weights and see noise, so nothing but PyTorch and kinema is needed.
"""

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import torch
import tyro
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kinema.data.dimensions import Dimension
from kinema.hardware.machine import dtype_of, find_device
from kinema.model.objective import DynamicsBatch, DynamicsObjective, DynamicsObjectiveConfig
from kinema.model.tokens import DynamicsConfig, Values
from kinema.model.transformer import Dynamics
from kinema.model.world import CameraConfig, WorldConfig
from kinema.simulation.world import World
from kinema.tokenizers import ConvTokenizerConfig
from kinema.types import Precision

STRIDE = 16
CAMERA = "observation.images.top"
ACTION_DIM, LATENT_DIM = 7, 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    device: str = "auto"
    """Device to measure: auto, cuda, mps or cpu."""
    precision: Precision = "auto"
    """Precision of large matrix products."""
    widths: tuple[int, ...] = (384, 1024)
    """Widths of the dynamics that is trained, of 8 blocks: about 18M and 124M parameters."""
    heights: tuple[int, ...] = (64, 128, 256)
    """Height and width of simulated frames in pixels."""
    sessions: tuple[int, ...] = (1, 64)
    """Numbers of sessions that step together."""
    batch: int = 64
    """Segments of 16 frames in a training batch."""
    repeats: int = 10
    """Timed updates and steps."""


def wait(device: torch.device) -> None:
    """Wait until the device has computed everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the median time of a call, after two that prepare."""
    times = []
    for _ in range(2 + repeats):
        wait(device)
        began = time.perf_counter()
        function()
        wait(device)
        times.append(time.perf_counter() - began)
    return float(np.median(times[2:]))


def matrix_rate(device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    """Return multiplications and additions a second in a large matrix product."""
    size = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    return 2.0 * size**3 / seconds_of(lambda: matrix @ matrix, device, repeats)


def random_weights(module: nn.Module) -> None:
    """Give every parameter a random value: networks begin with zeros in their last maps."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim >= 2 else 16
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)


def dynamics_config(height: int, width: int, depth: int) -> DynamicsConfig:
    """Sizes of a dynamics over square frames of one camera."""
    side = height // STRIDE
    return DynamicsConfig(
        grids=((side, side),),
        latent_dim=LATENT_DIM,
        action_dim=ACTION_DIM,
        patch=max(1, side // 8),
        width=width,
        depth=depth,
        num_heads=width // 64,
    )


def train(config: Config, width: int, device: torch.device, rate: float) -> None:
    """Print what an update takes."""
    dynamics = Dynamics(dynamics_config(64, width, 8)).to(device)
    objective = DynamicsObjective(dynamics, DynamicsObjectiveConfig(mixed_share=1.0))
    optimizer = torch.optim.AdamW(dynamics.parameters(), 1e-4, fused=True)
    shape = (config.batch, 16)
    values = Values(
        torch.randn(*shape, dynamics.config.num_latents, LATENT_DIM, device=device),
        torch.zeros(*shape, 0, device=device),
        torch.randn(*shape, ACTION_DIM, device=device),
    )
    batch = DynamicsBatch(values, torch.ones(shape, dtype=torch.bool, device=device))
    is_half = dtype_of(config.precision, device) is torch.bfloat16
    generator = torch.Generator(device).manual_seed(0)

    def update() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=is_half):
            loss, _ = objective(batch, generator=generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    counter = FlopCounterMode(display=False)
    with counter:
        update()
    seconds = seconds_of(update, device, config.repeats)
    share = counter.get_total_flops() / seconds / rate
    million = sum(p.numel() for p in dynamics.parameters()) / 1e6
    frames = config.batch * 16 / seconds
    print(f"training {million:.0f}M: {share:.1%} of the matrix rate, {frames:,.0f} frames/s", flush=True)


def make_world(height: int, device: str, precision: Precision) -> World:
    """A world of one camera with random weights, the same on every device."""
    widths = (48, 96, 192)
    world = World(
        WorldConfig(
            name="noise",
            fps=10.0,
            cameras=(CameraConfig(key=CAMERA, native_height=height, native_width=height),),
            proprio_key=None,
            actions=tuple(Dimension(name=f"action_{index}") for index in range(ACTION_DIM)),
            tokenizer=ConvTokenizerConfig(
                height=height, width=height, encoder_widths=widths, decoder_widths=widths
            ),
            dynamics=dynamics_config(height, 256, 6),
        )
    )
    random_weights(world)
    world.precision = precision
    return world.to(torch.device(device)).eval()


def simulate(config: Config, height: int, device: torch.device) -> None:
    """Print frames a second, and how far frames are from those that the CPU computes."""
    rng = np.random.default_rng(0)
    for num in config.sessions:
        world = make_world(height, str(device), config.precision)
        frames = rng.integers(0, 256, (num, 4, height, height, 3), dtype=np.uint8)
        actions = rng.normal(size=(num, 3, ACTION_DIM)).astype(np.float32)
        sim = world.start_batch(frames, actions)
        seconds = seconds_of(lambda sim=sim, given=actions[:, 0]: sim.step(given), device, config.repeats)
        print(f"{height} pixels, {num} sessions: {num / seconds:,.0f} frames/s", flush=True)
    frames, actions = frames[:1], actions[:1]
    shown = []
    for place in (str(device), "cpu"):
        sim = make_world(height, place, "float32").start_batch(frames, actions)
        shown.append(np.stack([sim.step(actions[:, index]).frame for index in range(3)]).astype(float))
    largest = np.abs(shown[0] - shown[1]).max()
    print(f"{height} pixels: at most {largest:.0f} grey levels from the CPU after 3 steps", flush=True)


def main(config: Config) -> None:
    """Measure training, then simulation."""
    device = find_device(config.device)
    dtype = dtype_of(config.precision, device)
    rate = matrix_rate(device, dtype, config.repeats)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    print(f"{name}: {rate / 1e12:.2f} TFLOP/s in matrix products of {dtype}", flush=True)
    for width in config.widths:
        train(config, width, device, rate)
    for height in config.heights:
        simulate(config, height, device)


if __name__ == "__main__":
    main(tyro.cli(Config))
