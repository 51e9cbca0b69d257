"""Whether a picture is one that a world can show, learned from real pictures of any dataset.

A camera that does not move sees the same things all the time, so how many pixels have each colour hardly
changes: a thing that is missing, there twice, faded or repainted changes it by many times what real pictures
do. So the colours that a dataset shows are grouped into words, every picture is counted into them, and counts
far from those of real pictures are not possible ones. Nothing is built in of what the things are.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np

from kinema.data.lerobot import DataError, Dataset
from kinema.evaluation.rollout import reconstruct
from kinema.simulation import World
from kinema.types import Frames

BITS = 5
"""Bits of each colour channel that count."""
NUM_WORDS = 8
"""Groups of colours."""
LEAST_SHARE = 2e-6
"""Colours with fewer of all pixels are noise, and no group is made for them."""
NUM_FRAMES = 6000
"""Most pictures to learn from, and to set the threshold on."""
MAX_EPISODES = 60
LEAST_FRAMES = 100
FEW_EPISODES = 20
"""Fewer than these show too little of what a world can look like."""
HELD_OUT_SHARE = 1 / 3
FALSE_ALARMS = 0.01
"""Share of held-out real pictures that are flagged."""
TAIL = 0.99
"""Share of real pictures that lie within one unit of each direction."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Census:
    """Pixels of one camera's pictures, counted by colour."""

    words: np.ndarray
    """By colour: one-hot words, and last the distance to the nearest one; ``8**BITS words+1`` float32."""

    @classmethod
    def fit(cls, pictures: np.ndarray, rng: np.random.Generator) -> Self:
        counts = np.bincount(_colours(pictures).ravel(), minlength=8**BITS)
        places = np.arange(8**BITS)
        side = 2**BITS
        colours = np.stack([places // side**2, places // side % side, places % side], axis=1).astype(
            np.float32
        )
        centres = _cluster(colours[counts > LEAST_SHARE * counts.sum()], NUM_WORDS, rng)
        distances = np.linalg.norm(colours[:, None] - centres, axis=2)
        words = np.eye(len(centres), dtype=np.float32)[distances.argmin(axis=1)]
        return cls(words=np.concatenate([words, distances.min(axis=1, keepdims=True)], axis=1))

    def count(self, pictures: np.ndarray) -> np.ndarray:
        """``N words+1`` of pictures ``N H W 3``."""
        found = [np.bincount(row, minlength=8**BITS) for row in _colours(pictures)]
        return np.stack(found).astype(np.float32) @ self.words


class Detector:
    """Tells possible pictures from impossible ones. ``train`` makes one."""

    def __init__(self, censuses: Mapping[str, _Census], counts: np.ndarray) -> None:
        self._censuses = censuses
        self._mean = counts.mean(axis=0)
        # Words that never change get some room, as much as a pixel takes.
        variance, directions = np.linalg.eigh(np.cov(counts.T) + np.eye(counts.shape[1]))
        self._directions = directions / np.sqrt(variance)
        # Along some directions the counts of real pictures have long tails, for instance where a thing leaves
        # the picture: each direction is measured by its own tail.
        self._tails = np.maximum(np.quantile(np.abs(self._along(counts)), TAIL, axis=0), 1.0)
        self.threshold = 1.0
        self.num_frames = 0
        """Real pictures it was trained on."""
        self.num_episodes = 0
        """Episodes that these are from, those held out included."""
        self.false_alarms = 0.0
        """Share of the held-out real pictures that it flags."""
        self.source = ""

    @classmethod
    def train(
        cls, world: World, dataset: Dataset, *, episodes: Sequence[int] | None = None, seed: int = 0
    ) -> Self:
        """A detector of what a world's cameras can show, from real pictures and, as far as they differ, from
        the same through the world's tokenizer.

        Of many ``episodes`` (all by default) a third is held out for the threshold, of one or two the last
        third of each.

        Raises:
            DataError: the dataset lacks a camera of the world, or is too small.
        """
        rng = np.random.default_rng(seed)
        drawn = rng.permutation(np.arange(dataset.num_episodes) if episodes is None else np.array(episodes))
        pieces = _draw(world, dataset, drawn[:MAX_EPISODES])
        lengths = [len(piece) for piece in pieces]
        if sum(lengths) < LEAST_FRAMES:
            raise DataError(
                f"a detector needs at least {LEAST_FRAMES} real pictures, there are {sum(lengths)}",
                path=dataset.root,
            )
        if len(pieces) < 3:
            cuts = [int(length * (1 - HELD_OUT_SHARE)) for length in lengths]
            fitted = [piece[:cut] for piece, cut in zip(pieces, cuts, strict=True)]
            held_out = [piece[cut:] for piece, cut in zip(pieces, cuts, strict=True)]
        else:
            num_fitted = round(len(pieces) * (1 - HELD_OUT_SHARE))
            fitted, held_out = pieces[:num_fitted], pieces[num_fitted:]
        real, other = _join(fitted), _join(held_out).frames
        reconstructed = reconstruct(world, real.frames, proprio=real.proprio)
        both = {key: np.concatenate([pictures, reconstructed[key]]) for key, pictures in real.frames.items()}
        censuses = {key: _Census.fit(pictures, rng) for key, pictures in both.items()}
        detector = cls(censuses, _count(censuses, both))
        detector.num_frames = len(real)
        detector.num_episodes = len(pieces)
        detector.threshold = float(np.quantile(detector.score(other), 1.0 - FALSE_ALARMS))
        detector.false_alarms = float(1.0 - detector.is_valid(other).mean())
        detector.source = str(dataset.root)
        return detector

    def score(self, frames: Frames) -> np.ndarray:
        """``N`` distances of pictures by camera (``N H W 3`` uint8) from real ones."""
        along = self._along(_count(self._censuses, frames)) / self._tails
        return np.sqrt((along**2).sum(axis=1))

    def is_valid(self, frames: Frames) -> np.ndarray:
        """``N`` bool: pictures that the world could show."""
        return self.score(frames) <= self.threshold

    def _along(self, counts: np.ndarray) -> np.ndarray:
        """Counts ``N D`` along the principal directions of real ones, in deviations."""
        return (counts - self._mean) @ self._directions

    def describe(self) -> str:
        """What it was made from, in a sentence."""
        text = (
            f"Trained detector: {self.num_frames:,} real frames of {self.source}; it flags "
            f"{self.false_alarms:.1%} of the held-out ones."
        )
        if self.num_episodes < FEW_EPISODES:
            text += (
                f" Only {self.num_episodes} episodes to learn from: it will take what these do not show for "
                "impossible. Read its curve beside those of real frames and of the codec, or give it more "
                "as --data."
            )
        return text


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Piece:
    """Rows of an episode."""

    frames: Frames
    """By camera, at the size that the world shows."""
    proprio: np.ndarray | None
    """Where the world knows it and the dataset has it."""

    def __len__(self) -> int:
        return len(next(iter(self.frames.values())))

    def __getitem__(self, rows: slice) -> "_Piece":
        return _Piece(
            frames={key: pictures[rows] for key, pictures in self.frames.items()},
            proprio=None if self.proprio is None else self.proprio[rows],
        )


def _draw(world: World, dataset: Dataset, chosen: np.ndarray) -> list[_Piece]:
    """Rows of the chosen episodes, evenly spaced in each."""
    for camera in world.cameras:
        if camera not in dataset.cameras:
            raise DataError(
                f"world '{world.name}' needs camera {camera}; the dataset has "
                f"{', '.join(dataset.cameras) or 'none'}",
                path=dataset.root,
            )
    lengths = dataset.lengths()[chosen]
    spacing = max(1, -(-int(lengths.sum()) // NUM_FRAMES))
    pieces = []
    for index in chosen:
        episode = dataset.episode(int(index), cameras=world.cameras)
        proprio = episode.columns.get(world.config.proprio_key or "")
        piece = _Piece(frames=episode.frames, proprio=proprio)[::spacing]
        pieces.append(dataclasses.replace(piece, frames=world.by_camera(piece.frames)))
    return pieces


def _join(pieces: Sequence[_Piece]) -> _Piece:
    proprio = [piece.proprio for piece in pieces if piece.proprio is not None]
    return _Piece(
        frames={key: np.concatenate([piece.frames[key] for piece in pieces]) for key in pieces[0].frames},
        proprio=np.concatenate(proprio) if proprio else None,
    )


def _count(censuses: Mapping[str, _Census], frames: Frames) -> np.ndarray:
    return np.concatenate([census.count(frames[key]) for key, census in censuses.items()], axis=1)


def _colours(pictures: np.ndarray) -> np.ndarray:
    """``N pixels``: one number for each colour, channels cut to ``BITS``."""
    red, green, blue = (pictures[..., channel].astype(np.int32) >> (8 - BITS) for channel in range(3))
    return ((red << 2 * BITS) | (green << BITS) | blue).reshape(len(pictures), -1)


def _cluster(points: np.ndarray, num: int, rng: np.random.Generator, *, num_updates: int = 10) -> np.ndarray:
    """k-means with the starts of k-means++; fewer centres where there are fewer points."""
    centres = points[rng.integers(0, len(points), 1)]
    while len(centres) < min(num, len(points)):
        square = ((points[:, None] - centres) ** 2).sum(axis=2).min(axis=1)
        centres = np.concatenate([centres, points[rng.choice(len(points), 1, p=square / square.sum())]])
    for _ in range(num_updates):
        nearest = ((points[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
        centres = np.stack(
            [
                points[nearest == index].mean(axis=0) if (nearest == index).any() else centre
                for index, centre in enumerate(centres)
            ]
        )
    return centres
