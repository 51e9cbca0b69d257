"""The real side of a long comparison, step by step: recorded episodes here, live environments in ``live``.

All rollouts go on together, and pictures are kept only where they are needed, so that a hundred thousand
steps take no more memory than a hundred.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

import numpy as np

from kinema.data.lerobot import Dataset
from kinema.evaluation.rollout import concatenate, read_rows
from kinema.kits import Probe, Reading
from kinema.simulation.world import World
from kinema.types import Episode, Frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moment:
    """What ``R`` real rollouts show at one time."""

    frames: Frames | None
    """By camera, ``R H W C``, at the size that the world shows; None where they were not asked for."""
    columns: Mapping[str, np.ndarray]
    """Everything else by key, ``R`` first; ``action`` is what was then done."""
    is_running: np.ndarray
    """``R`` bool: whether the rollout still goes on; one that is over repeats its last row."""
    reference: Reading | None
    """State of the things, recorded or else as the probe sees it; None without a probe or pictures."""


@runtime_checkable
class Reality(Protocol):
    """Where rollouts come from."""

    num_rollouts: int
    source: str
    """What to call it."""

    def moments(self) -> Iterator[Moment]:
        """One for each time: first those to start from, then those to compare with."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class RecordedEpisodes:
    """Pieces of recorded episodes: the beginnings of all first, then later pieces of the longer ones."""

    def __init__(
        self, world: World, dataset: Dataset, *, num: int, is_needed: np.ndarray, probe: Probe | None
    ) -> None:
        """Reads up to ``num`` pieces of as many rows as ``is_needed`` (bool) has; it says of which to keep
        the pictures.

        Raises:
            DataError: no episode is long enough, or the dataset lacks what the world needs.
        """
        self.source = str(dataset.root)
        self._world, self._probe, self._is_needed = world, probe, is_needed
        length = len(is_needed)
        advice = "ask for fewer --steps, or drive a live environment with --env"
        self._pieces: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray], Reading | None]] = []
        self.episodes: set[int] = set()
        """Episodes that the pieces are from."""
        for episode, rows in read_rows(world, dataset, num=num, length=length, advice=advice):
            self.episodes.add(episode.index)
            self._pieces.append(self._cut(episode, rows))
        self.num_rollouts = len(self._pieces)

    def _cut(
        self, episode: Episode, rows: slice
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], Reading | None]:
        frames = {key: pictures[rows][self._is_needed] for key, pictures in episode.frames.items()}
        frames = self._world.by_camera(frames) if self._world.cameras else {}
        columns = {
            key: values[rows] for key, values in episode.columns.items() if values.dtype.kind in "fiub"
        }
        reading = None
        if self._probe is not None:
            recorded = self._probe.recorded(episode)
            reading = self._probe.read(frames) if recorded is None else recorded[rows][self._is_needed]
        return frames, columns, reading

    def moments(self) -> Iterator[Moment]:
        kept = np.cumsum(self._is_needed) - 1
        everywhere = np.ones(self.num_rollouts, dtype=bool)
        for time, is_needed in enumerate(self._is_needed):
            at = int(kept[time])
            frames = reference = None
            if is_needed:
                frames = {
                    key: np.stack([f[key][at] for f, _, _ in self._pieces]) for key in self._pieces[0][0]
                }
                readings = [reading[at : at + 1] for _, _, reading in self._pieces if reading is not None]
                reference = concatenate(readings) if readings else None
            columns = {
                key: np.stack([piece[key][time] for _, piece, _ in self._pieces])
                for key in self._pieces[0][1]
            }
            yield Moment(frames=frames, columns=columns, is_running=everywhere, reference=reference)

    def close(self) -> None:
        """Nothing is held but memory."""
