"""Forks of simulated segments beside what really happened: what skill and calibration are computed from.

Simulated frames are compared with what the world's codec makes of the real ones, so that the error of the
codec does not count as one of the simulation; states are normalised by half the range of the training data.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from kinema.evaluation.rollout import Segment, by_camera, reconstruct, session_generator, start_sessions
from kinema.simulation.world import World

FRAME, STATE = "frame", "state"
UNITS = {FRAME: "levels", STATE: "of half its range"}
Parts = Mapping[str, np.ndarray]
"""Arrays of one modality that are weighted alike: the frames of each camera, or the state alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truth:
    """Observations of ``B`` segments at ``K`` steps."""

    steps: tuple[int, ...]
    """Steps ``K`` after the last given observation, from 1."""
    target: Mapping[str, Parts]
    """By modality ``B K ...``: frames through the codec, normalised states."""
    given: Mapping[str, Parts]
    """By modality ``B ...``: the last given observation, as ``target``."""
    frames: Parts
    """Real frames by camera ``B K H W C`` uint8."""
    is_moving: Parts
    """By camera ``B K H W`` bool: pixels that differ from the real frame before."""

    def at(self, modality: str, segments: np.ndarray, step: int) -> dict[str, np.ndarray]:
        """Take the target of some segments at one of ``steps``."""
        place = self.steps.index(step)
        return {key: part[segments, place] for key, part in self.target[modality].items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
    """``M`` forks of ``b`` segments at one step."""

    segments: np.ndarray
    """Indices ``b`` of the segments."""
    step: int
    """From 1."""
    values: Mapping[str, Parts]
    """By modality ``b M ...``."""


MOVING = 12.0
"""Levels of any channel by which a pixel that moves differs from the frame before: more than codecs of videos
add."""


def read_truth(world: World, segments: Sequence[Segment], *, context: int, steps: Sequence[int]) -> Truth:
    """Read what happened at ``steps`` in segments of which ``context`` observations are given."""
    rows = context - 1 + np.array(steps)
    shown: dict[str, list[np.ndarray]] = {key: [] for key in world.cameras}
    real: dict[str, list[np.ndarray]] = {key: [] for key in world.cameras}
    moving: dict[str, list[np.ndarray]] = {key: [] for key in world.cameras}
    states = []
    for segment in segments:
        part = segment[np.concatenate([[context - 1], rows])]
        if world.cameras:
            for key, frames in reconstruct(world, part.frames, proprio=part.proprio).items():
                shown[key].append(frames)
        for key, frames in segment.frames.items():
            real[key].append(frames[rows])
            change = np.abs(frames[rows].astype(np.int16) - frames[rows - 1])
            moving[key].append(change.max(axis=-1) > MOVING)
        if part.proprio is not None:
            states.append(_normalized(world, part.proprio))
    every: dict[str, dict[str, np.ndarray]] = {}
    if world.cameras:
        every[FRAME] = {key: np.stack(values) for key, values in shown.items()}
    if states:
        every[STATE] = {"": np.stack(states)}
    return Truth(
        steps=tuple(steps),
        target={name: {key: part[:, 1:] for key, part in parts.items()} for name, parts in every.items()},
        given={name: {key: part[:, 0] for key, part in parts.items()} for name, parts in every.items()},
        frames={key: np.stack(values) for key, values in real.items()},
        is_moving={key: np.stack(values) for key, values in moving.items()},
    )


def forecast(
    world: World,
    segments: Sequence[Segment],
    actions: np.ndarray,
    steps: Sequence[int],
    *,
    num_forks: int,
    context: int,
    seed: int,
    batch: int,
    label: str,
    num_denoising_steps: int | None = None,
) -> Iterator[Forecast]:
    """Simulate ``num_forks`` futures of each segment under ``actions`` (``B S A``) and yield those at
    ``steps``.

    The futures of a segment depend on ``seed`` and its index alone, not on ``batch``, the sessions that are
    simulated together.
    """
    num = max(1, batch // num_forks)
    chunks = [np.arange(len(segments))[first : first + num] for first in range(0, len(segments), num)]
    with tqdm(total=len(segments) * num_forks * max(steps), desc=label, unit=" steps") as bar:
        for chunk in chunks:
            sessions = start_sessions(
                world,
                [segments[index] for index in chunk],
                context=context,
                generators=[session_generator(seed, int(index)) for index in chunk],
                num_denoising_steps=num_denoising_steps,
            )
            if num_forks > 1:
                sessions = sessions.fork(num_forks, max_rewind=0)
            for step in range(1, max(steps) + 1):
                driven = np.repeat(actions[chunk, step - 1], num_forks, axis=0)
                shown = sessions.step(driven, decode=step in steps, judge=False)
                bar.update(len(driven))
                if step in steps:
                    yield Forecast(segments=chunk, step=step, values=_by_modality(world, shown, num_forks))


def mean_of_forks(values: Parts) -> dict[str, np.ndarray]:
    """Average ``b M ...`` over the forks: the forecast that has the least squared error."""
    return {key: part.mean(axis=1, dtype=np.float32) for key, part in values.items()}


def squared_error(values: Parts, target: Parts) -> np.ndarray:
    """Return the mean squared errors ``N`` of observations ``N ...``, the mean over the parts."""
    parts = [(values[key].astype(np.float32) - part) ** 2 for key, part in target.items()]
    means = [part.reshape(len(part), -1).mean(axis=1) for part in parts]
    return np.stack(means).mean(axis=0, dtype=np.float64)


def _by_modality(world: World, step: Any, num_forks: int) -> dict[str, dict[str, np.ndarray]]:
    values: dict[str, dict[str, np.ndarray]] = {}
    if step.frame is not None:
        values[FRAME] = dict(by_camera(world, step.frame))
    if step.proprio is not None:
        values[STATE] = {"": _normalized(world, step.proprio)}
    return {
        name: {key: part.reshape(-1, num_forks, *part.shape[1:]) for key, part in parts.items()}
        for name, parts in values.items()
    }


def _normalized(world: World, proprio: np.ndarray) -> np.ndarray:
    return proprio / world.proprio_normalizer.half_range
