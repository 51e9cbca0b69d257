"""``kinema simulate --report``: measure how well a world holds on held-out episodes.

Codec first, then a short simulation under the recorded actions beside two baselines (the last frame repeated,
the actions shuffled), then a long one, then speed and size. Intervals are 95%, over segments.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kinema.evaluation import bootstrap
from kinema.evaluation.control import add_errors, add_psnr
from kinema.evaluation.frame_distance import frame_error
from kinema.evaluation.protocol import Run
from kinema.evaluation.result import plain
from kinema.evaluation.rollout import (
    FRAME,
    Segment,
    by_camera,
    reconstruct,
    simulate,
)
from kinema.evaluation.speed import frames_per_second, measure_latencies, start_streams
from kinema.kits import Probe, errors
from kinema.model.world import CONFIG_FILE, WEIGHTS_FILE
from kinema.options import at_least
from kinema.simulation.world import BUNDLED_WORLDS

WINDOW = 100
"""Steps up to a milestone that count for it."""
EVERY = 10
"""One of so many frames is read, but every one before the last milestone."""
MILESTONES = (10, 100, 500, 1000, 2000, 5000, 10_000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    episodes: int = 50
    """Segments to start from: the beginnings of episodes, then later parts of long ones."""
    seeds: int = 3
    """Simulations of each segment, each with its own noise."""
    steps: int = 50
    """Steps of the short simulation."""
    long_steps: int = 2000
    """Steps of the long simulation; 0 leaves it out."""
    batch: int = 50
    """Sessions simulated together."""
    speed_steps: int = 100
    """Steps of each of five timed repeats; 0 leaves speed out."""

    def __post_init__(self) -> None:
        try:
            at_least(self, episodes=1, seeds=1, steps=1, long_steps=0, batch=1, speed_steps=0)
        except ValueError as error:
            raise ValueError(f"protocol.{error}") from None


def measure_report(run: Run) -> None:
    """Add all parts of the report; the settings are ``run.config.protocol``."""
    config, report = run.config, run.config.protocol
    segments = run.segments(num=report.episodes, length=config.context + report.steps)
    seeds = list(range(config.seed, config.seed + report.seeds))
    run.protocol = plain(report) | {"context": config.context, "seeds": seeds, "clips": len(segments)}
    run.protocol["num_denoising_steps"] = config.num_denoising_steps
    _describe(run, segments)
    if run.world.cameras:
        _add_codec(run, segments)
    true = run.recorded_actions(segments, report.steps)
    actions = {"true": true, "shuffled": np.stack([run.rng.permutation(row) for row in true])}
    add_errors(run, segments, actions, seeds=report.seeds, batch=report.batch)
    if run.probe is not None and report.long_steps:
        _add_validity(run, segments, run.probe)
    if report.speed_steps:
        _add_speed(run, segments[0])
    _add_size(run)


def _describe(run: Run, segments: Sequence[Segment]) -> None:
    """Add notes on what is measured and on what is left out."""
    config, report = run.config, run.config.protocol
    length = config.context + report.steps
    run.notes += [
        f"{len(segments)} segments from {len(run.compared)} episodes, {report.seeds} seeds, {config.context} "
        "frames given. Intervals are 95%, over segments.",
        "Shuffled actions are the same actions in another order.",
    ]
    num_short = int((run.dataset.lengths() < length).sum())
    if num_short:
        run.notes.append(f"{num_short} episodes are shorter than {length} frames and were left out.")
    if len(segments) < report.episodes:
        run.notes.append(f"{report.episodes} segments were asked for, but the data holds no more.")
    if run.probe is None:
        return
    if segments[0].is_recorded:
        run.notes.append("Errors are against the recorded state.")
    else:
        run.notes.append("No state was recorded: errors are against what is found in the real frames.")
    states = [segment.state for segment in segments if segment.state is not None]
    certain = [state.is_certain[quantity.key] for quantity in run.probe.quantities for state in states]
    run.notes.append(
        "A thing that is not found counts as the largest possible error; real values that their frame does "
        f"not tell (the thing lies mostly outside it), {1 - np.mean(certain):.1%}, are left out."
    )


def _add_codec(run: Run, segments: Sequence[Segment]) -> None:
    """Add how well frames and what the probe reads in them survive the tokenizer."""
    found: list[np.ndarray] = []
    measured: dict[str, list[np.ndarray]] = {}
    for segment in segments:
        frames = reconstruct(run.world, segment.frames, proprio=segment.proprio)
        measured.setdefault(FRAME.key, []).append(frame_error(frames, segment.frames))
        if run.probe is None or segment.state is None:
            continue
        real, decoded = run.probe.read(segment.frames), run.probe.read(frames)
        # A real frame that the probe itself rejects says nothing about the tokenizer.
        found.append(np.where(real.is_valid, decoded.is_valid, np.nan))
        pairs = {
            "": (decoded, real),
            "/recorded": (decoded, segment.state),
            "/detector": (real, segment.state),
        }
        for quantity in run.probe.quantities:
            for name, pair in pairs.items():
                measured.setdefault(quantity.key + name, []).append(errors(quantity, *pair))
    if run.probe is not None:
        what = f"tokenizer: {run.probe.things} found in reconstructions"
        run.row("tokenizer/found", what, "share", bootstrap.mean, np.stack(found))
        for quantity in run.probe.quantities:
            kinds = {"": f"tokenizer: {quantity.label} error, against the real frame as seen"}
            if segments[0].is_recorded:
                kinds["/recorded"] = "  against the recorded state"
                kinds["/detector"] = "  of the detector itself, on real frames"
            for name, what in kinds.items():
                key, target = f"tokenizer/{quantity.key}{name}", f"tokenizer/{quantity.key}"
                values = np.stack(measured[quantity.key + name])
                target = key if name == "/detector" else target
                run.row(key, what, quantity.unit, bootstrap.median, values, target=target)
    add_psnr(run, "tokenizer/psnr", "tokenizer: PSNR", np.stack(measured[FRAME.key]))


def _add_validity(run: Run, segments: Sequence[Segment], probe: Probe) -> None:
    """Add the share of valid frames of a long simulation, up to each milestone."""
    report = run.config.protocol
    num_steps = report.long_steps
    actions, num_chained = long_actions(segments, context=run.config.context, num_steps=num_steps)
    if num_chained:
        run.notes.append(
            f"{num_chained} of {len(segments)} segments have fewer than {num_steps:,} actions: after their "
            "own they were driven with those of the next segments, which nobody tried in that state."
        )
    steps, marks = np.arange(1, num_steps + 1), milestones(num_steps)
    windows = {mark: (steps > mark - WINDOW) & (steps <= mark) for mark in marks}
    is_needed = np.any(list(windows.values()), axis=0) & ((steps % EVERY == 0) | windows[num_steps])
    is_valid = np.zeros((len(segments), report.seeds, num_steps), dtype=bool)
    for owners, seed, index, step in simulate(
        run.world,
        segments,
        actions,
        is_needed=is_needed,
        batch=report.batch,
        label=f"{num_steps:,} steps",
        **run.simulation(report.seeds),
    ):
        if is_needed[index]:
            is_valid[owners, seed, index] = probe.read(by_camera(run.world, step.frame)).is_valid
    shares = {mark: is_valid[:, :, is_needed & window].mean(axis=2) for mark, window in windows.items()}
    what = f"after {num_steps:,} steps: frames that show exactly {probe.things}"
    run.row("valid", what, "share", bootstrap.mean, shares.pop(num_steps))
    for mark, values in shares.items():
        run.row(f"valid/{mark}", f"  after {mark:,} steps", "share", bootstrap.mean, values)


def milestones(num_steps: int) -> list[int]:
    """List the steps at which validity is reported; the last one is ``num_steps``."""
    return [step for step in MILESTONES if step < num_steps] + [num_steps]


def long_actions(segments: Sequence[Segment], *, context: int, num_steps: int) -> tuple[np.ndarray, int]:
    """Return actions ``B num_steps A`` for each segment, and the number of segments with fewer of their own:
    after these come those of the following segments, in a circle."""
    rows, num_chained = [], 0
    for first in range(len(segments)):
        parts, length = [], 0
        while length < num_steps:
            parts.append(segments[(first + len(parts)) % len(segments)].actions[context - 1 :])
            length += len(parts[-1])
        num_chained += len(parts) > 1
        rows.append(np.concatenate(parts)[:num_steps])
    return np.stack(rows), num_chained


def _add_speed(run: Run, segment: Segment) -> None:
    """Add the speed of one stream alone."""
    context = run.config.context
    sessions = start_streams(run.world, segment, 1, context)
    steps = run.config.protocol.speed_steps
    seconds = measure_latencies(sessions, segment, context, steps=steps, repeats=5)
    p50, p99 = 1e3 * np.percentile(seconds, [50, 99])
    value, low, high = frames_per_second(seconds)
    run.notes.append(
        f"One step takes {p50:.1f} ms (p50), {p99:.1f} ms (p99) on {run.world.device}; speed is 1 / p50, the "
        "median of five repeats and their range."
    )
    run.number("speed", "one stream, decoded frames a second", "fps", value, low, high, is_higher_better=True)


def _add_size(run: Run) -> None:
    """Add the size of the files of the world: configuration, weights, and its recording where it has one."""
    source = run.config.world
    folder = Path(source) if Path(source).is_dir() else BUNDLED_WORLDS / source
    if folder.is_dir():
        files = [folder / CONFIG_FILE, folder / WEIGHTS_FILE, *(folder / "recording").rglob("*")]
        size = sum(path.stat().st_size for path in files if path.is_file()) / 1e6
        run.number("size", "size of the world, its recording included", "MB", size)
