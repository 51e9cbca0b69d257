"""``kinema simulate``: a recorded episode simulated from its first frames, beside what really happened."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tqdm import tqdm

from kinema.data import drawing
from kinema.data.files import to_json, write_text
from kinema.data.frames import join_cameras
from kinema.data.lerobot import DataError, Dataset
from kinema.evaluation.image_distance import psnr_of_rms
from kinema.evaluation.plot import error_video
from kinema.evaluation.report import ReportConfig, measure
from kinema.evaluation.rollout import (
    PICTURE,
    PROPRIO,
    Clip,
    by_camera,
    check_dataset,
    cut_clip,
    note_on_training,
    open_recordings,
    picture_error,
    proprio_error,
    repeat_last,
    roll_out,
    session_generator,
)
from kinema.evaluation.tables import align
from kinema.kits import Probe, Quantity, errors, find_probe
from kinema.simulation.world import World, load

FILM_WIDTH = 768
"""Films are enlarged up to about this width."""
CURVE_HEIGHT = 120
ROWS = (1, 10, 25, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
"""Steps that the table shows, and the last one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    world: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WORLD")]
    """Name of a bundled world, folder of a world, or its Hub id."""
    data: str | None = None
    """Recordings to compare with: a LeRobot folder or Hub id; by default what the world brings along."""
    episode: int = 0
    """Which episode of the recordings."""
    steps: int = 200
    """Steps to simulate, at most as many as were recorded."""
    context: int = 4
    """Recorded frames to start from."""
    seed: int = 0
    """Seed of the simulation's noise; the first of several seeds in a report."""
    num_denoising_steps: int | None = None
    """Network calls for a frame; the world's own by default."""
    device: str = "auto"
    """Device to compute on: auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1 or mps."""
    out: Path = Path("simulation")
    """Folder for the film, the contact sheet and the numbers."""
    report: bool = False
    """Measure many episodes and seeds instead of showing one; --protocol.* are its settings."""
    json: bool = False
    """Print the numbers as JSON instead of a table."""
    protocol: ReportConfig = dataclasses.field(default_factory=ReportConfig)
    """Settings of the report."""

    def __post_init__(self) -> None:
        for name, least in (("episode", 0), ("steps", 1), ("context", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least {least}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A simulation beside the recording; all arrays have one entry for each simulated step."""

    clip: Clip
    frames: dict[str, np.ndarray]
    """Simulated pictures by camera, ``T H W C``."""
    errors: dict[str, np.ndarray]
    """By the key of a quantity."""
    still: dict[str, np.ndarray]
    """The errors of repeating the last given frame instead."""
    quantities: tuple[Quantity, ...]
    proprio: np.ndarray | None
    """Simulated proprioception ``T P`` in the units of the dataset, where the world knows it."""
    trust: np.ndarray | None
    """``T``, where the world tells it."""


def simulate(config: SimulateConfig) -> int:
    """Simulate, compare, write and print; 0 when done.

    Raises:
        ValueError: the world or the data cannot be read, or do not fit each other or what is asked.
    """
    world = load(config.world, device=config.device)
    dataset = open_recordings(config.world, config.data)
    if config.report:
        measured = measure(
            world,
            config.world,
            dataset,
            config=config.protocol,
            context=config.context,
            seed=config.seed,
            num_denoising_steps=config.num_denoising_steps,
        )
        measured.tell(measured.write(config.out), as_json=config.json)
        return 0
    comparison = compare_episode(world, dataset, config)
    written = _write_pictures(comparison, world, config)
    numbers = _numbers(comparison, world, dataset, config)
    path = config.out / "simulation.json"
    write_text(path, numbers)
    if config.json:
        print(numbers)
        return 0
    print(f"\n{_headline(comparison, dataset, config)}\n\n{_table(comparison)}\n")
    for note in note_on_training(config.world, dataset, [config.episode]):
        print(f"{note}\n")
    print("\n".join(f"{what:<8} {place}" for what, place in [*written, ("numbers", path)]))
    return 0


def compare_episode(world: World, dataset: Dataset, config: SimulateConfig) -> Comparison:
    """Simulates an episode from its first frames under its own actions. Raises DataError, WorldError."""
    check_dataset(world, dataset)
    if config.episode >= dataset.num_episodes:
        raise DataError(
            f"no such episode; there are {dataset.num_episodes}, counted from 0",
            path=dataset.root,
            episode=config.episode,
        )
    recorded = int(dataset.lengths()[config.episode])
    if recorded <= config.context:
        raise DataError(
            f"has {recorded} frames, too few for --context {config.context} and one to simulate",
            path=dataset.root,
            episode=config.episode,
        )
    steps = min(config.steps, recorded - config.context)
    probe = find_probe(world.name, world.cameras, dataset.features)
    episode = dataset.episode(config.episode, cameras=world.cameras)
    clip = cut_clip(world, episode, 0, config.context + steps, probe)
    first = config.context - 1
    rollout = roll_out(
        world,
        [clip],
        clip.actions[None, first : first + steps],
        context=config.context,
        generators=[session_generator(config.seed, 0)],
        num_denoising_steps=config.num_denoising_steps,
    )
    frames: dict[str, list[np.ndarray]] = {key: [] for key in world.cameras}
    proprio, trust = [], []
    for step in tqdm(rollout, total=steps, desc="simulating", unit=" steps"):
        for key, pictures in by_camera(world, step).items():
            frames[key].append(pictures[0])
        if step.proprio is not None:
            proprio.append(step.proprio[0])
        if step.trust is not None:
            trust.append(step.trust[0])
    simulated = {key: np.stack(pictures) for key, pictures in frames.items()}
    measured = _measure(world, clip, config.context, simulated, proprio, probe)
    still = repeat_last(world, [clip], context=config.context, probe=probe)
    known = (*(probe.quantities if probe is not None else ()), PICTURE, PROPRIO)
    return Comparison(
        clip=clip,
        frames=simulated,
        errors=measured,
        still={key: values[0, 0] for key, values in still.items()},
        quantities=tuple(quantity for quantity in known if quantity.key in measured),
        proprio=np.stack(proprio) if proprio else None,
        trust=np.array(trust) if trust else None,
    )


def _measure(
    world: World,
    clip: Clip,
    context: int,
    frames: dict[str, np.ndarray],
    proprio: list[np.ndarray],
    probe: Probe | None,
) -> dict[str, np.ndarray]:
    measured: dict[str, np.ndarray] = {}
    if probe is not None and clip.reference is not None:
        reading = probe.read(frames)
        for quantity in probe.quantities:
            measured[quantity.key] = errors(quantity, reading, clip.reference[context:])
    if frames:
        real = {key: clip.frames[key][context:] for key in frames}
        measured[PICTURE.key] = picture_error(frames, real)
    if proprio and clip.proprio is not None:
        real_proprio = clip.proprio[context : clip.num_frames]
        measured[PROPRIO.key] = proprio_error(world, np.stack(proprio), real_proprio)
    return measured


def _write_pictures(comparison: Comparison, world: World, config: SimulateConfig) -> list[tuple[str, Path]]:
    """The film, and the contact sheet with the whole curve beneath; the curve alone without cameras."""
    name, unit = f"episode_{config.episode:04d}", comparison.quantities[0].unit
    curves = {
        quantity.label: comparison.errors[quantity.key]
        for quantity in comparison.quantities
        if quantity.unit == unit
    }
    film, sheet = config.out / f"{name}.mp4", config.out / f"{name}.png"
    if not comparison.frames:
        drawing.write_png(sheet, _curve(curves, unit, FILM_WIDTH))
        return [("curve", sheet)]
    start = config.context - 1
    # The last given frame comes first, so that the sheet shows where the simulation began.
    real = join_cameras(comparison.clip.frames[key][start:] for key in comparison.frames)
    simulated = join_cameras(comparison.frames.values())
    simulated = np.concatenate([real[:1], simulated])
    pictures = drawing.side_by_side(real[1:], simulated[1:])
    scale = max(1, FILM_WIDTH // pictures.shape[2])
    plotted = error_video(pictures, curves, unit=unit, scale=scale)
    progress = tqdm(total=len(pictures), desc="filming", unit=" frames")

    def frames() -> Iterator[np.ndarray]:
        with progress:
            for picture in plotted:
                yield picture
                progress.update()

    drawing.write_video(film, frames(), fps=world.fps)
    above = drawing.contact_sheet(
        [real, simulated, drawing.difference(real, simulated)],
        labels=["real", "simulated", "difference"],
        columns=max(2, min(12, 1536 // (2 * real.shape[2]))),
    )
    drawing.write_png(sheet, np.concatenate([above, _curve(curves, unit, above.shape[1])]))
    return [("film", film), ("sheet", sheet)]


def _curve(curves: dict[str, np.ndarray], unit: str, width: int) -> np.ndarray:
    """All of the curves in one picture: the last of a film that shows nothing else."""
    steps = len(next(iter(curves.values())))
    nothing = np.zeros((steps, 1, width, 3), np.uint8)
    *_, last = error_video(nothing, curves, unit=unit, scale=1, titles=("",), height=CURVE_HEIGHT)
    return last[-CURVE_HEIGHT:]


def _headline(comparison: Comparison, dataset: Dataset, config: SimulateConfig) -> str:
    clip = comparison.clip
    steps = clip.num_frames - config.context
    given = "1 recorded frame" if config.context == 1 else f"{config.context} recorded frames"
    text = f"episode {clip.episode} of {dataset.root}, {steps:,} steps from {given}"
    if steps < config.steps:
        text += f" (it has no more; {config.steps:,} were asked for)"
    return text


def _table(comparison: Comparison) -> str:
    steps = len(next(iter(comparison.errors.values())))
    lines = [[""], ["step"]]
    for quantity in comparison.quantities:
        unit = "dB" if quantity is PICTURE else quantity.unit
        lines[0] += [f"{quantity.label}, {unit}", ""]
        lines[1] += ["simulated", "still"]
    for row in [*(row for row in ROWS if row < steps), steps]:
        line = [f"{row:,}"]
        for quantity in comparison.quantities:
            pair = comparison.errors[quantity.key][row - 1], comparison.still[quantity.key][row - 1]
            line += [_cell(float(value), quantity) for value in pair]
        lines.append(line)
    return f"{align(lines)}\n\nstill: if the last frame given were repeated"


def _cell(value: float, quantity: Quantity) -> str:
    if not np.isfinite(value):
        return "-"
    return f"{psnr_of_rms(value):.1f}" if quantity is PICTURE else f"{value:.2f}"


def _numbers(comparison: Comparison, world: World, dataset: Dataset, config: SimulateConfig) -> str:
    content = {
        "world": world.name,
        "data": str(dataset.root),
        "episode": config.episode,
        "steps": comparison.clip.num_frames - config.context,
        "context": config.context,
        "seed": config.seed,
        "units": {quantity.key: quantity.unit for quantity in comparison.quantities},
        "errors": {key: values.tolist() for key, values in comparison.errors.items()},
        "errors_of_last_frame_repeated": {key: values.tolist() for key, values in comparison.still.items()},
    }
    return to_json(content, indent=None)
