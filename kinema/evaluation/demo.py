"""``kinema demo``: simulate the held-out recording of the bundled world, with nothing else installed."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kinema.data import drawing
from kinema.data.lerobot import Dataset
from kinema.evaluation.simulate import (
    Comparison,
    SimulateConfig,
    compare_episode,
    same_unit,
    table,
    write_comparison,
)
from kinema.evaluation.speed import frames_per_second, measure_latencies, start_streams
from kinema.kits import Quantity, find_probe
from kinema.simulation.world import BUNDLED_WORLDS, default_world, load

WORLD = default_world()
"""The bundled world that is shown."""
RECORDING = BUNDLED_WORLDS / WORLD / "recording"
"""Its held-out recording, a LeRobot dataset of one episode."""
ROWS = (10, 50, 200, 1000, 2000)
"""Steps that the table shows, and the last one."""
SHEET = (0, 5, 10, 25, 50, 100, 200, 350, 500, 1000, 1500, 2000)
"""Steps that the contact sheet shows; 0 is the last real frame that the world was given."""
SPEED = 3
"""The video plays this many times faster than the recording was made."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig:
    out: Path = Path("demo")
    """Folder for the video and the contact sheet."""
    steps: int = 2000
    """Steps to simulate, at most as many as were recorded."""
    seed: int = 0
    """Seed of the simulation's noise."""
    device: str = "auto"
    """Device of the world: cpu, cuda, mps, or auto for the fastest there is."""


def demo(config: DemoConfig) -> None:
    """Simulate, compare, write and print.

    Raises:
        FileNotFoundError: the installed package lacks the recording.
    """
    if not RECORDING.is_dir():
        raise FileNotFoundError(f"{RECORDING}: the bundled recording is missing; install kinema again")
    name, world, dataset = WORLD, load(WORLD, device=config.device), Dataset.open(RECORDING)
    settings = SimulateConfig(world=name, steps=config.steps, seed=config.seed)
    comparison = compare_episode(world, dataset, settings)
    sessions = start_streams(world, comparison.real, 1, settings.context)
    seconds = measure_latencies(sessions, comparison.real, settings.context, steps=50, repeats=5)
    probe = find_probe(world.name, world.cameras, dataset.features)
    quantities = comparison.quantities if probe is None else probe.quantities
    video, sheet = config.out / f"{name}.mp4", config.out / f"{name}.png"
    write_frames(comparison, quantities, video=video, sheet=sheet, fps=SPEED * world.fps)
    num_steps = len(next(iter(comparison.errors.values())))
    print(f"\n{name}, {num_steps:,} steps that the world was not trained on, from its first frames:\n")
    print(table(comparison, quantities, ROWS))
    print(
        "\nErrors, in brackets those of a frame that stands still; what was not found counts as far off as"
        "\ncan be. No model follows contacts for ever: tiny errors grow with each, in the real simulator too."
    )
    if probe is not None:
        print(f"Valid: exactly {probe.things}, each of the right size and colour.")
    print(f"\nspeed  {frames_per_second(seconds)[0]:.0f} frames a second here, one stream, decoded pixels")
    print(f"video  {video} (real | simulated | difference, errors beneath, {SPEED} times as fast)")
    print(f"sheet  {sheet}")
    print("\nYour own recordings, a folder in the LeRobot v3 format, take one line:\n")
    print("  kinema train DATA --out world && kinema simulate world --data DATA --episode 0 --steps 200")


def write_frames(
    comparison: Comparison, quantities: Sequence[Quantity], *, video: Path, sheet: Path, fps: float
) -> None:
    """Write the video of the first camera with the errors beneath, and the contact sheet."""
    camera, simulated = next(iter(comparison.simulated.frames.items()))
    # One frame more than was simulated: the last one that the world was given, where both are the same.
    real = comparison.real.frames[camera][-len(simulated) - 1 :]
    curves = same_unit(quantities, comparison.errors)
    write_comparison(real[1:], simulated, curves, quantities[0].unit, video, fps=fps)
    rows = [real, np.concatenate([real[:1], simulated])]
    shown = [step for step in SHEET if step <= len(simulated)]
    labels = ["real", "simulated", "difference"]
    drawing.write_png(
        sheet, drawing.contact_sheet([*rows, drawing.difference(*rows)], labels=labels, indices=shown)
    )
