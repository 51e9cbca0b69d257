"""What sessions of a world start with: places in recorded episodes, or what was seen and done last."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from kinema.data.lerobot import DataError, Dataset
from kinema.simulation.session import Simulation, SimulationBatch
from kinema.simulation.world import World
from kinema.types import Seen

MAX_EPISODES = 16
"""Episodes that are decoded, since one is decoded as a whole."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """What a session is shown before its first step."""

    frames: dict[str, np.ndarray]
    """By camera, at the size that the world shows: ``T H W C``."""
    actions: np.ndarray
    """``T-1 A``, those between the frames."""
    proprio: np.ndarray | None
    """``T P`` where the world knows it."""

    @property
    def last(self) -> Seen:
        """What there is to see when the session begins."""
        proprio = None if self.proprio is None else self.proprio[-1]
        return Seen(frames={key: frames[-1] for key, frames in self.frames.items()}, proprio=proprio)


class Starts:
    """Starts drawn once from a dataset, to be drawn from again and again."""

    def __init__(
        self, world: World, dataset: Dataset, *, num: int = 64, context: int | None = None, seed: int = 0
    ):
        """Decodes up to ``MAX_EPISODES`` episodes, evenly spread over the dataset.

        Args:
            world: whose sessions shall start there.
            dataset: recorded episodes.
            num: places.
            context: frames shown; by default as many as fill the windows of attention over time, which a
                ``WorldVectorEnv`` needs.
            seed: of the choice of places.

        Raises:
            DataError: the dataset lacks what the world needs, or has no episode that is long enough.
        """
        check_dataset(world, dataset)
        self.context = context if context is not None else world.config.dynamics.frames_to_fill
        if num < 1 or self.context < 1:
            raise ValueError(f"num={num}, context={self.context}: at least 1 is needed of each")
        lengths = dataset.lengths()
        usable = np.flatnonzero(lengths >= self.context)
        if not len(usable):
            raise DataError(
                f"sessions start with {self.context} frames, but the longest episode has "
                f"{max(lengths, default=0)}; record longer ones, or give a smaller context",
                path=dataset.root,
            )
        num_episodes = min(MAX_EPISODES, num, len(usable))
        chosen = usable[np.linspace(0, len(usable) - 1, num_episodes).round().astype(int)]
        rng = np.random.default_rng(seed)
        self.starts: list[Start] = []
        for place, index in enumerate(chosen):
            episode = dataset.episode(int(index), cameras=world.cameras)
            key = world.config.proprio_key
            for _ in range(place, num, num_episodes):
                first = int(rng.integers(0, len(episode) - self.context + 1))
                rows = slice(first, first + self.context)
                shown = {camera: episode.frames[camera][rows] for camera in world.cameras}
                self.starts.append(
                    Start(
                        frames=world.by_camera(shown) if shown else {},
                        actions=episode.actions[rows][:-1],
                        proprio=None if key is None else np.asarray(episode.columns[key][rows], np.float32),
                    )
                )

    def draw(self, rng: np.random.Generator) -> Start:
        """One of them."""
        return self.starts[int(rng.integers(len(self.starts)))]


class History:
    """The last frames of an episode and the actions between them: what a session is started with."""

    def __init__(self, world: World, length: int):
        if length < 1:
            raise ValueError(f"a history of {length} frames: at least 1 is needed")
        self.world, self.length = world, length
        self.seen: list[Seen] = []
        self.actions: list[np.ndarray] = []

    def begin(self, seen: Seen) -> None:
        """Forget all but this."""
        self.seen, self.actions = [seen], []

    def add(self, action: np.ndarray, seen: Seen) -> None:
        """What was done, and what was seen then."""
        self.seen = [*self.seen, seen][-self.length :]
        actions = [*self.actions, np.asarray(action, dtype=np.float32)]
        self.actions = actions[len(actions) - len(self.seen) + 1 :]

    def start(self, seed: int = 0) -> Simulation:
        """A session that goes on from here."""
        frames = {key: np.stack([seen.frames[key] for seen in self.seen]) for key in self.world.cameras}
        proprio = [seen.proprio for seen in self.seen if seen.proprio is not None]
        return self.world.start(
            frames or None,
            np.stack(self.actions) if self.actions else None,
            proprio=np.stack(proprio) if proprio else None,
            generator=torch.Generator().manual_seed(seed),
        )


def begin(world: World, starts: Sequence[Start], seeds: Sequence[int]) -> SimulationBatch:
    """One session for each start, that cannot be rewound, which keeps hundreds of them small."""
    proprio = [start.proprio for start in starts if start.proprio is not None]
    return world.start_batch(
        {key: np.stack([start.frames[key] for start in starts]) for key in world.cameras} or None,
        np.stack([start.actions for start in starts]),
        proprio=np.stack(proprio) if proprio else None,
        generators=[torch.Generator().manual_seed(seed) for seed in seeds],
        max_rewind=0,
    )


def check_dataset(world: World, dataset: Dataset) -> None:
    """Whether the dataset has what the world needs. Raises DataError."""
    missing = [camera for camera in world.cameras if camera not in dataset.cameras]
    if missing:
        raise DataError(
            f"world '{world.name}' needs camera {', '.join(missing)}; the dataset has "
            f"{', '.join(dataset.cameras) or 'none'}",
            path=dataset.root,
        )
    for key in ("action" if world.action_dim else None, world.config.proprio_key):
        if key is not None and key not in dataset.features:
            raise DataError(f"world '{world.name}' needs this column", path=dataset.root, key=key)
    size = int(np.prod(dataset.features["action"]["shape"])) if "action" in dataset.features else 0
    if size != world.action_dim:
        raise DataError(
            f"actions have {size} numbers, but world '{world.name}' takes {world.action_dim} "
            f"({', '.join(world.config.action_names)})",
            path=dataset.root,
            key="action",
        )
