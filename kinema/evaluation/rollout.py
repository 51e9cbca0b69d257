"""Segments of recorded episodes, simulated many at once under given actions and compared with what was
recorded."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from tqdm import tqdm

from kinema.data.lerobot import DataError, Dataset
from kinema.evaluation.frame_distance import frame_error
from kinema.kits import Probe, Quantity, Reading, errors
from kinema.simulation.session import SimulationBatch
from kinema.simulation.starts import check_dataset
from kinema.simulation.step import Step
from kinema.simulation.world import BUNDLED_WORLDS, World
from kinema.types import Episode, Frames

TRAINING_FILE = "checkpoints/run.json"
"""File in the folder of a world with the dataset and the settings of its training."""
FRAME = Quantity(key="frame", label="frame", unit="levels", largest=255.0)
"""Root mean square difference of the pixels, in levels of 0 to 255."""
PROPRIO = Quantity(key="proprio", label="proprioception", unit="of half its range", largest=float("inf"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """``N`` observations, real or simulated: consecutive rows of an episode, or one row of each of several
    rollouts."""

    frames: Frames = dataclasses.field(default_factory=dict)
    """By camera ``N H W C`` uint8, at the size that the world shows; empty without cameras."""
    proprio: np.ndarray | None = None
    """``N P`` in the units of the dataset, where the world has it."""
    state: Reading | None = None
    """``N`` states: recorded, else read from the frames by the probe; None without a probe."""
    actions: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """``M A`` actions, ``t`` the one that followed observation ``t``; of a recorded segment all up to the end
    of the episode, so ``M`` may be larger than ``N``."""
    trust: np.ndarray | None = None
    """``N``, of a simulation whose world computes it."""
    columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """``N`` rows of all columns of numbers by key, where a reality gives them."""
    is_running: np.ndarray | None = None
    """``N`` bool, of rollouts: False where one is over and repeats its last row."""
    episode: int = -1
    """Index of the recorded episode."""
    is_recorded: bool = False
    """True where ``state`` is the recorded one."""

    def __len__(self) -> int:
        values = next(iter(self.frames.values()), self.proprio)
        return 0 if values is None else len(values)

    def __getitem__(self, rows: Any) -> Self:
        """Select observations; actions and columns stay as they are."""
        return dataclasses.replace(
            self,
            frames={key: frames[rows] for key, frames in self.frames.items()},
            proprio=None if self.proprio is None else self.proprio[rows],
            state=None if self.state is None else self.state[rows],
            trust=None if self.trust is None else self.trust[rows],
        )


def concatenate_segments(segments: Sequence[Segment]) -> Segment:
    """Join the observations of segments one after the other, as far as all have them."""

    def join(parts: Iterable[np.ndarray | None]) -> np.ndarray | None:
        known = [part for part in parts if part is not None]
        return np.concatenate(known) if len(known) == len(segments) else None

    return Segment(
        frames={key: np.concatenate([s.frames[key] for s in segments]) for key in segments[0].frames},
        proprio=join(segment.proprio for segment in segments),
        trust=join(segment.trust for segment in segments),
    )


def stack_rows(segments: Sequence[Segment], row: int) -> Segment:
    """Take the observation ``row`` of each segment."""
    first = segments[0]
    states = [segment.state[row : row + 1] for segment in segments if segment.state is not None]
    proprio = [segment.proprio[row] for segment in segments if segment.proprio is not None]
    return Segment(
        frames={key: np.stack([segment.frames[key][row] for segment in segments]) for key in first.frames},
        proprio=np.stack(proprio) if proprio else None,
        state=concatenate(states) if states else None,
    )


def open_recordings(world: str, data: str | None) -> Dataset:
    """Open the recordings that were named, else those that the world brings along. Raises ValueError."""
    if data is not None:
        return Dataset.open(data)
    for folder in (Path(world), BUNDLED_WORLDS / world):
        if (folder / "recording").is_dir():
            return Dataset.open(folder / "recording")
    raise ValueError(
        f"world '{world}' brings no recording along: give a LeRobot dataset to compare with as --data"
    )


def note_on_training(world: str, dataset: Dataset, episodes: Iterable[int]) -> list[str]:
    """Return a note where the world was trained on some of ``episodes``, as far as its folder says."""
    try:
        run = json.loads((Path(world) / TRAINING_FILE).read_text(encoding="utf-8"))
        is_same = Path(run["data"]).resolve() == dataset.root.resolve()
        num_trained = max(1, dataset.num_episodes - int(run["num_held_out"]))
    except (OSError, ValueError, KeyError, TypeError):
        return []
    compared = set(episodes)
    trained = {episode for episode in compared if episode < num_trained}
    if not is_same or not trained:
        return []
    held_out = f"only the last {dataset.num_episodes - num_trained} of the dataset were held out"
    if num_trained == dataset.num_episodes:
        held_out = "none of the dataset was held out"
    return [
        f"Not held out: the world was trained on {len(trained)} of the {len(compared)} episodes compared "
        f"here ({held_out}). Errors on new episodes are larger; give recordings of their own as --data."
    ]


def read_rows(
    world: World, dataset: Dataset, *, num: int, length: int, advice: str
) -> Iterator[tuple[Episode, slice]]:
    """Yield up to ``num`` episodes with ``length`` of their rows, which do not overlap: the beginnings of all
    episodes are chosen first, then later rows of the longer ones.

    Raises:
        DataError: no episode is long enough (``advice`` says what to do), or the dataset lacks what the world
            needs.
    """
    check_dataset(world, dataset)
    chosen = sorted(
        (start, episode)
        for episode, rows in enumerate(dataset.lengths())
        for start in range(0, max(0, int(rows) - length + 1), length)
    )[:num]
    if not chosen:
        longest = max(dataset.lengths(), default=0)
        raise DataError(
            f"{length:,} frames in a row are needed, but the longest episode has {longest:,}; ask for "
            f"fewer --steps, or {advice}",
            path=dataset.root,
        )
    episode: Episode | None = None
    # Sorted by episode, since one is decoded as a whole.
    for start, index in tqdm(sorted(chosen, key=lambda pair: pair[::-1]), desc="reading", unit=" segments"):
        if episode is None or episode.index != index:
            episode = dataset.episode(index, cameras=world.cameras)
        yield episode, slice(start, start + length)


def load_segments(
    world: World, dataset: Dataset, *, num: int, length: int, probe: Probe | None
) -> list[Segment]:
    """Read up to ``num`` segments of ``length`` rows. Raises DataError, as ``read_rows`` does."""
    rows = read_rows(world, dataset, num=num, length=length, advice="record longer episodes")
    return [cut_segment(world, episode, part, probe) for episode, part in rows]


def cut_segment(world: World, episode: Episode, rows: slice, probe: Probe | None) -> Segment:
    """Take rows of an episode. Raises WorldError where its frames do not fit the world."""
    frames = (
        world.by_camera({key: episode.frames[key][rows] for key in world.cameras}) if world.cameras else {}
    )
    recorded = None if probe is None else probe.recorded(episode)
    read = probe.read(frames) if probe is not None and recorded is None else None
    key = world.config.proprio_key
    return Segment(
        episode=episode.index,
        frames=frames,
        actions=episode.actions[rows.start :],
        proprio=None if key is None else episode.columns[key][rows],
        state=read if recorded is None else recorded[rows],
        is_recorded=recorded is not None,
    )


def session_generator(seed: int, segment: int) -> torch.Generator:
    """Return the source of noise of one session, which depends on its seed and segment alone."""
    return torch.Generator().manual_seed(seed * 1_000_003 + segment)


def start_sessions(
    world: World,
    segments: Sequence[Segment],
    *,
    context: int,
    generators: Sequence[torch.Generator],
    num_denoising_steps: int | None = None,
) -> SimulationBatch:
    """Start one session for each segment, from its first ``context`` observations."""
    frames = {key: np.stack([segment.frames[key][:context] for segment in segments]) for key in world.cameras}
    proprio = [segment.proprio[:context] for segment in segments if segment.proprio is not None]
    return world.start_batch(
        frames or None,
        np.stack([segment.actions[: context - 1] for segment in segments]),
        proprio=np.stack(proprio) if proprio else None,
        generators=generators,
        num_denoising_steps=num_denoising_steps,
    )


def simulate(
    world: World,
    segments: Sequence[Segment],
    actions: np.ndarray,
    *,
    context: int,
    seeds: Sequence[int],
    label: str,
    batch: int = 64,
    num_denoising_steps: int | None = None,
    is_needed: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, int, Step]]:
    """Simulate every segment with every seed, ``batch`` sessions together.

    Args:
        world: the world.
        segments: ``B`` segments, of which the first ``context`` observations are given.
        actions: ``B S A``, the first of which leads to the observation after the context.
        context: observations to start from.
        seeds: seeds of the noise.
        label: text beside the progress bar.
        batch: sessions simulated together; it does not change the numbers.
        num_denoising_steps: network calls for a frame; the world's own by default.
        is_needed: ``S`` bool, steps whose frames are decoded; by default all.

    Yields:
        Indices of the segments and of the seeds of a batch, the number of the step from 0, and the step.
    """
    segment, seed = (index.ravel() for index in np.meshgrid(range(len(segments)), range(len(seeds))))
    with tqdm(total=len(segment) * actions.shape[1], desc=label, unit=" steps") as bar:
        for first in range(0, len(segment), batch):
            part = slice(first, first + batch)
            pairs = zip(seed[part], segment[part], strict=True)
            sessions = start_sessions(
                world,
                [segments[index] for index in segment[part]],
                context=context,
                generators=[session_generator(seeds[s], int(index)) for s, index in pairs],
                num_denoising_steps=num_denoising_steps,
            )
            for step in range(actions.shape[1]):
                decode = is_needed is None or bool(is_needed[step])
                yield (
                    segment[part],
                    seed[part],
                    step,
                    sessions.step(actions[segment[part], step], decode=decode),
                )
                bar.update(len(segment[part]))


def simulate_once(
    world: World,
    segments: Sequence[Segment],
    actions: np.ndarray,
    *,
    probe: Probe | None = None,
    **options: Any,
) -> list[Segment]:
    """Simulate every segment under its ``actions`` (``B S A``), with one seed; return ``B`` segments of ``S``
    simulated observations. ``options`` are those of ``simulate``."""
    parts: list[list[Segment]] = [[] for _ in segments]
    for owners, _, _, step in simulate(world, segments, actions, **options):
        shown = observe(world, step)
        for row, owner in enumerate(owners):
            parts[owner].append(shown[row : row + 1])
    joined = [concatenate_segments(rows) for rows in parts]
    if probe is None:
        return joined
    return [dataclasses.replace(segment, state=probe.read(segment.frames)) for segment in joined]


def observe(world: World, step: Step, probe: Probe | None = None) -> Segment:
    """Return the observations of a step of a batch, with their state where a probe reads it."""
    frames = by_camera(world, step.frame)
    trust = None if step.trust is None else np.asarray(step.trust, dtype=float)
    state = probe.read(frames) if probe is not None and frames else None
    return Segment(frames=frames, proprio=step.proprio, trust=trust, state=state)


def by_camera(world: World, frames: Any) -> dict[str, np.ndarray]:
    """Return frames by camera, however many cameras there are; empty for None."""
    if frames is None:
        return {}
    return frames if isinstance(frames, dict) else {world.cameras[0]: frames}


def reconstruct(world: World, frames: Frames, *, proprio: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Pass frames by camera through the tokenizer and back."""
    return by_camera(world, world.reconstruct(frames, proprio=proprio))


def measure_errors(world: World, shown: Segment, real: Segment, probe: Probe | None) -> dict[str, np.ndarray]:
    """Return the errors ``N`` of observations against real ones by quantity, as far as both have it; of
    several cameras also those of each (``frame/CAMERA``), and trust."""
    measured: dict[str, np.ndarray] = {}
    if probe is not None and shown.state is not None and real.state is not None:
        measured |= {q.key: errors(q, shown.state, real.state) for q in probe.quantities}
    if shown.frames:
        measured[FRAME.key] = frame_error(shown.frames, real.frames)
        for camera in shown.frames if len(shown.frames) > 1 else ():
            one = {camera: shown.frames[camera]}
            measured[f"{FRAME.key}/{camera}"] = frame_error(one, real.frames)
    if shown.trust is not None:
        measured["trust"] = shown.trust
    if shown.proprio is not None and real.proprio is not None:
        measured[PROPRIO.key] = proprio_error(world, shown.proprio, real.proprio)
    return measured


def concatenate(readings: Sequence[Reading]) -> Reading:
    """Join readings one after the other."""

    def join(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    return Reading(
        values=join([reading.values for reading in readings]),
        is_found=join([reading.is_found for reading in readings]),
        is_certain=join([reading.is_certain for reading in readings]),
        is_valid=np.concatenate([reading.is_valid for reading in readings]),
    )


def proprio_error(world: World, simulated: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Return ``N`` root mean square errors of ``N P``, in units of half the range of the training data."""
    scale = world.proprio_normalizer.half_range
    return np.sqrt((((simulated - real) / scale) ** 2).mean(axis=1))
