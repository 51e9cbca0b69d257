"""Recorded episodes that sessions may begin in."""

import asyncio
from collections import OrderedDict
from pathlib import Path

from kinema.data import Dataset
from kinema.serve import schema
from kinema.serve.limits import Refusal
from kinema.simulation.world import BUNDLED_WORLDS, World
from kinema.types import Episode

MAX_EPISODES = 3
"""Decoded episodes that are kept."""


class Recordings:
    """The episodes of a dataset, or none; used from one event loop."""

    def __init__(self, world: World, dataset: Dataset | None):
        """Raises ValueError where the dataset lacks a camera of the world."""
        if dataset is not None:
            missing = [key for key in world.cameras if key not in dataset.cameras]
            if missing:
                raise ValueError(f"{dataset.root}: no camera {', '.join(missing)}, which the world needs")
        self._world, self.dataset = world, dataset
        self._episodes: OrderedDict[int, Episode] = OrderedDict()
        self._reading = asyncio.Lock()

    def __len__(self) -> int:
        return 0 if self.dataset is None else self.dataset.num_episodes

    def list(self, first: int, num: int) -> schema.Episodes:
        """List some of the episodes with their lengths."""
        lengths = [] if self.dataset is None else self.dataset.lengths()[first : first + num]
        return schema.Episodes(
            num=len(self),
            episodes=[
                schema.EpisodeInfo(index=first + index, num_rows=int(length))
                for index, length in enumerate(lengths)
            ],
        )

    async def episode(self, index: int) -> Episode:
        """Read an episode. Raises Refusal (404)."""
        if self.dataset is None or not 0 <= index < len(self):
            raise Refusal(
                404,
                f"no episode {index}: this server has {len(self)}, counted from 0"
                + ("" if len(self) else "; start from frames instead"),
                reason="episode",
            )
        async with self._reading:
            if index not in self._episodes:
                self._episodes[index] = await asyncio.to_thread(
                    self.dataset.episode, index, self._world.cameras
                )
            self._episodes.move_to_end(index)
            while len(self._episodes) > MAX_EPISODES:
                self._episodes.popitem(last=False)
            return self._episodes[index]


def find_recordings(source: str, data: Path | None) -> Dataset | None:
    """Open the dataset ``data``, or the recordings that a world brings, where it has any."""
    if data is not None:
        return Dataset.open(data)
    folder = Path(source) if Path(source).is_dir() else BUNDLED_WORLDS / source
    own = folder / "recording"
    return Dataset.open(own) if own.is_dir() else None
