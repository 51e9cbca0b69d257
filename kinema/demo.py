"""``kinema demo``: the bundled world against its held-out recording, with nothing else installed."""

import dataclasses
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import kinema
from kinema import view
from kinema.data.lerobot import Dataset
from kinema.evaluation import pusht

RECORDING = Path(__file__).parent / "worlds" / "pusht" / "recording"
ROWS = (10, 50, 200, 1000, 2000)
"""Steps that the table shows."""
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
    context: int = 8
    """Real frames to start from."""
    seed: int = 0
    """Seed of the simulation."""

    def __post_init__(self) -> None:
        for name in ("steps", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Errors:
    """Distances step by step, NaN where either picture does not show the thing."""

    agent: np.ndarray
    """``T``: in 64ths of the picture."""
    block: np.ndarray
    """``T``: of the centre of mass, in 64ths of the picture."""
    angle: np.ndarray
    """``T``: degrees."""


def demo(config: DemoConfig) -> None:
    """Simulate, compare, and say where the pictures are."""
    if not RECORDING.is_dir():
        raise FileNotFoundError(f"{RECORDING}: the bundled recording is missing; install kinema again")
    world = kinema.load("pusht")
    camera = world.cameras[0]
    episode = Dataset.open(RECORDING).episode(0, cameras=[camera])
    frames, actions = episode.frames[camera], episode.columns["action"]
    steps = min(config.steps, len(frames) - config.context)
    if steps < 1:
        raise ValueError(f"context is {config.context}, but the recording has only {len(frames)} frames")
    start, end = config.context - 1, config.context - 1 + steps

    simulation = world.start(
        frames[: start + 1], actions[:start], generator=torch.Generator().manual_seed(config.seed)
    )
    simulated = np.empty_like(frames[:steps])
    began = time.perf_counter()
    for index in tqdm(range(steps), desc="simulating", unit=" steps"):
        frame = simulation.step(actions[start + index]).frame
        assert isinstance(frame, np.ndarray), "the bundled world has one camera"
        simulated[index] = frame
    speed = steps / (time.perf_counter() - began)

    real = frames[start + 1 : end + 1]
    seen, imagined = pusht.detect(real), pusht.detect(simulated)
    still = pusht.detect(np.repeat(frames[start][None], steps, axis=0))
    errors = compare(seen, imagined)
    film, sheet = config.out / "pusht.mp4", config.out / "pusht.png"
    pictures = view.error_curve(
        view.side_by_side(real, simulated), {"agent": errors.agent, "block": errors.block}, unit="px"
    )
    view.write_video(film, tqdm(pictures, desc="filming", total=steps, unit=" frames"), fps=SPEED * world.fps)
    with_start = [np.concatenate([frames[start][None], rows]) for rows in (real, simulated)]
    view.write_png(
        sheet,
        view.contact_sheet(
            [*with_start, view.difference(*with_start)],
            labels=["real", "simulated", "difference"],
            indices=[step for step in SHEET if step <= steps],
        ),
    )
    print(f"\nPushT, {steps:,} steps that the world was not trained on, from {start + 1} real frames:\n")
    print(table(errors, compare(seen, still), imagined.is_valid))
    print(f"\nspeed    {speed:.0f} frames a second here, one stream, decoded pixels")
    print(f"film     {film} (real | simulated | difference, errors beneath, {SPEED} times as fast)")
    print(f"sheet    {sheet}")
    print("\nYour own recordings, a folder in the LeRobot v3 format, take one line:\n")
    print("  kinema train DATA --out world && kinema simulate world --data DATA --episode 0 --steps 200")


def compare(real: pusht.Detection, other: pusht.Detection) -> Errors:
    """Distances between what was found in the real pictures and in others of the same steps."""
    has_agent = real.has_agent & other.has_agent
    has_block = real.has_block & other.has_block
    angle = np.degrees(np.abs(pusht.wrap_angle(other.angle - real.angle)))
    return Errors(
        agent=np.where(has_agent, np.linalg.norm(other.agent - real.agent, axis=1), np.nan),
        block=np.where(has_block, np.linalg.norm(other.block - real.block, axis=1), np.nan),
        angle=np.where(has_block, angle, np.nan),
    )


def table(errors: Errors, still: Errors, is_valid: np.ndarray) -> str:
    """The errors at a few steps, beside those of a picture that stands still, in lines of text."""
    steps = len(is_valid)
    lines = [
        "          simulated                 the start, standing still",
        "  step    agent   block   angle     agent   block   angle     valid so far",
    ]
    for step in [*(row for row in ROWS if row < steps), min(steps, ROWS[-1])]:
        at = step - 1
        cells = [
            _cell(errors.agent[at], ""),
            _cell(errors.block[at], ""),
            _cell(errors.angle[at], "°"),
            "  " + _cell(still.agent[at], ""),
            _cell(still.block[at], ""),
            _cell(still.angle[at], "°"),
        ]
        lines.append(f"{step:>6} {' '.join(cells)}    {is_valid[:step].mean():>9.1%}")
    lines += [
        "",
        "Distances in pixels of the 64 pixel picture, - where the thing was not found. Valid: exactly one",
        "agent and one block of the right size and colour. No model follows a pushed block for ever: tiny",
        "errors grow with each contact, in the real simulator too.",
    ]
    return "\n".join(lines)


def _cell(value: float, unit: str) -> str:
    return f"{value:.1f}{unit or ' '}".rjust(7) if np.isfinite(value) else "- ".rjust(7)
