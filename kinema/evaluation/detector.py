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
from kinema.simulation.world import World
from kinema.types import Frames

BITS = 5
"""Bits of each colour channel that count."""
NUM_WORDS = 8
"""Groups of colours."""
LEAST_SHARE = 2e-6
"""Colours with fewer of all pixels are noise, and no group is made for them."""
NUM_FRAMES = 12_000
"""Most pictures to learn from."""
MAX_EPISODES = 200
LEAST_FRAMES = 100
FEW_EPISODES = 20
"""Fewer than these show too little of what a world can look like."""
NUM_FOLDS = 5
"""Parts of the episodes, each held out in turn."""
NUM_DRAWS = 3
"""Times that words are drawn: now and then some make an episode rare that is not."""
PIECE = 500
"""Pictures that are counted at a time."""
FALSE_ALARMS = 0.01
"""Share of held-out real pictures that are flagged."""
TAIL = 0.99
"""Share of real pictures that lie within one unit of each direction."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Census:
    """Pixels of one camera's pictures, counted by colour."""

    words: np.ndarray
    """The word of each colour, ``8**BITS``."""
    distances: np.ndarray
    """How far each colour is from its word, ``8**BITS`` float32."""
    num_words: int

    @classmethod
    def fit(cls, colours: np.ndarray, rng: np.random.Generator) -> Self:
        """Words of the colours ``N pixels`` of pictures."""
        counts = np.zeros(8**BITS, dtype=np.int64)
        for start in range(0, len(colours), PIECE):
            counts += np.bincount(colours[start : start + PIECE].ravel(), minlength=8**BITS)
        places = np.arange(8**BITS)
        side = 2**BITS
        channels = np.stack([places // side**2, places // side % side, places % side], axis=1)
        channels = channels.astype(np.float32)
        centres = _cluster(channels[counts > LEAST_SHARE * counts.sum()], NUM_WORDS, rng)
        distances = np.linalg.norm(channels[:, None] - centres, axis=2)
        return cls(words=distances.argmin(axis=1), distances=distances.min(axis=1), num_words=len(centres))

    def count(self, colours: np.ndarray) -> np.ndarray:
        """Pixels by word, and last the sum of their distances from their words: ``N words+1`` float32 of the
        colours ``N pixels`` of pictures."""
        found = np.zeros((len(colours), self.num_words + 1), dtype=np.float32)
        for start in range(0, len(colours), PIECE):
            piece = colours[start : start + PIECE]
            rows = np.arange(len(piece))[:, None] * self.num_words
            words = np.bincount((self.words[piece] + rows).ravel(), minlength=len(piece) * self.num_words)
            found[start : start + PIECE, :-1] = words.reshape(len(piece), -1)
            found[start : start + PIECE, -1] = self.distances[piece].sum(axis=1)
        return found


class _Fit:
    """Words, and how often real pictures have each."""

    def __init__(self, colours: Mapping[str, np.ndarray], rng: np.random.Generator) -> None:
        self._censuses = {key: _Census.fit(of_camera, rng) for key, of_camera in colours.items()}
        counts = self._count(colours)
        self._mean = counts.mean(axis=0)
        # Words that never change get some room, as much as a pixel takes.
        variance, directions = np.linalg.eigh(np.cov(counts.T) + np.eye(counts.shape[1]))
        self._directions = directions / np.sqrt(variance)
        # Along some directions the counts of real pictures have long tails, for instance where a thing leaves
        # the picture: each direction is measured by its own tail.
        self._tails = np.maximum(np.quantile(np.abs(self._along(counts)), TAIL, axis=0), 1.0)

    def score(self, colours: Mapping[str, np.ndarray]) -> np.ndarray:
        """``N`` distances from real pictures."""
        return np.sqrt(((self._along(self._count(colours)) / self._tails) ** 2).sum(axis=1))

    def _count(self, colours: Mapping[str, np.ndarray]) -> np.ndarray:
        counts = [census.count(colours[key]) for key, census in self._censuses.items()]
        return np.concatenate(counts, axis=1)

    def _along(self, counts: np.ndarray) -> np.ndarray:
        """Counts ``N D`` along the principal directions of real ones, in deviations."""
        return (counts - self._mean) @ self._directions


class TooFewFramesError(DataError):
    """The recordings hold too few frames to train a detector."""


class Detector:
    """Tells possible pictures from impossible ones. ``train`` makes one."""

    def __init__(self, fits: Sequence[_Fit], threshold: float) -> None:
        self._fits = fits
        self.threshold = threshold
        self.num_frames = 0
        """Real pictures it was trained on."""
        self.num_episodes = 0
        """Episodes that these are from."""
        self.false_alarms = 0.0
        """Share of the real pictures that are flagged while they are held out."""
        self.source = ""

    @classmethod
    def train(
        cls, world: World, dataset: Dataset, *, episodes: Sequence[int] | None = None, seed: int = 0
    ) -> Self:
        """A detector of what a world's cameras can show, from real pictures and, as far as they differ, from
        the same through the world's tokenizer.

        A fifth of the ``episodes`` (all by default) is held out in turn, or a fifth of each where they are
        few, and the rest is learned from. The threshold is set on what each of these five says of what it did
        not see; of other pictures all five are asked. All of that is done with several draws of words, and
        scores are means over these.

        Raises:
            TooFewFramesError: the dataset is too small.
            DataError: the dataset lacks a camera of the world.
        """
        rng = np.random.default_rng(seed)
        drawn = rng.permutation(np.arange(dataset.num_episodes) if episodes is None else np.array(episodes))
        pieces = _draw(world, dataset, drawn[:MAX_EPISODES])
        real = _join(pieces)
        if len(real) < LEAST_FRAMES:
            raise TooFewFramesError(
                f"a detector of valid frames learns from at least {LEAST_FRAMES} real pictures, there are "
                f"{len(real)}; give more recordings as --data",
                path=dataset.root,
            )
        folds = _folds([len(piece) for piece in pieces])
        colours = _colours(real.frames)
        reconstructed = _colours(reconstruct(world, real.frames, proprio=real.proprio))
        fits, scores = [], np.zeros(len(real))
        for fold in range(NUM_FOLDS):
            kept = folds != fold
            both = {key: np.concatenate([colours[key][kept], reconstructed[key][kept]]) for key in colours}
            drawn_fits = [_Fit(both, rng) for _ in range(NUM_DRAWS)]
            held_out = {key: of_camera[~kept] for key, of_camera in colours.items()}
            scores[~kept] = np.mean([fit.score(held_out) for fit in drawn_fits], axis=0)
            fits += drawn_fits
        detector = cls(fits, float(np.quantile(scores, 1.0 - FALSE_ALARMS)))
        detector.num_frames = len(real)
        detector.num_episodes = len(pieces)
        detector.false_alarms = float((scores > detector.threshold).mean())
        detector.source = str(dataset.root)
        return detector

    def score(self, frames: Frames) -> np.ndarray:
        """``N`` distances of pictures by camera (``N H W 3`` uint8) from real ones."""
        colours = _colours(frames)
        return np.mean([fit.score(colours) for fit in self._fits], axis=0)

    def is_valid(self, frames: Frames) -> np.ndarray:
        """``N`` bool: pictures that the world could show."""
        return self.score(frames) <= self.threshold

    def describe(self) -> str:
        """What it was made from, in a sentence."""
        text = (
            f"Trained detector: {self.num_frames:,} real frames of {self.source}; it flags "
            f"{self.false_alarms:.1%} of them while they are held out."
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
        frames = {key: pictures[::spacing] for key, pictures in episode.frames.items()}
        piece = _Piece(
            frames=world.by_camera(frames), proprio=None if proprio is None else proprio[::spacing]
        )
        pieces.append(piece)
    return pieces


def _join(pieces: Sequence[_Piece]) -> _Piece:
    proprio = [piece.proprio for piece in pieces if piece.proprio is not None]
    return _Piece(
        frames={key: np.concatenate([piece.frames[key] for piece in pieces]) for key in pieces[0].frames},
        proprio=np.concatenate(proprio) if proprio else None,
    )


def _folds(lengths: Sequence[int]) -> np.ndarray:
    """The fold of each picture of episodes so long: whole episodes where they suffice, else parts of each."""
    if len(lengths) >= NUM_FOLDS:
        return np.repeat(np.arange(len(lengths)) % NUM_FOLDS, lengths)
    return np.concatenate([np.arange(length) * NUM_FOLDS // length for length in lengths])


def _colours(frames: Frames) -> dict[str, np.ndarray]:
    """By camera ``N pixels``: one number for each colour, channels cut to ``BITS``."""
    found = {}
    for key, pictures in frames.items():
        red, green, blue = (pictures[..., channel].astype(np.uint16) >> (8 - BITS) for channel in range(3))
        found[key] = ((red << 2 * BITS) | (green << BITS) | blue).reshape(len(pictures), -1)
    return found


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
