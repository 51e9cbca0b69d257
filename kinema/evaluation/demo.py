"""``kinema demo``: the bundled world against its held-out recording, with nothing else installed."""

import dataclasses
from pathlib import Path

import numpy as np
from tqdm import tqdm

from kinema.data import view
from kinema.data.lerobot import Dataset
from kinema.evaluation.simulate import Comparison, SimulateConfig, compare_episode
from kinema.evaluation.speed import measure_speed
from kinema.evaluation.table import align
from kinema.kits.pusht.probe import PushTProbe
from kinema.simulation.session import BUNDLED_WORLDS, load

RECORDING = BUNDLED_WORLDS / "pusht" / "recording"
"""The held-out recording that ships with the world, a LeRobot dataset of one episode."""
ROWS = (10, 50, 200, 1000, 2000)
"""Steps that the table shows, and the last one."""
SHEET = (0, 5, 10, 25, 50, 100, 200, 350, 500, 1000, 1500, 2000)
"""Steps that the contact sheet shows; 0 is the last real frame that the world was given."""
SPEED = 3
"""The film plays this many times faster than the recording was made."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig:
    out: Path = Path("demo")
    """Folder for the film and the contact sheet."""
    steps: int = 2000
    """Steps to simulate, at most as many as were recorded."""
    seed: int = 0
    """Of the simulation's noise."""


def demo(config: DemoConfig) -> None:
    """Simulate, compare, and say where the pictures are."""
    if not RECORDING.is_dir():
        raise FileNotFoundError(f"{RECORDING}: the bundled recording is missing; install kinema again")
    world = load("pusht")
    settings = SimulateConfig(world="pusht", steps=config.steps, seed=config.seed)
    comparison = compare_episode(world, Dataset.open(RECORDING), settings)
    speed = measure_speed(world, comparison.clip, context=settings.context, steps=50, repeats=5)
    is_valid = PushTProbe(world.cameras[0]).read(comparison.frames).is_valid
    film, sheet = config.out / "pusht.mp4", config.out / "pusht.png"
    write_pictures(comparison, film=film, sheet=sheet, fps=SPEED * world.fps)
    print(f"\nPushT, {len(is_valid):,} steps that the world was not trained on, from its first frames:\n")
    print(table(comparison, is_valid))
    print(
        "\nErrors in pixels of the 64 pixel picture, in brackets those of a picture that stands still; what"
        "\nwas not found counts as far off as can be. Valid: exactly one agent and one block of the right"
        "\nsize and colour. No model follows a pushed block for ever: tiny errors grow with each contact, in"
        "\nthe real simulator too.\n"
    )
    print(f"speed  {speed.fps:.0f} frames a second here, one stream, decoded pixels")
    print(f"film   {film} (real | simulated | difference, errors beneath, {SPEED} times as fast)")
    print(f"sheet  {sheet}")
    print("\nYour own recordings, a folder in the LeRobot v3 format, take one line:\n")
    print("  kinema train DATA --out world && kinema simulate world --data DATA --episode 0 --steps 200")


def table(comparison: Comparison, is_valid: np.ndarray) -> str:
    """Errors at a few steps, those of standing still in brackets, and the share of valid frames so far."""
    steps = len(is_valid)
    lines = [["step", *(f"{q.label}, {q.unit}" for q in PushTProbe.quantities), "valid so far"]]
    for step in [*(row for row in ROWS if row < steps), steps]:
        cells = [
            f"{comparison.errors[q.key][step - 1]:.1f} ({comparison.still[q.key][step - 1]:.1f})"
            for q in PushTProbe.quantities
        ]
        lines.append([f"{step:,}", *cells, f"{is_valid[:step].mean():.1%}"])
    return align(lines).replace("nan", "-")


def write_pictures(comparison: Comparison, *, film: Path, sheet: Path, fps: float) -> None:
    """The film with the errors beneath, and the contact sheet."""
    (camera,) = comparison.frames
    simulated = comparison.frames[camera]
    frames = comparison.clip.frames[camera]
    # One frame more than was simulated: the last one that the world was given, where both are the same.
    real = frames[len(frames) - len(simulated) - 1 :]
    start = real[:1]
    curves = {q.label: comparison.errors[q.key] for q in PushTProbe.quantities if q.unit == "px"}
    pictures = view.error_curve(view.side_by_side(real[1:], simulated), curves, unit="px")
    progress = tqdm(pictures, desc="filming", total=len(simulated), unit=" frames")
    view.write_video(film, (picture for picture in progress), fps=fps)
    rows = [real, np.concatenate([start, simulated])]
    shown = [step for step in SHEET if step <= len(simulated)]
    labels = ["real", "simulated", "difference"]
    view.write_png(sheet, view.contact_sheet([*rows, view.difference(*rows)], labels=labels, indices=shown))
