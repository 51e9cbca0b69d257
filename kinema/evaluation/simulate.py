"""``kinema simulate``: a recorded episode simulated from its first frames, beside what really happened."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from kinema import view
from kinema.data.lerobot import DataError, Dataset
from kinema.evaluation.probe import Probe, Quantity, errors, find_probe
from kinema.evaluation.report import ReportConfig, report
from kinema.evaluation.rollout import (
    PICTURE,
    PROPRIO,
    Clip,
    by_camera,
    check_dataset,
    load_clip,
    picture_error,
    proprio_error,
    repeat_last,
    roll_out,
    session_generator,
)
from kinema.evaluation.table import align, psnr, to_json, write_text
from kinema.simulation import BUNDLED_WORLDS, World, load

FILM_WIDTH = 768
"""Films are enlarged up to about this width."""
CURVE_HEIGHT = 120
ROWS = (1, 10, 25, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
"""Steps that the table shows, and the last one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    world: Annotated[str, tyro.conf.Positional]
    """Name of a bundled world (pusht), folder of one, or its Hub id."""
    data: str | None = None
    """Recordings to compare with: a LeRobot folder or Hub id; by default what the world brings along."""
    episode: int = 0
    """Which episode of the recordings."""
    steps: int = 200
    """Steps to simulate, at most as many as were recorded."""
    context: int = 4
    """Recorded frames to start from."""
    seed: int = 0
    """Of the simulation's noise; the first of several in a report."""
    num_denoising_steps: int | None = None
    """Network calls for a frame; the world's own by default."""
    device: str = "cpu"
    """Where to compute: cpu or cuda."""
    out: Path = Path("simulation")
    """Folder for the film, the contact sheet and the numbers."""
    report: bool = False
    """Measure many episodes and seeds instead of showing one; --protocol.* are its settings."""
    json: bool = False
    """Print the numbers as JSON instead of a table."""
    protocol: ReportConfig = dataclasses.field(default_factory=ReportConfig)
    """What the report measures."""

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


def simulate(config: SimulateConfig) -> int:
    """Simulate, compare, write and print; 0 when done.

    Raises:
        ValueError: the world or the data cannot be read, or do not fit each other or what is asked.
    """
    world = load(config.world, device=config.device)
    dataset = Dataset.open(_recordings(config))
    if config.report:
        measured = report(
            world,
            config.world,
            dataset,
            config=config.protocol,
            context=config.context,
            seed=config.seed,
            num_denoising_steps=config.num_denoising_steps,
        )
        path = config.out / "report.json"
        measured.write(path)
        print(measured.to_json() if config.json else f"{measured.table()}\n\n{path}")
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
    probe = find_probe(world.name, world.cameras, dataset)
    clip = load_clip(world, dataset, config.episode, 0, config.context + steps, probe)
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
    proprio = []
    for step in tqdm(rollout, total=steps, desc="simulating", unit=" steps"):
        for key, pictures in by_camera(world, step).items():
            frames[key].append(pictures[0])
        if step.proprio is not None:
            proprio.append(step.proprio[0])
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
    )


def _recordings(config: SimulateConfig) -> str | Path:
    if config.data is not None:
        return config.data
    for folder in (Path(config.world), BUNDLED_WORLDS / config.world):
        if (folder / "recording").is_dir():
            return folder / "recording"
    raise ValueError(
        f"world '{config.world}' brings no recording along: say with --data which LeRobot dataset to compare with"
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
    """The film and the contact sheet, which shows the whole curve beneath; the curve alone without cameras."""
    name = f"episode_{config.episode:04d}"
    unit = comparison.quantities[0].unit
    curves = {
        quantity.label: comparison.errors[quantity.key]
        for quantity in comparison.quantities
        if quantity.unit == unit
    }
    steps = len(next(iter(curves.values())))
    if not comparison.frames:
        plots = view.error_curve(np.zeros((steps, 1, FILM_WIDTH, 3), np.uint8), curves, scale=1, titles=("",))
        *_, last = plots
        view.write_png(config.out / f"{name}.png", last[-CURVE_HEIGHT:])
        return [("curve", config.out / f"{name}.png")]
    start = config.context - 1
    # The last given frame comes first, so that the sheet shows where the simulation began.
    real = np.concatenate([comparison.clip.frames[key][start:] for key in comparison.frames], axis=2)
    given = [comparison.clip.frames[key][start : start + 1] for key in comparison.frames]
    simulated = np.concatenate(
        [np.concatenate(pair) for pair in zip(given, comparison.frames.values(), strict=True)], axis=2
    )
    film, sheet = config.out / f"{name}.mp4", config.out / f"{name}.png"
    pictures = view.side_by_side(real[1:], simulated[1:])
    scale = max(1, FILM_WIDTH // pictures.shape[2])
    shown: list[np.ndarray] = []

    def frames() -> Any:
        for picture in view.error_curve(pictures, curves, unit=unit, scale=scale, height=CURVE_HEIGHT):
            shown[:] = [picture]
            yield picture

    view.write_video(film, tqdm(frames(), desc="filming", total=steps, unit=" frames"), fps=world.fps)
    above = view.contact_sheet(
        [real, simulated, view.difference(real, simulated)],
        labels=["real", "simulated", "difference"],
        columns=max(2, min(12, 1536 // (2 * real.shape[2]))),
    )
    view.write_png(sheet, _stack(above, shown[0][-CURVE_HEIGHT:]))
    return [("film", film), ("sheet", sheet)]


def _stack(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Two pictures, one over the other, left-aligned."""
    width = max(above.shape[1], below.shape[1])
    sheet = np.full((len(above) + len(below), width, 3), view.BACKGROUND, np.uint8)
    sheet[: len(above), : above.shape[1]] = above
    sheet[len(above) :, : below.shape[1]] = below
    return sheet


def _headline(comparison: Comparison, dataset: Dataset, config: SimulateConfig) -> str:
    clip = comparison.clip
    steps = clip.num_frames - config.context
    text = f"episode {clip.episode} of {dataset.root}, {steps:,} steps from {config.context} recorded frames"
    if steps < config.steps:
        text += f" (it has no more; {config.steps:,} were asked for)"
    return text


def _table(comparison: Comparison) -> str:
    steps = len(next(iter(comparison.errors.values())))
    lines = [["step"], [""]]
    for quantity in comparison.quantities:
        lines[0] += [quantity.label, ""]
        unit = "dB" if quantity is PICTURE else quantity.unit
        lines[1] += [f"simulated, {unit}", "last frame repeated"]
    for row in [*(row for row in ROWS if row < steps), steps]:
        line = [f"{row:,}"]
        for quantity in comparison.quantities:
            pair = comparison.errors[quantity.key][row - 1], comparison.still[quantity.key][row - 1]
            line += [_cell(float(value), quantity) for value in pair]
        lines.append(line)
    return align([tuple(line) for line in lines])


def _cell(value: float, quantity: Quantity) -> str:
    if not np.isfinite(value):
        return "-"
    return f"{psnr(value):.1f}" if quantity is PICTURE else f"{value:.2f}"


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
    return json.dumps(to_json(content), ensure_ascii=False) + "\n"
