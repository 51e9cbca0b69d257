"""Drives a world with recorded actions from recorded starts, many sessions at once, and compares what it
shows with what was recorded."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from kinema.data.lerobot import DataError, Dataset
from kinema.kits import Probe, Quantity, Reading, errors
from kinema.simulation.starts import check_dataset
from kinema.simulation.step import Step
from kinema.simulation.world import BUNDLED_WORLDS, World
from kinema.types import Episode, Frames

TRAINING_FILE = "checkpoints/run.json"
"""File in the folder of a world with the dataset and the settings of its training."""
PICTURE = Quantity(key="picture", label="picture", unit="levels", largest=255.0)
"""Root mean square difference of the pixels, in levels of 0 to 255."""
PROPRIO = Quantity(key="proprio", label="proprioception", unit="of half its range", largest=float("inf"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """A piece of a recorded episode to start from and to compare with."""

    episode: int
    start: int
    """Row of the episode at which the clip starts."""
    num_frames: int
    """Frames to start from and to compare with."""
    frames: Frames
    """By camera, at the size that the world shows: context, then the frames to compare with."""
    actions: np.ndarray
    """``N A``: of all rows from the start to the end of the episode. Row ``t`` led on from frame ``t``."""
    proprio: np.ndarray | None
    """``N P``, as ``actions``, where the world knows it."""
    reference: Reading | None
    """What the probe knows of the frames: the recorded state, else what it sees; None without a probe."""
    is_recorded: bool
    """Whether ``reference`` is the recorded state."""


def open_recordings(world: str, data: str | None) -> Dataset:
    """The recordings that were named, or those that the world brings along. Raises ValueError."""
    if data is not None:
        return Dataset.open(data)
    for folder in (Path(world), BUNDLED_WORLDS / world):
        if (folder / "recording").is_dir():
            return Dataset.open(folder / "recording")
    raise ValueError(
        f"world '{world}' brings no recording along: give a LeRobot dataset to compare with as --data"
    )


def note_on_training(world: str, dataset: Dataset, episodes: Iterable[int]) -> list[str]:
    """Return a note where compared episodes are ones that the world was trained on, as far as its folder
    says."""
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


def load_clips(world: World, dataset: Dataset, *, num: int, length: int, probe: Probe | None) -> list[Clip]:
    """Up to ``num`` clips of ``length`` frames: the beginnings of all episodes first, then later pieces of
    the longer ones; episodes without ``length`` frames are left out.

    Raises:
        DataError: no episode is long enough, or the dataset lacks what the world needs.
    """
    check_dataset(world, dataset)
    places = find_places(dataset, num=num, length=length)
    if not places:
        longest = max(dataset.lengths(), default=0)
        raise DataError(
            f"clips of {length} frames are needed, but the longest episode has {longest}; "
            "record longer episodes or ask for fewer steps",
            path=dataset.root,
        )
    # Episode by episode, since one is decoded as a whole.
    clips: list[Clip] = []
    episode: Episode | None = None
    for start, index in tqdm(sorted(places, key=lambda place: place[::-1]), desc="reading", unit=" clips"):
        if episode is None or episode.index != index:
            episode = dataset.episode(index, cameras=world.cameras)
        clips.append(cut_clip(world, episode, start, length, probe))
    return clips


def find_places(dataset: Dataset, *, num: int, length: int) -> list[tuple[int, int]]:
    """Up to ``num`` pieces of ``length`` rows that do not overlap, as start and episode: the beginnings of
    all episodes first."""
    return sorted(
        (start, episode)
        for episode, rows in enumerate(dataset.lengths())
        for start in range(0, max(0, int(rows) - length + 1), length)
    )[:num]


def cut_clip(world: World, episode: Episode, start: int, length: int, probe: Probe | None) -> Clip:
    """``length`` frames of an episode from row ``start`` on. Raises WorldError where they do not fit."""
    rows = slice(start, start + length)
    frames = (
        world.by_camera({key: episode.frames[key][rows] for key in world.cameras}) if world.cameras else {}
    )
    recorded = reference = None
    if probe is not None:
        recorded = probe.recorded(episode)
        reference = probe.read(frames) if recorded is None else recorded[rows]
    proprio = episode.columns[world.config.proprio_key][start:] if world.config.proprio_key else None
    return Clip(
        episode=episode.index,
        start=start,
        num_frames=length,
        frames=frames,
        actions=np.asarray(episode.columns["action"][start:], dtype=np.float32),
        proprio=proprio,
        reference=reference,
        is_recorded=recorded is not None,
    )


def roll_out(
    world: World,
    clips: Sequence[Clip],
    actions: np.ndarray,
    *,
    context: int,
    generators: Sequence[torch.Generator],
    num_denoising_steps: int | None = None,
    is_needed: np.ndarray | None = None,
) -> Iterator[Step]:
    """One session for each clip, driven by ``actions`` (``B S A``) from the last of ``context`` frames on.

    Yields every step; pictures are made only where ``is_needed`` (``S`` bool) says so.
    """
    frames = {key: np.stack([clip.frames[key][:context] for clip in clips]) for key in world.cameras}
    proprio = [clip.proprio[:context] for clip in clips if clip.proprio is not None]
    batch = world.start_batch(
        frames or None,
        np.stack([clip.actions[: context - 1] for clip in clips]),
        proprio=np.stack(proprio) if proprio else None,
        generators=generators,
        num_denoising_steps=num_denoising_steps,
    )
    for index in range(actions.shape[1]):
        yield batch.step(actions[:, index], decode=is_needed is None or bool(is_needed[index]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """Every clip simulated with every seed."""

    context: int
    """Recorded frames to start from."""
    seeds: tuple[int, ...]
    batch: int
    """Sessions simulated together."""
    num_denoising_steps: int | None = None
    """Network calls for a frame; the world's own by default."""

    def run(
        self,
        world: World,
        clips: Sequence[Clip],
        actions: np.ndarray,
        *,
        label: str,
        is_needed: np.ndarray | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray, int, Step]]:
        """Drives clip ``b`` with ``actions[b]`` (``B S A``); ``label`` stands beside the progress bar.

        Yields, batch after batch and step after step: which clip and which seed each session of the batch
        has, the number of the step from 0, and the step.
        """
        clip, seed = (index.ravel() for index in np.meshgrid(range(len(clips)), range(len(self.seeds))))
        with tqdm(total=len(clip) * actions.shape[1], desc=label, unit=" steps") as bar:
            for first in range(0, len(clip), self.batch):
                part = slice(first, first + self.batch)
                pairs = zip(seed[part], clip[part], strict=True)
                steps = roll_out(
                    world,
                    [clips[index] for index in clip[part]],
                    actions[clip[part]],
                    context=self.context,
                    generators=[session_generator(self.seeds[s], int(c)) for s, c in pairs],
                    num_denoising_steps=self.num_denoising_steps,
                    is_needed=is_needed,
                )
                for index, step in enumerate(steps):
                    yield clip[part], seed[part], index, step
                    bar.update(len(clip[part]))


def compare(
    world: World, clips: Sequence[Clip], actions: np.ndarray, sweep: Sweep, *, probe: Probe | None, label: str
) -> dict[str, np.ndarray]:
    """Simulates every clip with every seed and measures each step against the clip.

    Returns errors ``B seeds S`` by quantity: those of the probe, the picture and proprioception.
    """
    found: dict[str, np.ndarray] = {}
    for clip, seed, index, step in sweep.run(world, clips, actions, label=label):
        row = sweep.context + index
        for key, values in _measure(world, [clips[c] for c in clip], row, step, probe).items():
            if key not in found:
                found[key] = np.full((len(clips), len(sweep.seeds), actions.shape[1]), np.nan)
            found[key][clip, seed, index] = values
    return found


def repeat_last(
    world: World, clips: Sequence[Clip], *, context: int, probe: Probe | None
) -> dict[str, np.ndarray]:
    """The errors ``B 1 S``, as ``compare`` gives them, of showing the last frame of the context for ever."""
    found: dict[str, list[np.ndarray]] = {}
    for clip in clips:
        last = np.full(clip.num_frames - context, context - 1)
        if clip.reference is not None and probe is not None:
            still = clip.reference[last]
            for quantity in probe.quantities:
                error = errors(quantity, still, clip.reference[context:])
                found.setdefault(quantity.key, []).append(error)
        if clip.frames:
            real = {key: frames[context:] for key, frames in clip.frames.items()}
            still_frames = {key: frames[last] for key, frames in clip.frames.items()}
            found.setdefault(PICTURE.key, []).append(picture_error(still_frames, real))
        if clip.proprio is not None:
            error = proprio_error(world, clip.proprio[last], clip.proprio[context : clip.num_frames])
            found.setdefault(PROPRIO.key, []).append(error)
    return {key: np.stack(values)[:, None] for key, values in found.items()}


def session_generator(seed: int, clip: int) -> torch.Generator:
    """The source of noise of one session: depends on its seed and clip alone."""
    return torch.Generator().manual_seed(seed * 1_000_003 + clip)


def by_camera(world: World, step: Step) -> dict[str, np.ndarray]:
    """The pictures of a step by camera, however many cameras there are."""
    return _named(world, step.frame)


def reconstruct(world: World, frames: Frames, *, proprio: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Pictures by camera through the tokenizer and back, by camera."""
    return _named(world, world.reconstruct(frames, proprio=proprio))


def _named(world: World, pictures: Any) -> dict[str, np.ndarray]:
    if pictures is None:
        return {}
    return pictures if isinstance(pictures, dict) else {world.cameras[0]: pictures}


def _measure(
    world: World, clips: Sequence[Clip], row: int, step: Step, probe: Probe | None
) -> dict[str, np.ndarray]:
    """Errors ``B`` of one simulated step by quantity; ``row`` is the row of the clips that it predicts."""
    measured: dict[str, np.ndarray] = {}
    frames = by_camera(world, step)
    if frames:
        real = {key: np.stack([clip.frames[key][row] for clip in clips]) for key in frames}
        measured[PICTURE.key] = picture_error(frames, real)
    if probe is not None:
        reading = probe.read(frames)
        references = [clip.reference for clip in clips if clip.reference is not None]
        reference = concatenate([reference[row : row + 1] for reference in references])
        for quantity in probe.quantities:
            measured[quantity.key] = errors(quantity, reading, reference)
    if step.proprio is not None:
        real_proprio = np.stack([clip.proprio[row] for clip in clips if clip.proprio is not None])
        measured[PROPRIO.key] = proprio_error(world, step.proprio, real_proprio)
    return measured


def concatenate(readings: Sequence[Reading]) -> Reading:
    """Readings one after the other."""
    keys = list(readings[0].values)
    return Reading(
        values={key: np.concatenate([reading.values[key] for reading in readings]) for key in keys},
        is_found={key: np.concatenate([reading.is_found[key] for reading in readings]) for key in keys},
        is_certain={key: np.concatenate([reading.is_certain[key] for reading in readings]) for key in keys},
        is_valid=np.concatenate([reading.is_valid for reading in readings]),
    )


def picture_error(frames: Frames, real: Frames) -> np.ndarray:
    """``N`` root mean square differences of pictures by camera (``N H W C`` uint8), in levels."""
    squares = []
    for key, pictures in frames.items():
        offset = pictures.astype(np.float32) - real[key].astype(np.float32)
        squares.append((offset**2).reshape(len(offset), -1).mean(axis=1))
    return np.sqrt(np.mean(squares, axis=0))


def proprio_error(world: World, simulated: np.ndarray, real: np.ndarray) -> np.ndarray:
    """``N`` root mean square errors of ``N P``, in units of half the range that the world was trained on."""
    scale = world.proprio_normalizer.scale.cpu().numpy()
    return np.sqrt((((simulated - real) / scale) ** 2).mean(axis=1))
