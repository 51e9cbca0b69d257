"""A detector of frames that a world can show, learned from real frames of any dataset.

A camera that does not move sees the same things all the time, so the number of pixels of each colour hardly
changes: a thing that is missing, there twice, faded or repainted changes it by many times more than real
frames do. So the colours of a dataset are grouped, the pixels of every frame are counted by group, and counts
far from those of real frames are not possible ones. Nothing in it knows the things of a world. The counts of
a camera that moves vary more; blur, faded colours, noise and two frames in one are told apart all the same.
"""

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np

from kinema.data.lerobot import DataError, Dataset
from kinema.evaluation.rollout import Segment, concatenate_segments, reconstruct
from kinema.simulation.world import World
from kinema.types import Frames

BITS = 5
"""Bits of each colour channel that count."""
NUM_GROUPS = 8
"""Groups of colours of a camera."""
LEAST_SHARE = 2e-6
"""Colours with fewer of all pixels are noise, and no group is made for them."""
NUM_FRAMES = 12_000
"""Most frames to learn from."""
MAX_EPISODES = 200
LEAST_FRAMES = 100
FEW_EPISODES = 20
"""Fewer than these show too little of the world."""
NUM_FOLDS = 5
"""Parts of the episodes, each held out in turn."""
NUM_DRAWS = 3
"""Times that groups are drawn: now and then some make an episode rare that is not."""
CHUNK = 500
"""Frames that are counted at a time."""
MEDIAN_FRAMES = 200
"""Frames from which the median frame is computed."""
LARGEST_LOSS = 0.5
"""Share of the squared difference between a frame and the median one that the codec may lose of it."""
FALSE_ALARMS = 0.01
"""Share of held-out real frames that are flagged."""
TAIL = 0.99
"""Share of real frames that lie within one unit of each direction."""


class _Groups:
    """Groups of one camera's colours."""

    def __init__(self, colours: np.ndarray, rng: np.random.Generator) -> None:
        """Group the colours ``N pixels`` of frames."""
        from scipy.cluster.vq import kmeans2

        counts = np.zeros(8**BITS, dtype=np.int64)
        for start in range(0, len(colours), CHUNK):
            counts += np.bincount(colours[start : start + CHUNK].ravel(), minlength=8**BITS)
        channels = np.stack(np.unravel_index(np.arange(8**BITS), [2**BITS] * 3), axis=1).astype(np.float32)
        frequent = channels[counts > LEAST_SHARE * counts.sum()]
        num = min(NUM_GROUPS, len(frequent))
        centres, _ = kmeans2(frequent, num, minit="++", missing="warn", rng=rng)
        distances = np.linalg.norm(channels[:, None] - centres, axis=2)
        self._num, self._group, self._distance = num, distances.argmin(axis=1), distances.min(axis=1)

    def count(self, colours: np.ndarray) -> np.ndarray:
        """Count the pixels of frames (``N pixels``) by group, and last sum their distances from the centres:
        ``N groups+1`` float32."""
        counts = np.zeros((len(colours), self._num + 1), dtype=np.float32)
        for start in range(0, len(colours), CHUNK):
            chunk = colours[start : start + CHUNK]
            first = np.arange(len(chunk))[:, None] * self._num
            pixels = np.bincount((self._group[chunk] + first).ravel(), minlength=len(chunk) * self._num)
            counts[start : start + CHUNK, :-1] = pixels.reshape(len(chunk), -1)
            counts[start : start + CHUNK, -1] = self._distance[chunk].sum(axis=1)
        return counts


class _Fit:
    """Groups of colours, and the distribution of their counts in real frames."""

    def __init__(self, colours: Mapping[str, np.ndarray], rng: np.random.Generator) -> None:
        self._groups = {key: _Groups(of_camera, rng) for key, of_camera in colours.items()}
        counts = self._count(colours)
        self._mean = counts.mean(axis=0)
        # Groups that never change get some room, as much as a pixel takes.
        variance, directions = np.linalg.eigh(np.cov(counts.T) + np.eye(counts.shape[1]))
        self._directions = directions / np.sqrt(variance)
        # Along some directions the counts of real frames have long tails, for instance where a thing leaves
        # the frame: each direction is measured by its own tail.
        self._tails = np.maximum(np.quantile(np.abs(self._along(counts)), TAIL, axis=0), 1.0)

    def score(self, colours: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return ``N`` distances from real frames."""
        return np.sqrt(((self._along(self._count(colours)) / self._tails) ** 2).sum(axis=1))

    def _count(self, colours: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([groups.count(colours[key]) for key, groups in self._groups.items()], axis=1)

    def _along(self, counts: np.ndarray) -> np.ndarray:
        """Project counts ``N D`` on the principal directions of real ones, in deviations."""
        return (counts - self._mean) @ self._directions


class TooFewFramesError(DataError):
    """The recordings hold too few frames to train a detector."""


class Detector:
    """Tells possible frames from impossible ones; ``train`` makes one."""

    def __init__(self, fits: Sequence[_Fit], threshold: float) -> None:
        self._fits, self.threshold = fits, threshold
        self.false_alarms = 0.0
        """Share of the real frames that are flagged while they are held out."""
        self._source, self._num_frames, self._num_episodes, self._share_kept = "", 0, 0, 1.0

    @classmethod
    def train(
        cls, world: World, dataset: Dataset, *, episodes: Sequence[int] | None = None, seed: int = 0
    ) -> Self:
        """Train on real frames and, where they survive it, on the same through the world's tokenizer.

        A fifth of the ``episodes`` (all by default) is held out in turn, or a fifth of each of few episodes,
        and a detector learns from the rest. The threshold is set on scores of held-out frames; other frames
        are scored by all five. That is done with several draws of groups, and scores are means over these.

        Raises:
            TooFewFramesError: the dataset is too small.
            DataError: the dataset lacks a camera of the world.
        """
        rng = np.random.default_rng(seed)
        drawn = rng.permutation(np.arange(dataset.num_episodes) if episodes is None else np.array(episodes))
        segments = _draw(world, dataset, drawn[:MAX_EPISODES])
        real, lengths = concatenate_segments(segments), [len(segment) for segment in segments]
        if len(real) < LEAST_FRAMES:
            raise TooFewFramesError(
                f"a detector of valid frames learns from at least {LEAST_FRAMES} real frames, there are "
                f"{len(real)}; give more recordings as --data",
                path=dataset.root,
            )
        folds = np.repeat(np.arange(len(segments)) % NUM_FOLDS, lengths)
        if len(segments) < NUM_FOLDS:
            folds = np.concatenate([np.arange(length) * NUM_FOLDS // length for length in lengths])
        colours = _colours(real.frames)
        decoded = reconstruct(world, real.frames, proprio=real.proprio)
        reconstructed, is_kept = _colours(decoded), _survive(real.frames, decoded)
        fits, scores = [], np.zeros(len(real))
        for fold in range(NUM_FOLDS):
            kept = folds != fold
            also = kept & is_kept
            both = {key: np.concatenate([colours[key][kept], reconstructed[key][also]]) for key in colours}
            of_fold = [_Fit(both, rng) for _ in range(NUM_DRAWS)]
            held_out = {key: of_camera[~kept] for key, of_camera in colours.items()}
            scores[~kept] = np.mean([fit.score(held_out) for fit in of_fold], axis=0)
            fits += of_fold
        detector = cls(fits, float(np.quantile(scores, 1.0 - FALSE_ALARMS)))
        detector.false_alarms = float((scores > detector.threshold).mean())
        detector._source, detector._num_frames = str(dataset.root), len(real)
        detector._num_episodes, detector._share_kept = len(segments), float(is_kept.mean())
        return detector

    def score(self, frames: Frames) -> np.ndarray:
        """Return ``N`` distances of frames by camera (``N H W 3`` uint8) from real ones."""
        colours = _colours(frames)
        return np.mean([fit.score(colours) for fit in self._fits], axis=0)

    def is_valid(self, frames: Frames) -> np.ndarray:
        """Tell, ``N`` bool, which frames the world could show."""
        return self.score(frames) <= self.threshold

    def describe(self) -> str:
        """Say in a sentence on what it was trained."""
        text = (
            f"Trained detector: {self._num_frames:,} real frames of {self._source}; it flags "
            f"{self.false_alarms:.1%} of them while they are held out."
        )
        if self._share_kept < 1.0:
            text += (
                f" The codec loses most of {1.0 - self._share_kept:.1%} of the frames, whose versions by it "
                "are not taken for possible."
            )
        if self._num_episodes < FEW_EPISODES:
            text += (
                f" Only {self._num_episodes} episodes to learn from: it will take what these do not show for "
                "impossible. Read its curve beside those of real frames and of the codec, or give it more "
                "as --data."
            )
        return text


def _draw(world: World, dataset: Dataset, chosen: np.ndarray) -> list[Segment]:
    """Read rows of the chosen episodes, evenly spaced in each."""
    missing = [camera for camera in world.cameras if camera not in dataset.cameras]
    if missing:
        shown = ", ".join(dataset.cameras) or "none"
        message = f"world '{world.name}' needs camera {', '.join(missing)}; the dataset has {shown}"
        raise DataError(message, path=dataset.root)
    spacing = max(1, -(-int(dataset.lengths()[chosen].sum()) // NUM_FRAMES))
    segments = []
    for index in chosen:
        episode = dataset.episode(int(index), cameras=world.cameras)
        proprio = episode.columns.get(world.config.proprio_key or "")
        frames = world.by_camera({key: frames[::spacing] for key, frames in episode.frames.items()})
        segments.append(Segment(frames=frames, proprio=None if proprio is None else proprio[::spacing]))
    return segments


def _survive(real: Frames, decoded: Frames) -> np.ndarray:
    """Return ``N`` bool: frames of which the codec keeps most of what tells them from the median frame.

    A codec that loses the things, or shows noise, must not make frames of its own kind possible ones.
    """
    lost, whole = [], []
    for key, frames in real.items():
        median = np.median(frames[:: max(1, len(frames) // MEDIAN_FRAMES)], axis=0)
        chunks = [slice(start, start + CHUNK) for start in range(0, len(frames), CHUNK)]
        lost.append([_squares(frames[chunk], decoded[key][chunk]) for chunk in chunks])
        whole.append([_squares(frames[chunk], median) for chunk in chunks])
    lost_N, whole_N = (np.sum([np.concatenate(part) for part in parts], axis=0) for parts in (lost, whole))
    # A frame that is nearly the median one has little to lose but itself.
    return lost_N < LARGEST_LOSS * np.maximum(whole_N, whole_N.mean())


def _squares(frames: np.ndarray, others: np.ndarray) -> np.ndarray:
    return ((frames.astype(np.float32) - others) ** 2).reshape(len(frames), -1).mean(axis=1)


def _colours(frames: Frames) -> dict[str, np.ndarray]:
    """Return by camera ``N pixels``: one number for each colour, channels cut to ``BITS``."""
    colours = {}
    for key, shown in frames.items():
        red, green, blue = (shown[..., channel].astype(np.uint16) >> (8 - BITS) for channel in range(3))
        colours[key] = ((red << 2 * BITS) | (green << BITS) | blue).reshape(len(shown), -1)
    return colours
