"""``kinema simulate``: simulate a recorded episode from its first frames, beside what really happened."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from kinema.data import drawing
from kinema.data.files import to_json, write_text
from kinema.data.frames import join_cameras
from kinema.data.lerobot import DataError, Dataset
from kinema.evaluation.frame_distance import psnr
from kinema.evaluation.plot import error_video
from kinema.evaluation.protocol import RecordingOptions, ResultOptions, Run, WorldOptions, run_protocol
from kinema.evaluation.report import ReportConfig, measure_report
from kinema.evaluation.rollout import (
    FRAME,
    Segment,
    check_dataset,
    cut_segment,
    measure_errors,
    note_on_training,
    open_recordings,
    simulate_once,
)
from kinema.evaluation.tables import align
from kinema.kits import Quantity
from kinema.options import at_least
from kinema.simulation.world import World, load

VIDEO_WIDTH = 768
"""Videos are enlarged up to about this width."""
CURVE_HEIGHT = 120
ROWS = (1, 10, 25, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
"""Steps that the table shows, and the last one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulateConfig(WorldOptions, RecordingOptions, ResultOptions):
    episode: int = 0
    """Index of the episode of the recordings."""
    steps: int = 200
    """Steps to simulate, at most as many as were recorded."""
    out: Path = Path("simulation")
    """Folder for the video, the contact sheet and the numbers."""
    report: bool = False
    """Measure many episodes and seeds instead of showing one; --protocol.* are its settings."""
    protocol: ReportConfig = dataclasses.field(default_factory=ReportConfig)
    """Settings of the report."""

    def __post_init__(self) -> None:
        at_least(self, episode=0, steps=1, context=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """``T`` simulated steps beside the recording."""

    real: Segment
    """The context, then ``T`` observations."""
    simulated: Segment
    errors: dict[str, np.ndarray]
    """``T`` errors by quantity."""
    still: dict[str, np.ndarray]
    """``T`` errors of repeating the last given observation instead."""
    quantities: tuple[Quantity, ...]


def simulate(config: SimulateConfig) -> int:
    """Simulate, compare, write and print; return 0.

    Raises:
        ValueError: the world or the data cannot be read, or do not fit each other or the settings.
    """
    if config.report:
        return run_protocol("report", config, measure_report)
    world = load(config.world, device=config.device)
    dataset = open_recordings(config.world, config.data)
    comparison = compare_episode(world, dataset, config)
    written = _write_frames(comparison, world, config)
    numbers = to_json(_numbers(comparison, world, dataset, config), indent=None)
    path = config.out / "simulation.json"
    write_text(path, numbers)
    if config.json:
        print(numbers)
        return 0
    print(f"\n{_headline(comparison, dataset, config)}\n")
    print(f"{table(comparison, comparison.quantities, ROWS)}\n\nin brackets: the last frame repeated\n")
    for note in note_on_training(config.world, dataset, [config.episode]):
        print(f"{note}\n")
    print("\n".join(f"{what:<8} {file}" for what, file in [*written, ("numbers", path)]))
    return 0


def compare_episode(world: World, dataset: Dataset, config: SimulateConfig) -> Comparison:
    """Simulate an episode from its first frames under its own actions. Raises DataError, WorldError."""
    check_dataset(world, dataset)
    context, lengths = config.context, dataset.lengths().tolist()
    recorded = lengths[config.episode] if config.episode < len(lengths) else 0
    if recorded <= context:
        problem = f"has {recorded} frames, too few for --context {context} and one to simulate"
        if not recorded:
            problem = f"no such episode; there are {len(lengths)}, counted from 0"
        raise DataError(problem, path=dataset.root, episode=config.episode)
    steps = min(config.steps, recorded - context)
    run = Run("simulation", world, config, dataset=dataset)
    episode = dataset.episode(config.episode, cameras=world.cameras)
    real = cut_segment(world, episode, slice(0, context + steps), run.probe)
    actions, options = run.recorded_actions([real], steps), run.simulation(1)
    (simulated,) = simulate_once(world, [real], actions, label="simulating", probe=run.probe, **options)
    measured, still = measure_errors(world, simulated, real[context:], run.probe), run.repeat_last([real])
    quantities = tuple(run.quantities(measured))
    return Comparison(
        real=real,
        simulated=simulated,
        errors={quantity.key: measured[quantity.key] for quantity in quantities},
        still={quantity.key: still[quantity.key][0, 0] for quantity in quantities},
        quantities=quantities,
    )


def write_comparison(
    real: np.ndarray,
    simulated: np.ndarray,
    curves: dict[str, np.ndarray],
    unit: str,
    video: Path,
    *,
    fps: float,
    scale: int = 4,
) -> None:
    """Write the video ``real | simulated | difference`` (frames ``T H W C``) with error curves beneath."""
    frames = error_video(drawing.side_by_side(real, simulated), curves, unit=unit, scale=scale)
    bar = tqdm(frames, desc="writing", total=len(real), unit=" frames")
    drawing.write_video(video, (frame for frame in bar), fps=fps)


def same_unit(quantities: Sequence[Quantity], errors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Select the curves by label of the quantities that share the unit of the first one."""
    return {q.label: errors[q.key] for q in quantities if q.unit == quantities[0].unit}


def _write_frames(comparison: Comparison, world: World, config: SimulateConfig) -> list[tuple[str, Path]]:
    """Write the video, and the contact sheet above the whole curve; the curve alone without cameras."""
    name, unit = f"episode_{config.episode:04d}", comparison.quantities[0].unit
    curves = same_unit(comparison.quantities, comparison.errors)
    video, sheet = config.out / f"{name}.mp4", config.out / f"{name}.png"
    if not comparison.simulated.frames:
        drawing.write_png(sheet, _curve(curves, unit, VIDEO_WIDTH))
        return [("curve", sheet)]
    # The last given frame comes first, so that the sheet shows where the simulation began.
    real = join_cameras(frames[config.context - 1 :] for frames in comparison.real.frames.values())
    simulated = np.concatenate([real[:1], join_cameras(comparison.simulated.frames.values())])
    width = drawing.side_by_side(real[:1], real[:1]).shape[2]
    scale = max(1, VIDEO_WIDTH // width)
    write_comparison(real[1:], simulated[1:], curves, unit, video, fps=world.fps, scale=scale)
    above = drawing.contact_sheet(
        [real, simulated, drawing.difference(real, simulated)],
        labels=["real", "simulated", "difference"],
        columns=max(2, min(12, 1536 // (2 * real.shape[2]))),
    )
    drawing.write_png(sheet, np.concatenate([above, _curve(curves, unit, above.shape[1])]))
    return [("video", video), ("sheet", sheet)]


def _curve(curves: dict[str, np.ndarray], unit: str, width: int) -> np.ndarray:
    """Draw whole curves: the last frame of a video that shows nothing else."""
    steps = len(next(iter(curves.values())))
    nothing = np.zeros((steps, 1, width, 3), np.uint8)
    *_, last = error_video(nothing, curves, unit=unit, scale=1, titles=("",), height=CURVE_HEIGHT)
    return last[-CURVE_HEIGHT:]


def _headline(comparison: Comparison, dataset: Dataset, config: SimulateConfig) -> str:
    steps = len(comparison.real) - config.context
    given = "1 recorded frame" if config.context == 1 else f"{config.context} recorded frames"
    text = f"episode {config.episode} of {dataset.root}, {steps:,} steps from {given}"
    if steps < config.steps:
        text += f" (it has no more; {config.steps:,} were asked for)"
    return text


def table(comparison: Comparison, quantities: Sequence[Quantity], rows: Sequence[int]) -> str:
    """Align the errors at a few steps and the last one, those of the last frame repeated in brackets, and the
    share of valid frames so far where a probe reads it."""
    state = comparison.simulated.state
    steps = len(comparison.errors[quantities[0].key])
    lines = [["step", *(f"{q.label}, {'dB' if q is FRAME else q.unit}" for q in quantities)]]
    lines[0] += [] if state is None else ["valid so far"]
    for step in [*(row for row in rows if row < steps), steps]:
        simulated, still = (
            [_cell(float(errors[q.key][step - 1]), q) for q in quantities]
            for errors in (comparison.errors, comparison.still)
        )
        cells = [f"{error} ({other})" for error, other in zip(simulated, still, strict=True)]
        cells += [] if state is None else [f"{state.is_valid[:step].mean():.1%}"]
        lines.append([f"{step:,}", *cells])
    return align(lines)


def _cell(value: float, quantity: Quantity) -> str:
    return f"{psnr(value) if quantity is FRAME else value:.1f}" if np.isfinite(value) else "-"


def _numbers(
    comparison: Comparison, world: World, dataset: Dataset, config: SimulateConfig
) -> dict[str, object]:
    return {
        "world": world.name,
        "data": str(dataset.root),
        "episode": config.episode,
        "steps": len(comparison.real) - config.context,
        "context": config.context,
        "seed": config.seed,
        "units": {quantity.key: quantity.unit for quantity in comparison.quantities},
        "errors": {key: values.tolist() for key, values in comparison.errors.items()},
        "errors_of_last_frame_repeated": {key: values.tolist() for key, values in comparison.still.items()},
    }
